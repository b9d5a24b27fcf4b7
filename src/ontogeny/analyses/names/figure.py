"""The range chart: lives of features drawn as spindles, as palaeontology draws those of species."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from ontogeny.analyses.names.settings import Names
from ontogeny.figures import style
from ontogeny.figures.glyphs import drawable
from ontogeny.settings import Settings

KINDS = ("current_token", "previous_token", "induction", "context", "position", "none")
FINE = 400  # number of points along a spindle
HALF = 0.46  # share of a row's height that a feature at its peak fills on either side


def choose(living: pd.DataFrame, most: int) -> pd.DataFrame:
    """The features to show: some of each kind, spread over the order in which they appear.

    Candidates are named features that another seed matches (all named ones, if there are none), one
    per name; names of only the strongest contexts are used only if there are no others. Each kind
    gets a share of `most` in proportion to the square root of its size. Its features, in order of
    onset, are divided into that many parts, and the most frequent one of each part is shown.

    Parameters
    ----------
    living : feature, matched, name, strongest, kind, onset_step, density.
    """
    named = living[living["name"] != ""]
    if not named["strongest"].all():
        named = named[~named["strongest"]]
    fit = named[named["matched"]] if named["matched"].any() else named
    fit = fit.sort_values("density", ascending=False).drop_duplicates("name")
    weights = np.sqrt(fit["kind"].value_counts())
    chosen = []
    for _, part in fit.groupby("kind"):
        share = np.sqrt(len(part)) / weights.sum()
        count = min(len(part), max(1, round(most * share)))
        ordered = part.sort_values(["onset_step", "feature"])
        for piece in np.array_split(np.arange(len(ordered)), count):
            chosen.append(ordered.iloc[piece].nlargest(1, "density"))
    if not chosen:
        return fit
    return pd.concat(chosen).sort_values(["onset_step", "feature"]).head(most)


def draw(
    settings: Settings,
    features: Path,
    strengths: Path,
    named: Path,
    kinds: Path | None,
    phases: Path,
    levels: Path,
    turning_point: Path,
    log: Path | None,
    output: Path,
) -> None:
    """Draw the lives of the chosen features below the model's loss.

    Parameters
    ----------
    features, strengths, named, kinds : tables of a crosscoder. phases, levels, log : of the model.
    turning_point : JSON. log, kinds : None if there is none.
    output : path without ending. Its CSV has panel ('loss', 'copying', 'feature'), feature, name,
        kind, onset_step, step, value (nats, or the normalised strength of a feature).
    """
    living = style.read_living(features, ["onset_step", "density"])
    names = style.read(named, ["feature", "name", "strongest"])
    living = living.merge(names, on="feature", how="inner")
    living["kind"] = "none"
    if kinds is not None:
        known = style.read(kinds, ["feature", "kind"]).set_index("feature")["kind"]
        living["kind"] = living["feature"].map(known).fillna("none")
    rows = choose(living, settings.section(Names).shown)
    curves = style.read(strengths, ["feature", "step", "normalised_strength"])
    loss = style.read(phases, ["step", "loss"])
    turning = style.read_json(turning_point, []).get("all")  # absent if under four snapshots
    last = float(curves["step"].max())
    with style.paper():
        figure = style.new_figure(180, 45 + 3.3 * max(8, len(rows)))
        above, below = figure.subplots(2, 1, height_ratios=[28, 3.3 * max(8, len(rows))])
        drawn = [_model(above, loss, levels, log)]
        drawn += _lives(below, rows, curves)
        for axis in (above, below):
            style.step_axis(axis, last, "log", labels=axis is below)
        if turning is not None:
            _turning(above, below, turning)
        found = [kind for kind in KINDS if (rows["kind"] == kind).any()]
        handles = [Patch(color=_colour(kind), label=kind.replace("_", " ")) for kind in found]
        figure.legend(handles=handles, loc="outside lower center", ncols=6)
        columns = ["panel", "feature", "name", "kind", "onset_step", "step", "value"]
        table = pd.concat(drawn, ignore_index=True).reindex(columns=columns)
        style.save(figure, table.astype({"feature": "Int64"}), output, finding)


def finding(table: pd.DataFrame) -> str:
    """How many features are shown, and in which order their kinds appear, by median onset."""
    own = table[table["panel"] == "feature"].drop_duplicates("feature")
    if own.empty:
        return "No feature has a name"
    told = own[own["kind"].fillna("none") != "none"]
    order = told.groupby("kind")["onset_step"].median().sort_values()
    if order.empty:
        return f"{len(own)} named features, none of a kind that could be established"
    said = ", ".join(f"{str(kind).replace('_', ' ')} {step:,.0f}" for kind, step in order.items())
    return f"Median onset of the {len(own)} features shown, by kind: {said}"


def _turning(above: Axes, below: Axes, about: dict[str, float]) -> None:
    """The turning point of directions, with its interval."""
    for axis in (above, below):
        axis.axvspan(about["low"], about["high"], color="0.93", zorder=0)
        axis.axvline(about["step"], color="0.6", linewidth=0.6, zorder=0)
    above.annotate(
        "directions turn", (about["step"], 1), xycoords=("data", "axes fraction"),
        xytext=(2, -2), textcoords="offset points", va="top", fontsize=6, color="0.4",
    )  # fmt: skip


def _colour(kind: str) -> str:
    return style.COLOURS.get(kind, style.COLOURS["unsure"])


def _model(axis: Axes, loss: pd.DataFrame, levels: Path, log: Path | None) -> pd.DataFrame:
    """Held-out loss with the n-gram levels, and the copying gain."""
    axis.plot(loss["step"], loss["loss"], color=style.COLOURS["held_out"], label="held-out loss")
    for name in ("unigram", "bigram"):
        level = style.read_json(levels, [f"{name}_cross_entropy"])[f"{name}_cross_entropy"]
        axis.axhline(level, color=style.COLOURS[name], linewidth=0.7, linestyle="--")
        axis.annotate(
            f"{name}s", (0.01, level), xycoords=("axes fraction", "data"), xytext=(0, -1.5),
            textcoords="offset points", va="top", fontsize=6, color=style.COLOURS[name],
        )  # fmt: skip
    axis.set_ylabel("loss (nats)")
    _leave_room(axis)
    parts = [loss.rename(columns={"loss": "value"}).assign(panel="loss")]
    if log is not None:
        copied = style.read(log, ["step", "copying_gain"]).dropna(subset=["copying_gain"])
        beside = axis.twinx()
        colour = style.COLOURS["copying"]
        beside.plot(copied["step"], copied["copying_gain"], color=colour)
        beside.set_ylabel("gain from a copy\n(nats)", color=colour)
        beside.spines["right"].set_visible(True)
        _leave_room(beside)
        parts.append(
            copied[["step", "copying_gain"]]
            .rename(columns={"copying_gain": "value"})
            .assign(panel="copying")
        )
    return pd.concat(parts)[["panel", "step", "value"]]


def _leave_room(axis: Axes) -> None:
    """Above the curves, for a label."""
    low, high = axis.get_ylim()
    axis.set_ylim(low, high + 0.15 * (high - low))


def _lives(axis: Axes, rows: pd.DataFrame, curves: pd.DataFrame) -> list[pd.DataFrame]:
    """One spindle per row, with the name at its right end."""
    drawn = []
    for place, about in enumerate(rows.to_dict("records")):
        own = curves[curves["feature"] == about["feature"]].sort_values("step")
        x = np.log1p(own["step"].to_numpy(float))
        fine = np.linspace(x[0], x[-1], FINE)
        width = HALF * np.interp(fine, x, own["normalised_strength"].to_numpy(float))
        colour = _colour(about["kind"])
        axis.fill_between(np.expm1(fine), place - width, place + width, color=colour, linewidth=0)
        axis.annotate(
            drawable(about["name"]), (1, place), xycoords=("axes fraction", "data"), xytext=(3, 0),
            textcoords="offset points", va="center", fontsize=5.5, family="DejaVu Sans Mono",
            parse_math=False,
        )  # fmt: skip
        life = own.rename(columns={"normalised_strength": "value"})
        life = life.assign(panel="feature", name=about["name"], kind=about["kind"])
        drawn.append(life.assign(onset_step=float(about["onset_step"])))
    if not drawn:
        style.empty(axis, "no feature has a name")
    axis.set_ylim(max(8, len(rows)) - 0.2, -0.8)
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    return drawn
