"""Does the norm show presence? Latent scaling and linear probes against decoder norms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle

from ontogeny.figures import style

COLUMNS = 4  # most crosscoders in a row
CELLS = 40
BINS = np.linspace(0, 1, 11)
LEAST = 20  # least number of pairs in a bin with a median
TOP = 1.25  # largest scaling shown; larger ones count at the edge
SHADES = style.CASES
MARKERS = "osD^vP*"
SERIES = [
    ("free", "all", "o-", "#000000", "free"),
    ("free", "matched", "^--", style.COLOURS["matched"], "free, matched features"),
    ("scaling", "all", "s:", style.CASES[1], "along peak direction"),
]
CORNER = style.CASES[3]
TASKS = {
    "beyond_token": ("beyond the token", style.CASES[1]),
    "token": ("token makes it", style.CASES[0]),
}
TESTED = ["feature", "normalised_strength", "matched", "peak", "scaling", "free"]
TESTED += ["current_token", "probe", "control"]
JUDGED = ["measure", "test", "group", "threshold", "value", "low", "high", "pairs"]
DISAGREE = [
    ("contradicted", "free", "norm: absent\nfree: there"),
    ("contradicted", "scaling", "norm: absent\npeak dir.: there"),
    ("converse", "free", "norm: there\nfree: absent"),
    ("converse", "scaling", "norm: there\npeak dir.: absent"),
]


def draw(
    names: list[str],
    features: list[Path],
    tests: list[Path],
    verdicts: list[Path],
    output: Path,
) -> None:
    """Scaling and probes against normalised strength for each crosscoder, and all verdicts.

    Parameters
    ----------
    names : of the crosscoders. features, tests, verdicts : one table per crosscoder: the features
        table (feature, alive, matched, matched_cosine), presence.parquet, presence.csv.
    output : path without ending. Its CSV has crosscoder, panel ('density', 'median', 'probe',
        'threshold', 'verdict'), measure, test, group, x_low, x_high, y_low, y_high, low, value,
        high, pairs. 'density' has the number of pairs in each cell of normalised strength (x) and
        free scaling (y); 'median' the median scaling per bin of normalised strength; 'probe' the
        median and quartiles of the area under the ROC curve per bin; the others have shares with
        95% intervals and the threshold as x_low.

    References
    ----------
    docs/method.md 4.
    """
    drawn: list[pd.DataFrame] = []
    width = min(len(names), COLUMNS)
    height = -(-len(names) // COLUMNS)
    with style.paper():
        figure = style.new_figure(180, 72 + 78 * height)
        parts: Any = figure.subfigures(2, 1, height_ratios=[78 * height, 72])
        upper, lower = parts
        grid = upper.subplots(2 * height, width, squeeze=False)
        for axis in grid.ravel():
            axis.set_visible(False)
        last = 2 * len(names)
        judged = []
        for i, name in enumerate(names):
            living = style.read_living(features[i])
            table = style.read(tests[i], TESTED)
            verdict = style.read(verdicts[i], JUDGED)
            judged.append(verdict)
            row, column = divmod(i, COLUMNS)
            top, bottom = grid[2 * row, column], grid[2 * row + 1, column]
            image = _density(top, table, verdict, name, drawn)
            _probes(bottom, table, name, drawn)
            style.title(top, chr(97 + i), f"{name}\n{_note(living, table)}")
            style.title(bottom, chr(97 + len(names) + i), "")
            for axis in (top, bottom):
                axis.set_visible(True)
                axis.set_xlim(0, 1)
            bottom.set_xlabel("strength / peak strength")
            if column == 0:
                top.set_ylabel("scaling / peak's scaling")
                bottom.set_ylabel("probe, area under ROC")
        bar = upper.colorbar(image, ax=grid[0::2].ravel().tolist(), pad=0.01, aspect=14)
        bar.set_label("features × snapshots")
        grid[0, 0].legend(loc="upper left", fontsize=6, handlelength=1.3, labelspacing=0.2)
        grid[1, 0].legend(loc="lower right", fontsize=6, handlelength=1.6, labelspacing=0.2)
        left, right = lower.subplots(1, 2, width_ratios=[1, 1.25])
        _thresholds(left, names, judged, drawn)
        _verdicts(right, names, judged, drawn)
        style.title(left, chr(97 + last), "absent by norm, there by scaling")
        style.title(right, chr(98 + last), "where norm and scaling disagree")
        order = ["crosscoder", "panel", "measure", "test", "group", "x_low", "x_high"]
        order += ["y_low", "y_high", "low", "value", "high", "pairs"]
        numbers = pd.concat(drawn, ignore_index=True).reindex(columns=order)
        style.save(figure, numbers.astype({"pairs": "Int64"}), output, finding)


def finding(table: pd.DataFrame) -> str:
    """How often scaling finds a feature whose norm calls it absent, by dictionary."""
    own = table[
        (table["panel"] == "verdict") & (table["measure"] == "contradicted")
        & (table["test"] == "free") & (table["group"] == "all")
    ].dropna(subset=["value"])  # fmt: skip
    if own.empty:
        return "No feature is absent anywhere, so the norm has nothing to be wrong about"
    parts = [
        f"{row['value']:.0%} [{row['low']:.0%}, {row['high']:.0%}] of cases in {row['crosscoder']}"
        for row in own.to_dict("records")
    ]
    said = f"Where the norm calls a feature absent, scaling finds it in {' and '.join(parts)}"
    if len(own) > 1:
        apart = own["low"].max() > own["high"].min()
        said += "" if apart else ", shares that cannot be distinguished"
    return said


def _note(living: pd.DataFrame, table: pd.DataFrame) -> str:
    """How many features were tested, and how many of them are matched."""
    tested = table.drop_duplicates("feature")
    count = f"{len(tested):,} features"
    if living["matched_cosine"].isna().all():
        return f"{count}, one seed"
    return f"{count}, {tested['matched'].mean():.0%} matched"


def _density(
    axis: Axes, table: pd.DataFrame, verdict: pd.DataFrame, name: str, drawn: list[pd.DataFrame]
) -> Any:
    """Free scaling against normalised strength away from the peak, with medians by strength."""
    off = table[~table["peak"] & table["free"].notna()]
    x_edges, y_edges = np.linspace(0, 1, CELLS + 1), np.linspace(-0.25, TOP, CELLS + 1)
    inside = off["free"].clip(y_edges[0], y_edges[-1])
    counts = np.histogram2d(off["normalised_strength"], inside, (x_edges, y_edges))[0]
    shown = np.where(counts > 0, counts, np.nan)
    image = axis.pcolormesh(
        x_edges, y_edges, shown.T, cmap="Greys", norm=LogNorm(0.5, 2000), rasterized=True
    )
    i, j = np.nonzero(counts)
    x, y = {"x_low": x_edges[i], "x_high": x_edges[i + 1]}, {"y_low": y_edges[j]}
    cells = pd.DataFrame(x | y | {"y_high": y_edges[j + 1], "pairs": counts[i, j].astype(int)})
    drawn.append(cells.assign(crosscoder=name, panel="density", test="free", group="all"))
    axis.plot([0, 1], [0, 1], color="0.6", linewidth=0.6, zorder=1)
    for test, group, line, colour, label in SERIES:
        chosen = off if group == "all" else off[off["matched"]]
        binned = _binned(chosen["normalised_strength"], chosen[test])
        if binned.empty:
            continue
        axis.plot(*_with_gaps(binned, "value"), line, color=colour, linewidth=0.9, markersize=2.2,
                  label=label)  # fmt: skip
        drawn.append(binned.assign(crosscoder=name, panel="median", test=test, group=group))
    absent, contradicted = _threshold(verdict, "absent"), _threshold(verdict, "converse")
    axis.add_patch(
        Rectangle((0, contradicted), absent, TOP - contradicted, fill=False, edgecolor=CORNER,
                  linewidth=0.9)
    )  # fmt: skip
    axis.set_ylim(y_edges[0], y_edges[-1])
    return image


def _threshold(verdict: pd.DataFrame, measure: str) -> float:
    """The threshold at which a measure is reported."""
    return float(verdict.loc[verdict["measure"] == measure, "threshold"].iloc[0])


def _binned(x: pd.Series, y: pd.Series) -> pd.DataFrame:
    """Median and quartiles of y in bins of x that have enough pairs."""
    known = y.notna()
    number = np.minimum(np.digitize(x[known], BINS) - 1, len(BINS) - 2)
    by_bin = y[known].groupby(number)
    low, high = by_bin.quantile(0.25), by_bin.quantile(0.75)
    middle = {"low": low, "value": by_bin.median(), "high": high, "pairs": by_bin.size()}
    binned = pd.DataFrame(middle)
    binned = binned[binned["pairs"] >= LEAST]
    at = binned.index.to_numpy(int)
    return binned.assign(x_low=BINS[at], x_high=BINS[at + 1]).reset_index(drop=True)


def _with_gaps(binned: pd.DataFrame, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Centres of all bins and their values, NaN for bins with too few pairs."""
    values = np.full(len(BINS) - 1, np.nan)
    values[np.searchsorted(BINS, binned["x_low"])] = binned[column]
    return (BINS[:-1] + BINS[1:]) / 2, values


