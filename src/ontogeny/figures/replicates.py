"""What replicates in other models (docs/method.md 8)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ontogeny.figures import style
from ontogeny.settings import Settings

SHADES = ("#000000", *(shade for shade in style.CASES if shade != "#000000"))
PANELS = {
    "loss": ("model", "held-out loss (nats)"),
    "dimensionality": ("features", "total dimensionality / d"),
    "strength": ("previous_token", "mean strength / peak,\nprevious-token features"),
    "contrast": ("directions", "cosine within less\nbetween blocks"),
}
"""Group of the curves in each panel, and label."""
BINS = np.linspace(0, 1, 41)


def draw(
    settings: Settings,
    curves: Path,
    matches: Path,
    numbers: Path,
    onsets_by_event: Path,
    levels: Path,
    output: Path,
) -> None:
    """Loss, dimensionality, strength of previous-token features, and turning point, by model.

    Models that differ in more than their seed are dashed. The lower panels show how well features
    of the experiment's own model are found in each other one, the onsets of features that emerge in
    both, and when heads, copying and kinds of feature form, with the range over seeds.

    Parameters
    ----------
    output : path without ending. Its CSV has panel (those of the curves, 'correlation', 'onset',
        'event'), event, model (empty: all that differ only in their seed), step (an onset in the
        experiment's model), value (the partner's onset, an event's step, or the number of features
        in the bin of correlation with lower edge low), low, high (the range of an event).
    """
    threshold = settings.analysis.matched_cosine
    table = style.read(curves, ["model", "only_seed", "panel", "group", "step", "value"])
    columns = ["other", "partner", "correlation", "initialisation", "onset_step"]
    columns += ["partner_initialisation", "partner_onset_step"]
    pairs = style.read(matches, columns)
    known = style.read(numbers, ["quantity"]).set_index("quantity")
    level = style.read_json(levels, ["unigram_cross_entropy", "bigram_cross_entropy"])
    colours = {m: SHADES[i % len(SHADES)] for i, m in enumerate(table["model"].unique())}
    drawn = []
    with style.paper():
        events = _shown(onsets_by_event)
        figure = style.new_figure(180, 225 + 12 + 4 * max(3, len(events)))
        rows = figure.add_gridspec(6, 2, height_ratios=[42] * 5 + [4 * max(3, len(events)) + 8])
        places = [[figure.add_subplot(rows[row, column]) for column in (0, 1)] for row in range(5)]
        grid = np.array(places)
        for row, (panel, (group, label)) in enumerate(PANELS.items()):
            shown = table[(table["panel"] == panel) & (table["group"] == group)]
            drawn.append(shown[["panel", "model", "step", "value"]])
            if shown.empty:
                for axis in grid[row]:
                    style.empty(axis, f"{panel}: not made, or no such feature")
                continue
            for axis in grid[row]:
                for model, own in shown.groupby("model", sort=False):
                    line = "-" if own["only_seed"].iloc[0] else "--"
                    axis.plot(own["step"], own["value"], line, color=colours[model], label=model)
                if panel in ("dimensionality", "strength"):
                    axis.set_ylim(bottom=0)
                for model in colours if panel == "contrast" else ():
                    step = known.loc["turning_point_step", model]
                    axis.axvline(step, color=colours[model], linewidth=0.6, linestyle=":")
            if panel == "loss":
                _levels(grid[row, 0], level, "right")
                _levels(grid[row, 1], level, "left")
            grid[row, 0].set_ylabel(label)
            lowest = row == len(PANELS) - 1
            style.over_training(
                grid[row : row + 1], table["step"].max(), first="aceg"[row], labels=lowest
            )
        drawn += _correlations(grid[4, 0], pairs, colours, threshold)
        drawn += _onsets(grid[4, 1], pairs[pairs["correlation"] >= threshold], colours)
        drawn += _events(figure.add_subplot(rows[5, :]), events, colours, table["step"].max())
        handles = grid[0, 0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=len(colours))
        columns = ["panel", "event", "model", "low", "high", "step", "value"]
        style.save(figure, pd.concat(drawn).reindex(columns=columns), output, finding)


def finding(table: pd.DataFrame) -> str:
    """The range of the models' final losses."""
    loss = table[table["panel"] == "loss"].sort_values("step").groupby("model")["value"].last()
    if len(loss) < 2:
        return ""
    return (
        f"{len(loss)} models end at held-out losses from {loss.min():.2f} to {loss.max():.2f} nats"
    )


