"""Whether complex features appear late: the paper's figure 5."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ontogeny.figures import style

PAPER = 0.309  # Pearson's r between LLM-graded complexity and the peak, on 100 features
NAMES = {
    "span_alone": "span, suffix alone",
    "span_replaced": "span, earlier tokens replaced",
    "grade": "grade",
}
LABELS = {
    "span_alone": "context span (tokens),\nsuffix run alone",
    "span_replaced": "context span (tokens),\ntokens before it replaced",
    "grade": "complexity, graded\nby a language model",
}
COLOURS = {"span_alone": "0.45", "span_replaced": style.CASES[1], "grade": style.CASES[0]}
MARKERS = {"pearson": "o", "spearman": "s"}
SYMBOLS = {"pearson": "r", "spearman": "ρ"}
BINS = 6

FINDING = {  # names of the scores in a title
    "span_alone": "the context span measured by running a suffix alone",
    "span_replaced": "the span measured by replacing what comes before",
    "grade": "the grade",
}


def draw(
    features: Path,
    strengths: Path,
    span: Path,
    correlations: Path,
    grades: Path | None,
    output: Path,
) -> None:
    """Complexity of each feature against its peak and its onset, and all correlations.

    Parameters
    ----------
    features, strengths, span, correlations, grades : tables; grades may be None.
    output : path without ending. Its CSV has panel ('feature', 'bin', 'initialisation',
        'correlation'), score, against, feature, class, which, features, x (snapshot index, or
        onset step), coefficient, value, low, high (quartiles; 95% interval for correlations), p.
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
            scored = living[living[score].notna()]
            bottom = score == shown[-1]
            peak, log, linear = row
            _peaks(peak, scored, score, snapshots, drawn)
            peak.set_xlabel("peak snapshot number, below it the step" if bottom else "")
            for axis, kind in ((log, style.KINDS[0]), (linear, style.KINDS[1])):
                _onsets(axis, scored, score, drawn if kind == "log" else [])
                style.step_axis(axis, last, kind, labels=bottom)
                if bottom:
                    axis.set_xlabel("onset, " + axis.get_xlabel())
            for axis, against in ((peak, "peak_snapshot_index"), (log, "onset"), (linear, "")):
                _value_axis(axis, score, axis is peak)
                words = _in_words(table, score, against) if against else "the same on a linear axis"
                axis.set_title(
                    rf"$\mathbf{{{next(letters)}}}$  {words}",
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
        numbers = pd.concat(drawn, ignore_index=True).reindex(columns=columns)
        style.save(
            figure, numbers.astype({"feature": "Int64", "features": "Int64"}), output, finding
        )


def finding(table: pd.DataFrame) -> str:
    """Whether later features are more complex when density is held fixed."""
    own = table[
        (table["panel"] == "correlation") & (table["against"] == "peak_snapshot_index")
        & (table["class"] == "all") & (table["which"] == "all")
        & (table["coefficient"] == "spearman_partial")
    ]  # fmt: skip
    parts = []
    for row in own.to_dict("records"):
        told = row["low"] > 0 or row["high"] < 0
        how = ("rises" if row["value"] > 0 else "falls") if told else "shows no clear change"
        parts.append(
            f"{FINDING[str(row['score'])]} {how} with the peak (ρ = "
            f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}])".replace("-", "−")
        )
    if not parts:
        return "Too few features to correlate complexity with the peak"
    return f"Given density, {'; '.join(parts)}"


def _value_axis(axis: Axes, score: str, label: bool) -> None:
    if score != "grade":
        axis.set_yscale("log", base=2)
        axis.yaxis.set_major_formatter("{x:g}")
    axis.set_ylabel(LABELS[score] if label else "")
    axis.tick_params(axis="y", labelleft=label)


def _points(axis: Axes, x: np.ndarray, scored: pd.DataFrame, score: str) -> None:
    """One mark per feature: its colour is the class, and matched features are filled."""
    for initial, name in ((True, "initialisation"), (False, "emergent")):
        for matched in (False, True):
            chosen = (scored["initialisation"] == initial) & (scored["matched"] == matched)
            colour = style.COLOURS[name]
            axis.plot(
                x[chosen.to_numpy()], scored.loc[chosen, score].to_numpy(), "o", markersize=2.2,
                alpha=0.45, markerfacecolor=colour if matched else "none",
                markeredgecolor=colour, markeredgewidth=0.4, rasterized=True,
            )  # fmt: skip