def _probes(axis: Axes, table: pd.DataFrame, name: str, drawn: list[pd.DataFrame]) -> None:
    """Probes of features and of their control tasks, against normalised strength."""
    probed = table[table["probe"].notna()]
    token = probed["current_token"] >= 0.5
    for group, (words, colour) in TASKS.items():
        chosen = probed[token if group == "token" else ~token]
        for test, line in (("probe", "o-"), ("control", "x--")):
            binned = _binned(chosen["normalised_strength"], chosen[test])
            if binned.empty:
                continue
            if test == "probe":
                band = (*_with_gaps(binned, "low"), _with_gaps(binned, "high")[1])
                axis.fill_between(*band, color=colour, alpha=0.15, linewidth=0)
            label = words if test == "probe" else f"{words}: control"
            axis.plot(*_with_gaps(binned, "value"), line, color=colour, linewidth=0.9,
                      markersize=2.4, label=label)  # fmt: skip
            drawn.append(binned.assign(crosscoder=name, panel="probe", test=test, group=group))
    axis.axhline(0.5, color="0.6", linewidth=0.6)
    axis.set_ylim(0.45, 1.01)


def _thresholds(
    axis: Axes, names: list[str], judged: list[pd.DataFrame], drawn: list[pd.DataFrame]
) -> None:
    """Share of absent pairs that free scaling contradicts, for several thresholds of presence."""
    for i, (name, verdict) in enumerate(zip(names, judged, strict=True)):
        colour = SHADES[i % len(SHADES)]
        shares = verdict[(verdict["measure"] == "contradicted") & (verdict["group"] == "all")]
        for test, line in (("free", "-"), ("scaling", "--"), ("free_permuted", ":")):
            curve = shares[shares["test"] == test].sort_values("threshold")
            if curve["value"].isna().all():
                continue
            label = f"{name} ({int(curve['pairs'].iloc[0]):,})" if test == "free" else None
            axis.plot(curve["threshold"], curve["value"], line, color=colour, label=label)
            if test != "free_permuted":
                band = (curve["threshold"], curve["low"], curve["high"])
                axis.fill_between(*band, color=colour, alpha=0.18, linewidth=0)
            drawn.append(_as_drawn(curve, name, "threshold"))
    axis.set_xlim(0, 1)
    axis.set_ylim(-0.02, 1.02)
    axis.set_xlabel("scaling / peak's scaling that says present")
    axis.set_ylabel("share of the absent")
    for line, words in (("--", "along peak direction"), (":", "free, permuted")):
        axis.plot([], [], line, color="0.4", label=words)
    axis.legend(loc="upper right", title="free (absent features × snapshots)", title_fontsize=6.5)