def _levels(axis: Axes, level: dict[str, float], side: Literal["left", "right"]) -> None:
    """The n-gram levels, labelled at one side."""
    for name in ("unigram", "bigram"):
        value, colour = level[f"{name}_cross_entropy"], style.COLOURS[name]
        axis.axhline(value, color=colour, linewidth=0.7, linestyle=":")
        axis.text(
            0.99 if side == "right" else 0.01, value, name, va="bottom", fontsize=6, ha=side,
            transform=axis.get_yaxis_transform(), color=colour,
        )  # fmt: skip


def _correlations(
    axis: Axes, pairs: pd.DataFrame, colours: dict[str, str], threshold: float
) -> list[pd.DataFrame]:
    """Histogram of the correlations with the partners, for each other model."""
    drawn = []
    for model, own in pairs.groupby("other", sort=False):
        value = own["correlation"].fillna(0)
        label = f"{model}: {(value >= threshold).mean():.0%} ≥ {threshold:g}"
        counts = style.histogram(axis, value, BINS, color=colours[str(model)], label=label)
        bins = pd.DataFrame({"low": BINS[:-1], "value": counts})
        drawn.append(bins.assign(panel="correlation", model=model))
    axis.axvline(threshold, color="black", linestyle="--", linewidth=0.8)
    axis.set(xlim=(0, 1), xlabel="correlation with the partner's activation")
    axis.set(yscale="log", ylabel="features (log axis)")
    axis.legend(loc="upper left", fontsize=6)
    style.title(axis, "i", "each feature's partner in another model")
    return drawn


def _onsets(axis: Axes, matched: pd.DataFrame, colours: dict[str, str]) -> list[pd.DataFrame]:
    """Onset steps of features that emerge in both models."""
    both = matched[~matched["initialisation"] & ~matched["partner_initialisation"].astype(bool)]
    style.title(axis, "j", f"matched features that emerge in both ({len(both):,})")
    if both.empty:
        style.empty(axis, "no matched feature emerges in both")
        return []
    drawn = []
    onsets = ["onset_step", "partner_onset_step"]
    for model, own in both.groupby("other", sort=False):
        axis.plot(
            *own[onsets].to_numpy().T, "o", markersize=2.5, alpha=0.6, markeredgewidth=0,
            color=colours[str(model)], label=f"{model} ({len(own):,})",
        )  # fmt: skip
        points = own[onsets].set_axis(["step", "value"], axis=1)
        drawn.append(points.assign(panel="onset", model=model))
    most = both[onsets].to_numpy().max()
    axis.plot([0, most], [0, most], color="0.6", linewidth=0.6, zorder=0)
    style.step_axis(axis, most, "log")
    axis.set_yscale("function", functions=(np.log1p, np.expm1))
    axis.set_ylim(axis.get_xlim())
    axis.yaxis.set_major_locator(axis.xaxis.get_major_locator())
    axis.yaxis.set_minor_locator(axis.xaxis.get_minor_locator())
    axis.set(xlabel="onset step in the experiment's own model", ylabel="onset step in the other")
    axis.legend(loc="upper left", fontsize=6, handletextpad=0.2)
    return drawn


def _shown(path: Path) -> pd.DataFrame:
    """Events that form in any model, with a label; only the median over distances, not each one."""
    columns = ["event", "detail", "group", "models", "earliest", "latest"]
    table = style.read(path, columns, dtype={"detail": str, "group": str})
    table = table.fillna({"detail": "", "group": ""})
    whole = (table["event"] != "features") & (table["detail"] == "") | (table["group"] == "all")
    table = table[whole & (table["models"] > 0)]
    of_kind = "features: " + table["detail"].str.replace("_", " ")
    label = table["event"].str.replace("_", " ").where(table["event"] != "features", of_kind)
    return table.assign(label=label).reset_index(drop=True)


def _events(
    axis: Axes, events: pd.DataFrame, colours: dict[str, str], last: float
) -> list[pd.DataFrame]:
    """Each event's onset in every model, and their range over seeds."""
    style.title(axis, "k", "onsets of heads, copying and features; line: range over seeds")
    if events.empty:
        style.empty(axis, "induction: not made")
        return []
    axis.hlines(events.index, events["earliest"], events["latest"], color="0.75", linewidth=3)
    about = events[["label"]].rename(columns={"label": "event"}).assign(panel="event")
    drawn = [about.assign(low=events["earliest"], high=events["latest"])]
    for model, colour in colours.items():
        axis.plot(events[model], events.index, "o", color=colour, markersize=3, alpha=0.8)
        drawn.append(about.assign(model=model, value=events[model]))
    axis.set_yticks(events.index, events["label"], fontsize=6)
    axis.set_ylim(len(events) - 0.5, -0.6)
    axis.grid(axis="y", color="0.92", linewidth=0.5)
    style.step_axis(axis, last, "log")
    return drawn
