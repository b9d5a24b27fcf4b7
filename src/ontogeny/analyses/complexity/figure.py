"""Whether complex features appear late: the paper's figure 5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ontogeny.figures import style

PAPER = 0.309  # Pearson's r of LLM-graded complexity with the peak, on 100 features
NAMES = {
    "span_alone": "span, suffix alone",
    "span_replaced": "span, what is before replaced",
    "grade": "grade",
}
LABELS = {
    "span_alone": "context span (tokens),\nsuffix run alone",
    "span_replaced": "context span (tokens),\ntokens before it replaced",
    "grade": "complexity, graded\nby a language model",
}
COLOURS = {"span_alone": "0.45", "span_replaced": "#D55E00", "grade": "#0072B2"}
MARKERS = {"pearson": "o", "spearman": "s"}
SYMBOLS = {"pearson": "r", "spearman": "ρ"}
BINS = 6


def draw(
    features: str | Path,
    strengths: str | Path,
    span: str | Path,
    correlations: str | Path,
    grades: str | Path | None,
    output: str | Path,
) -> None:
    """Complexity against peak and onset, feature by feature, and all correlations.

    Parameters
    ----------
    features : the features table; feature, alive, matched, matched_cosine, peak_snapshot_index,
        onset_step, initialisation.
    strengths : the strengths table, for the snapshots: snapshot_index, step.
    span : the span table; feature, run, span.
    correlations : the complexity table; score, against, class, which, features, coefficient,
        value, low, high, p.
    grades : the grades table, if there is one; feature, grade.
    output : path without ending. Its CSV has panel ('feature', 'bin', 'initialisation',
        'correlation'), score, against, feature, class, which, features, x (snapshot number, or
        onset step), coefficient, value, low, high (quartiles; of correlations the 95% interval), p.

    References
    ----------
    METHOD.md 6.
    """
    living = style.read_living(features, ["peak_snapshot_index", "onset_step", "initialisation"])
    spans = style.read(span, ["feature", "run", "span"])
    table = style.read(
        correlations,
        ["score", "against", "class", "which", "features", "coefficient", "value", "low", "high"],
    )
    scores = spans.pivot(index="feature", columns="run", values="span").add_prefix("span_")
    living = living.merge(scores, on="feature", how="left")
    if grades is not None:
        graded = style.read(grades, ["feature", "grade"])[["feature", "grade"]]
        living = living.merge(graded.astype({"grade": float}), on="feature", how="left")
    shown = [name for name in NAMES if name in living]
    snapshots = style.read(strengths, ["snapshot_index", "step"])
    snapshots = snapshots[["snapshot_index", "step"]].drop_duplicates().sort_values("step")
    drawn: list[pd.DataFrame] = []
    with style.paper():
        figure = style.new_figure(180, 50 * len(shown) + 85)
        parts: Any = figure.subfigures(2, 1, height_ratios=[50 * len(shown), 70])
        upper, lower = parts
        grid = upper.subplots(len(shown), 3, squeeze=False)
        letters = iter("abcdefghijkl")
        last = float(living["onset_step"].max())
        for row, score in zip(grid, shown, strict=True):
            some = living[living[score].notna()]
            bottom = score == shown[-1]
            peak, log, linear = row
            _peaks(peak, some, score, snapshots, drawn)
            peak.set_xlabel("peak snapshot number, below it the step" if bottom else "")
            for axis, kind in ((log, style.KINDS[0]), (linear, style.KINDS[1])):
                _onsets(axis, some, score, drawn if kind == "log" else [])
                style.step_axis(axis, last, kind, labels=bottom)
                if bottom:
                    axis.set_xlabel("onset, " + axis.get_xlabel())
            for axis, against in ((peak, "peak_snapshot_index"), (log, "onset"), (linear, "")):
                _value_axis(axis, score, axis is peak)
                said = _said(table, score, against) if against else "the same on a linear axis"
                axis.set_title(
                    rf"$\mathbf{{{next(letters)}}}$  {said}",
                    loc="left", fontsize=5.8, linespacing=1.25,
                )  # fmt: skip
        low, high = lower.subplots(1, 2)
        _forest(low, table, shown, "peak_snapshot_index", True, drawn)
        _forest(high, table, shown, "onset", False, drawn)
        style.title(low, next(letters), "correlation with the peak snapshot index")
        style.title(high, next(letters), "correlation with onset, log(step + 1)")
        figure.suptitle(style.matched_note(living), x=0.01, ha="left")
        figure.legend(handles=_handles(shown), loc="outside lower center", ncols=4)
        columns = ["panel", "score", "against", "feature", "class", "which", "features"]
        columns += ["x", "coefficient", "value", "low", "high", "p"]
        found = pd.concat(drawn, ignore_index=True).reindex(columns=columns)
        style.save(figure, found.astype({"feature": "Int64", "features": "Int64"}), output)


def _value_axis(axis: Axes, score: str, label: bool) -> None:
    if score != "grade":
        axis.set_yscale("log", base=2)
        axis.yaxis.set_major_formatter("{x:g}")
    axis.set_ylabel(LABELS[score] if label else "")
    axis.tick_params(axis="y", labelleft=label)


def _points(axis: Axes, x: np.ndarray, some: pd.DataFrame, score: str) -> None:
    """A mark a feature: colour is its class, filled is matched."""
    for initial, name in ((True, "initialisation"), (False, "emergent")):
        for matched in (False, True):
            chosen = ((some["initialisation"] == initial) & (some["matched"] == matched)).to_numpy()
            colour = style.COLOURS[name]
            axis.plot(
                x[chosen], some[score].to_numpy()[chosen], "o", markersize=2.2, alpha=0.45,
                markerfacecolor=colour if matched else "none", markeredgecolor=colour,
                markeredgewidth=0.4, rasterized=True,
            )  # fmt: skip


def _bins(axis: Axes, x: np.ndarray, some: pd.DataFrame, score: str, edges: np.ndarray) -> Any:
    """Median and quartiles of the score in bins of x; returns them as a table."""
    place = np.searchsorted(edges, x, side="right")
    by = some[score].groupby(place)
    found = pd.DataFrame(
        {
            "x": pd.Series(x, index=some.index).groupby(place).median(),
            "value": by.median(),
            "low": by.quantile(0.25),
            "high": by.quantile(0.75),
            "features": by.size(),
        }
    )
    found = found[found["features"] >= 5]
    bars = np.abs(found[["low", "high"]].to_numpy().T - found["value"].to_numpy())
    axis.errorbar(
        found["x"], found["value"], bars, fmt="D-", color="black", markersize=3, linewidth=0.9,
        zorder=4,
    )  # fmt: skip
    return found.assign(panel="bin", score=score)


def _peaks(
    axis: Axes, some: pd.DataFrame, score: str, snapshots: pd.DataFrame, drawn: list[pd.DataFrame]
) -> None:
    """Score against the peak snapshot index; features of one index stand beside each other."""
    numbers, steps = list(snapshots["snapshot_index"]), list(snapshots["step"])
    number = some["peak_snapshot_index"]
    place = number.map({n: i for i, n in enumerate(numbers)}).to_numpy(float)
    rank = some.groupby("peak_snapshot_index").cumcount()
    of = number.map(number.value_counts())
    _points(axis, place + 0.7 * ((rank + 0.5) / of - 0.5).to_numpy(), some, score)
    edges = np.unique(np.quantile(place, np.linspace(0, 1, BINS + 1)[1:-1]))
    bins = _bins(axis, place, some, score, edges)
    bins["x"] = np.interp(bins["x"], range(len(numbers)), numbers)
    style.snapshot_axis(axis, numbers, steps, 7)
    axis.set_xlim(-0.8, len(numbers) - 0.2)
    each = some.assign(x=number, value=some[score], **{"class": _class(some)})
    each["which"] = np.where(some["matched"], "matched", "not matched")
    for table, panel in ((each, "feature"), (bins, "bin")):
        drawn.append(table.assign(panel=panel, score=score, against="peak_snapshot_index"))


def _class(some: pd.DataFrame) -> np.ndarray:
    return np.where(some["initialisation"], "initialisation", "emergent")


def _onsets(axis: Axes, some: pd.DataFrame, score: str, drawn: list[pd.DataFrame]) -> None:
    """Score against onset, of emergent features; of the others, which have none, quartiles."""
    emergent, initial = some[~some["initialisation"]], some[some["initialisation"]]
    if len(initial):
        low, middle, high = initial[score].quantile([0.25, 0.5, 0.75])
        colour = style.COLOURS["initialisation"]
        axis.errorbar(
            [0], [middle], [[middle - low], [high - middle]], fmt="D", color=colour, markersize=4,
            markerfacecolor="white", zorder=4,
        )  # fmt: skip
        quartiles = {"x": 0.0, "value": middle, "low": low, "high": high}
        drawn.append(
            pd.DataFrame(
                [quartiles | {"features": len(initial), "class": "initialisation"}]
            ).assign(panel="initialisation", score=score, against="onset")
        )
    x = emergent["onset_step"].to_numpy(float)
    if not len(x):
        return
    _points(axis, x, emergent, score)
    edges = np.unique(np.quantile(x, np.linspace(0, 1, BINS + 1)[1:-1]))
    bins = _bins(axis, x, emergent, score, edges)
    each = emergent.assign(x=x, value=emergent[score], **{"class": "emergent"})
    each["which"] = np.where(emergent["matched"], "matched", "not matched")
    for table, panel in ((each, "feature"), (bins, "bin")):
        drawn.append(table.assign(panel=panel, score=score, against="onset"))


def _said(table: pd.DataFrame, score: str, against: str) -> str:
    """Coefficients of all features, and of emergent ones, two lines each."""
    lines = []
    for kind in ("all", "emergent"):
        some = table[
            (table["score"] == score)
            & (table["against"] == against)
            & (table["class"] == kind)
            & (table["which"] == "all")
        ].set_index("coefficient")
        if some.empty:
            continue
        words = []
        for name, symbol in SYMBOLS.items():
            value, low, high = map(_signed, some.loc[name, ["value", "low", "high"]])
            words.append(f"{symbol} = {value} [{low}, {high}]")
        lines += [f"{kind}, n = {int(some['features'].iloc[0]):,}: {words[0]}", words[1]]
    return "\n".join(lines)


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _forest(
    axis: Axes,
    table: pd.DataFrame,
    shown: list[str],
    against: str,
    labels: bool,
    drawn: list[pd.DataFrame],
) -> None:
    """Every group's coefficients with their intervals; hollow, the same given density."""
    some = table[(table["against"] == against) & table["score"].isin(shown)]
    names = [(k, w) for k in ("all", "emergent", "initialisation") for w in ("all", "matched")]
    offsets = np.linspace(-0.36, 0.36, len(shown) * len(MARKERS))
    for place, (kind, which) in enumerate(names):
        own = some[(some["class"] == kind) & (some["which"] == which)]
        for offset, (score, name) in zip(
            offsets, [(s, c) for s in shown for c in MARKERS], strict=True
        ):
            row = own[(own["score"] == score) & (own["coefficient"] == name)]
            if row.empty:
                continue
            value, low, high = row[["value", "low", "high"]].iloc[0]
            style_of: dict[str, Any] = {"color": COLOURS[score], "markersize": 3.2}
            bars = [[max(0, value - low)], [max(0, high - value)]]
            axis.errorbar(
                [value], [place + offset], xerr=bars, fmt=MARKERS[name], linewidth=0.9, **style_of
            )
            given = own[(own["score"] == score) & (own["coefficient"] == f"{name}_partial")]
            axis.plot(
                given["value"], [place + offset], MARKERS[name], markerfacecolor="white",
                markeredgewidth=0.7, **style_of,
            )  # fmt: skip
            drawn.append(pd.concat([row, given]).assign(panel="correlation"))
    axis.axvline(0, color="0.6", linewidth=0.7, zorder=0)
    if against == "peak_snapshot_index":
        axis.axvline(PAPER, color="0.3", linewidth=0.8, linestyle=":", zorder=0)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlim(-1, 1)
    axis.set_xticks([-1, -0.5, 0, 0.5, 1])
    counts = some[some["score"] == shown[0]].groupby(["class", "which"])["features"].first()
    axis.set_yticks(
        range(len(names)),
        [
            f"{k}{', matched' if w == 'matched' else ''} ({counts.get((k, w), 0):,})"
            for k, w in names
        ]
        if labels
        else [""] * len(names),
    )
    axis.tick_params(axis="y", length=0)
    for place in range(1, len(names)):
        axis.axhline(place - 0.5, color="0.92", linewidth=0.6, zorder=0)
    axis.set_xlabel("correlation, 95% interval")


def _handles(shown: list[str]) -> list[Line2D]:
    """The legend."""
    found = []
    for name in ("initialisation", "emergent"):
        for matched in (True, False):
            colour = style.COLOURS[name]
            found.append(
                Line2D(
                    [], [], marker="o", linestyle="", markersize=3, markeredgecolor=colour,
                    markerfacecolor=colour if matched else "none",
                    label=f"{name}, {'matched' if matched else 'not matched'}",
                )
            )  # fmt: skip
    found.append(Line2D([], [], color="black", marker="D", markersize=3, label="median, quartiles"))
    for score in shown:
        found.append(Line2D([], [], color=COLOURS[score], label=NAMES[score]))
    for name, marker in MARKERS.items():
        words = {"pearson": "Pearson", "spearman": "Spearman"}[name]
        found.append(
            Line2D([], [], color="0.3", marker=marker, linestyle="", markersize=3.2, label=words)
        )
    found.append(
        Line2D(
            [], [], color="0.3", marker="o", linestyle="", markersize=3.2, markerfacecolor="white",
            label="given density",
        )
    )  # fmt: skip
    found.append(
        Line2D([], [], color="0.3", linestyle=":", linewidth=0.8, label=f"paper, r = {PAPER}")
    )
    return found