def _as_drawn(rows: pd.DataFrame, name: str, panel: str) -> pd.DataFrame:
    return rows[JUDGED].rename(columns={"threshold": "x_low"}).assign(crosscoder=name, panel=panel)


def _verdicts(
    axis: Axes, names: list[str], judged: list[pd.DataFrame], drawn: list[pd.DataFrame]
) -> None:
    """Both kinds of disagreement with either scaling, at the thresholds that are reported."""
    room = 0.7 / max(1, len(names) - 1)
    for i, (name, verdict) in enumerate(zip(names, judged, strict=True)):
        colour, marker = SHADES[i % len(SHADES)], MARKERS[i % len(MARKERS)]
        stated = verdict[verdict["threshold"] == _threshold(verdict, "converse")]
        by_test = stated.set_index(["measure", "test", "group"], drop=False)
        for k, (measure, test, _) in enumerate(DISAGREE):
            for group, fill, shift in (("all", colour, -0.06), ("matched", "white", 0.06)):
                row = by_test[by_test.index == (measure, test, group)]
                if row.empty or row["value"].isna().all():
                    continue
                x = k + (room * i - 0.35 if len(names) > 1 else 0) + shift
                value, low, high = (float(row[c].iloc[0]) for c in ("value", "low", "high"))
                label = name if (k, group) == (0, "all") else None
                axis.errorbar(
                    [x], [value], [[max(0, value - low)], [max(0, high - value)]], fmt=marker,
                    color=colour, markerfacecolor=fill, markersize=3.5, elinewidth=0.8,
                    label=label,
                )  # fmt: skip
                drawn.append(_as_drawn(row, name, "verdict"))
    axis.set_xticks(range(len(DISAGREE)), [words for *_, words in DISAGREE], fontsize=6)
    axis.set_ylim(-0.02, None)
    axis.set_ylabel("share of those absent, or of those present")
    axis.plot([], [], "o", color="0.3", markerfacecolor="white", markersize=3.5, label="matched")
    axis.legend(loc="best")