def _bins(axis: Axes, x: np.ndarray, scored: pd.DataFrame, score: str) -> pd.DataFrame:
    """Draw median and quartiles of the score in bins of x with equally many features."""
    edges = np.unique(np.quantile(x, np.linspace(0, 1, BINS + 1)[1:-1]))
    number = np.searchsorted(edges, x, side="right")
    by = scored[score].groupby(number)
    bins = pd.DataFrame(
        {
            "x": pd.Series(x, index=scored.index).groupby(number).median(),
            "value": by.median(),
            "low": by.quantile(0.25),
            "high": by.quantile(0.75),
            "features": by.size(),
        }
    )
    bins = bins[bins["features"] >= 5]
    bars = np.abs(bins[["low", "high"]].to_numpy().T - bins["value"].to_numpy())
    axis.errorbar(
        bins["x"], bins["value"], bars, fmt="D-", color="black", markersize=3, linewidth=0.9,
        zorder=4,
    )  # fmt: skip
    return bins


def _peaks(
    axis: Axes, scored: pd.DataFrame, score: str, snapshots: pd.DataFrame, drawn: list[pd.DataFrame]
) -> None:
    """Score against the peak snapshot index; features with the same index are spread sideways."""
    numbers, steps = list(snapshots["snapshot_index"]), list(snapshots["step"])
    peak = scored["peak_snapshot_index"]
    x = peak.map({n: i for i, n in enumerate(numbers)}).to_numpy(float)
    rank = scored.groupby("peak_snapshot_index").cumcount()
    beside = (rank + 0.5) / peak.map(peak.value_counts()) - 0.5
    _points(axis, x + 0.7 * beside.to_numpy(), scored, score)
    bins = _bins(axis, x, scored, score)
    bins["x"] = np.interp(bins["x"], range(len(numbers)), numbers)
    style.snapshot_axis(axis, numbers, steps, 7)
    axis.set_xlim(-0.8, len(numbers) - 0.2)
    drawn += _tables(scored, peak, bins, score, "peak_snapshot_index")


def _tables(
    scored: pd.DataFrame, x: Any, bins: pd.DataFrame, score: str, against: str
) -> list[pd.DataFrame]:
    """The numbers that a panel shows for single features and for bins."""
    kind = np.where(scored["initialisation"], "initialisation", "emergent")
    which = np.where(scored["matched"], "matched", "not matched")
    each = scored.assign(x=x, value=scored[score], which=which, **{"class": kind})
    named = (("feature", each), ("bin", bins))
    return [table.assign(panel=name, score=score, against=against) for name, table in named]


def _onsets(axis: Axes, scored: pd.DataFrame, score: str, drawn: list[pd.DataFrame]) -> None:
    """Score against onset for emergent features; quartiles for the others, which have no onset."""
    emergent, initial = scored[~scored["initialisation"]], scored[scored["initialisation"]]
    if len(initial):
        low, middle, high = initial[score].quantile([0.25, 0.5, 0.75])
        colour = style.COLOURS["initialisation"]
        axis.errorbar(
            [0], [middle], [[middle - low], [high - middle]], fmt="D", color=colour, markersize=4,
            markerfacecolor="white", zorder=4,
        )  # fmt: skip
        quartiles = {"x": 0.0, "value": middle, "low": low, "high": high}
        about: dict[str, Any] = {"panel": "initialisation", "score": score, "against": "onset"}
        about |= {"features": len(initial), "class": "initialisation"}
        drawn.append(pd.DataFrame([quartiles | about]))
    if len(emergent):
        x = emergent["onset_step"].to_numpy(float)
        _points(axis, x, emergent, score)
        drawn += _tables(emergent, x, _bins(axis, x, emergent, score), score, "onset")


