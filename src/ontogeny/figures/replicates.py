"""What comes again in other models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ontogeny.figures import style

SHADES = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
PANELS = {
    "loss": "held-out loss (nats)",
    "dimensionality": "total dimensionality / d",
    "strength": "mean strength / peak,\nprevious-token features",
    "contrast": "cosine within less\nbetween blocks",
}
SHOWN = ("model", "features", "previous_token", "directions")  # group of each panel
BINS = np.linspace(0, 1, 41)


def draw(
    curves: str | Path,
    matches: str | Path,
    numbers: str | Path,
    levels: str | Path,
    output: str | Path,
    threshold: float = 0.7,
) -> None:
    """Loss, dimensionality, strength of previous-token features, the turning point, by model.

    Models that differ in more than their seed are dashed. Below: how well the features of the
    experiment's own model are found in each other, and onsets in both of those that emerge.

    Parameters
    ----------
    curves : model, only_seed, panel, group, step, value. matches : other, feature, partner,
        correlation, initialisation, onset_step, partner_initialisation, partner_onset_step.
        numbers : quantity, and a column a model. levels : the n-gram levels.
    output : path without ending. Its CSV has panel (those of the curves, 'correlation', 'onset'),
        model, step (an onset in the experiment's model), value (the partner's onset, or features
        in the bin of correlation whose lower edge is low).
    threshold : correlation from which two features match.

    References
    ----------
    METHOD.md 8.
    """
    table = style.read(curves, ["model", "only_seed", "panel", "group", "step", "value"])
    columns = ["other", "partner", "correlation", "initialisation", "onset_step"]
    columns += ["partner_initialisation", "partner_onset_step"]
    pairs = style.read(matches, columns)
    known = style.read(numbers, ["quantity"]).set_index("quantity")
    level = style.read_json(levels, ["unigram_cross_entropy", "bigram_cross_entropy"])
    models = list(table["model"].unique())
    colour = {model: SHADES[i % len(SHADES)] for i, model in enumerate(models)}
    seeds = table.groupby("model")["only_seed"].first()
    last = table["step"].max()
    drawn = []
    with style.paper():
        figure = style.new_figure(180, 225)
        grid = figure.subplots(5, 2)
        for row, (panel, group) in enumerate(zip(PANELS, SHOWN, strict=True)):
            some = table[(table["panel"] == panel) & (table["group"] == group)]
            drawn.append(some[["panel", "model", "step", "value"]])
            for column, kind in enumerate(style.KINDS):
                axis = grid[row, column]
                if some.empty:
                    style.empty(axis, f"{panel}: not made, or no such feature")
                    continue
                for model in models:
                    own = some[some["model"] == model]
                    line = "-" if seeds[model] else "--"
                    axis.plot(own["step"], own["value"], line, color=colour[model], label=model)
                if panel == "loss":
                    for name in ("unigram", "bigram"):
                        value = level[f"{name}_cross_entropy"]
                        axis.axhline(value, color=style.COLOURS[name], linewidth=0.7, linestyle=":")
                        axis.text(
                            0.01 if column else 0.99, value, name, va="bottom", fontsize=6,
                            ha="left" if column else "right", transform=axis.get_yaxis_transform(),
                            color=style.COLOURS[name],
                        )  # fmt: skip
                if panel == "contrast":
                    for model in models:
                        step = known.loc["turning_point_step", model]
                        axis.axvline(step, color=colour[model], linewidth=0.6, linestyle=":")
                elif panel != "loss":
                    axis.set_ylim(bottom=0)
                style.step_axis(axis, last, kind, labels=row == len(PANELS) - 1)
                if not column:
                    axis.set_ylabel(PANELS[panel])
                style.title(axis, "abcdefgh"[2 * row + column], "")
        drawn += _correlations(grid[4, 0], pairs, colour, threshold)
        drawn += _onsets(grid[4, 1], pairs[pairs["correlation"] >= threshold], colour)
        handles = grid[0, 0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside upper left", ncols=len(models))
        columns = ["panel", "model", "low", "step", "value"]
        style.save(figure, pd.concat(drawn).reindex(columns=columns), output)


def _correlations(
    axis: Axes, pairs: pd.DataFrame, colour: dict[str, str], threshold: float
) -> list[pd.DataFrame]:
    """Histogram of the correlations with the partners, by other model."""
    drawn = []
    for model, some in pairs.groupby("other", sort=False):
        value = some["correlation"].fillna(0).clip(0, 1)
        counts, _ = np.histogram(value, BINS)
        share = (value >= threshold).mean()
        axis.stairs(
            counts, BINS, color=colour[str(model)], label=f"{model}: {share:.0%} ≥ {threshold:g}"
        )
        drawn.append(
            pd.DataFrame(
                {"panel": "correlation", "model": model, "low": BINS[:-1], "value": counts}
            )
        )
    axis.axvline(threshold, color="black", linestyle="--", linewidth=0.8)
    axis.set(xlim=(0, 1), xlabel="correlation with the partner's activation", yscale="log")
    axis.set_ylabel("features (log axis)")
    axis.legend(loc="upper left", fontsize=6)
    style.title(axis, "i", "each feature's partner in another model")
    return drawn


def _onsets(axis: Axes, matched: pd.DataFrame, colour: dict[str, str]) -> list[pd.DataFrame]:
    """Onset steps of features that emerge in both models."""
    both = matched[~matched["initialisation"] & ~matched["partner_initialisation"].astype(bool)]
    style.title(axis, "j", f"matched features that emerge in both ({len(both):,})")
    if both.empty:
        style.empty(axis, "no matched feature emerges in both")
        return []
    drawn = []
    for model, some in both.groupby("other", sort=False):
        axis.plot(
            some["onset_step"], some["partner_onset_step"], "o", markersize=2.5, alpha=0.6,
            markeredgewidth=0, color=colour[str(model)], label=f"{model} ({len(some):,})",
        )  # fmt: skip
        own = some[["onset_step", "partner_onset_step"]].set_axis(["step", "value"], axis=1)
        drawn.append(own.assign(panel="onset", model=model))
    most = both[["onset_step", "partner_onset_step"]].to_numpy().max()
    axis.plot([0, most], [0, most], color="0.6", linewidth=0.6, zorder=0)
    style.step_axis(axis, most, "log")
    axis.set_yscale("function", functions=(np.log1p, np.expm1))
    axis.set_ylim(axis.get_xlim())
    axis.yaxis.set_major_locator(axis.xaxis.get_major_locator())
    axis.yaxis.set_minor_locator(axis.xaxis.get_minor_locator())
    axis.set_xlabel("onset step in the experiment's own model")
    axis.set_ylabel("onset step in the other")
    axis.legend(loc="upper left", fontsize=6, handletextpad=0.2)
    return drawn