def _in_words(table: pd.DataFrame, score: str, against: str) -> str:
    """Coefficients of all features and of emergent ones, two lines each."""
    chosen = table[
        (table["score"] == score) & (table["against"] == against) & (table["which"] == "all")
    ]
    lines = []
    for kind in ("all", "emergent"):
        rows = chosen[chosen["class"] == kind].set_index("coefficient")
        if rows.empty:
            continue
        words = []
        for name, symbol in SYMBOLS.items():
            value, low, high = map(_signed, rows.loc[name, ["value", "low", "high"]])
            words.append(f"{symbol} = {value} [{low}, {high}]")
        lines += [f"{kind}, n = {int(rows['features'].iloc[0]):,}: {words[0]}", words[1]]
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
    """Every group's coefficients with intervals; hollow markers hold density fixed."""
    table = table[(table["against"] == against) & table["score"].isin(shown)]
    groups = list(product(("all", "emergent", "initialisation"), ("all", "matched")))
    marks = list(product(shown, MARKERS))
    offsets = np.linspace(-0.36, 0.36, len(marks))
    for y, (kind, which) in enumerate(groups):
        own = table[(table["class"] == kind) & (table["which"] == which)]
        for offset, (score, name) in zip(offsets, marks, strict=True):
            row = own[(own["score"] == score) & (own["coefficient"] == name)]
            if row.empty:
                continue
            value, low, high = row[["value", "low", "high"]].iloc[0]
            look: dict[str, Any] = {"color": COLOURS[score], "markersize": 3.2}
            bars = [[max(0, value - low)], [max(0, high - value)]]
            axis.errorbar(
                [value], [y + offset], xerr=bars, fmt=MARKERS[name], linewidth=0.9, **look
            )
            given = own[(own["score"] == score) & (own["coefficient"] == f"{name}_partial")]
            axis.plot(
                given["value"], [y + offset], MARKERS[name], markerfacecolor="white",
                markeredgewidth=0.7, **look,
            )  # fmt: skip
            drawn.append(pd.concat([row, given]).assign(panel="correlation"))
    axis.axvline(0, color="0.6", linewidth=0.7, zorder=0)
    if against == "peak_snapshot_index":
        axis.axvline(PAPER, color="0.3", linewidth=0.8, linestyle=":", zorder=0)
    axis.set_ylim(len(groups) - 0.5, -0.5)
    axis.set_xlim(-1, 1)
    axis.set_xticks([-1, -0.5, 0, 0.5, 1])
    counts = table[table["score"] == shown[0]].groupby(["class", "which"])["features"].first()
    names = [
        f"{kind}{', matched' if which == 'matched' else ''} ({counts.get((kind, which), 0):,})"
        for kind, which in groups
    ]
    axis.set_yticks(range(len(groups)), names if labels else [""] * len(groups))
    axis.tick_params(axis="y", length=0)
    for y in range(1, len(groups)):
        axis.axhline(y - 0.5, color="0.92", linewidth=0.6, zorder=0)
    axis.set_xlabel("correlation, 95% interval")


def _handles(shown: list[str]) -> list[Line2D]:
    """The legend."""

    def mark(marker: str, label: str, size: float = 3.2, **look: Any) -> Line2D:
        return Line2D([], [], marker=marker, linestyle="", markersize=size, label=label, **look)

    handles = []
    for name in ("initialisation", "emergent"):
        colour = style.COLOURS[name]
        for label, face in (("matched", colour), ("not matched", "none")):
            look = {"markeredgecolor": colour, "markerfacecolor": face}
            handles.append(mark("o", f"{name}, {label}", 3, **look))
    handles.append(
        Line2D([], [], color="black", marker="D", markersize=3, label="median, quartiles")
    )
    handles += [Line2D([], [], color=COLOURS[score], label=NAMES[score]) for score in shown]
    handles += [mark(MARKERS[name], name.capitalize(), color="0.3") for name in MARKERS]
    handles.append(mark("o", "given density", color="0.3", markerfacecolor="white"))
    paper = f"paper, r = {PAPER}"
    handles.append(Line2D([], [], color="0.3", linestyle=":", linewidth=0.8, label=paper))
    return handles
