"""How many features are found again with another seed, and how similar (docs/method.md 8)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from ontogeny.features.matching import shares
from ontogeny.figures import style
from ontogeny.settings import Settings

COLUMNS = ["other_seed", "feature", "cosine", "density"]
COLUMNS += ["peak_snapshot_index", "partner_peak_index"]
WITHOUT = ["token_cosine", "token_matched_cosine", "row_matched_cosine"]  # need no training
FREQUENT = 200  # features
NEAR = 2  # snapshots
BINS = np.linspace(0, 1, 41)


def draw(settings: Settings, matches: Path, strengths: Path, baselines: Path, output: Path) -> None:
    """Matched cosines, cosine against density, and agreement of matched features' peaks.

    Parameters
    ----------
    output : path without ending. Its CSV has other_seed, feature, cosine, density,
        peak_snapshot_index, partner_peak_index, matched, among_most_frequent, one row per point;
        and token_cosine, token_matched_cosine, row_matched_cosine for each feature.
    """
    threshold = settings.analysis.matched_cosine
    table = style.read(matches, [*COLUMNS[:2], "partner", *COLUMNS[2:]])
    snapshots = style.snapshots(style.read(strengths, ["snapshot_index", "step"]))
    without = style.read(baselines, ["feature", *WITHOUT])
    known = shares(without, table, threshold)
    table = table[table["partner"] >= 0].reset_index(drop=True)
    table = table.merge(without[["feature", *WITHOUT]], on="feature", how="left")
    table["matched"] = table["cosine"] >= threshold
    rank = table.groupby("other_seed")["density"].rank(method="first", ascending=False)
    table["among_most_frequent"] = rank <= FREQUENT
    apart = "their distance"
    with style.paper():
        figure = style.new_figure(180, 135)
        axes = list(figure.subplots(2, 2).flat)
        if table.empty:
            for axis in axes:
                style.empty(axis, "one seed: nothing to match")
        else:
            _cosines(axes[0], table, threshold, known)
            _densities(axes[1], table, threshold)
            near = _peaks(figure, axes[2], axes[3], table[table["matched"]], snapshots)
            if near is not None:
                apart = f"their distance: {near:.0%} within {NEAR} snapshots"
        texts = ["cosine to the partner in the other seed", "and how often the feature is active"]
        texts += [f"peaks of the matched features ({table['matched'].sum():,})", apart]
        for letter, axis, text in zip("abcd", axes, texts, strict=True):
            style.title(axis, letter, text)
        if len(table) and "beyond_token_means" in known:
            words = f"beyond token means {known['beyond_token_means']:.0%} come again"
            figure.suptitle(words, x=0.01, ha="left")
        columns = [*COLUMNS, "matched", "among_most_frequent", *WITHOUT]
        style.save(figure, table[columns], output, finding)


def finding(table: pd.DataFrame) -> str:
    """How many features another seed finds again, compared with token means and random rows."""
    if table.empty:
        return "With one seed nothing can be said about which features are stable"
    share = table["matched"].mean()
    names = {"token_matched_cosine": "token means", "row_matched_cosine": "random rows"}
    least = table.loc[table["matched"], "cosine"].min()
    chance = {
        text: (table[name] >= least).mean()
        for name, text in names.items()
        if table[name].notna().any()
    }
    said = f"{share:.0%} of the features are found again in another seed"
    if not chance:
        return said
    beside = " and ".join(f"{value:.0%} of {text}" for text, value in chance.items())
    most = max(chance.values())
    how = "against" if share > 2 * most else "hardly more than" if share > most else "no more than"
    return f"{said}, {how} {beside}"


def _cosines(axis: Axes, table: pd.DataFrame, threshold: float, known: dict[str, float]) -> None:
    """Cosines with the partner, and with token means and random rows, which need no training."""
    shades = ("0.72", *style.CASES[:3])
    for i, (seed, own) in enumerate(table.groupby("other_seed")):
        label = f"all, seed {seed}: {own['matched'].mean():.0%} ≥ {threshold:g}"
        colour = shades[i % len(shades)]
        style.histogram(axis, own["cosine"], BINS, fill=i == 0, color=colour, label=label)
        often = own[own["among_most_frequent"]]
        label = f"{len(often)} most frequent: {often['matched'].mean():.0%}"
        look: dict[str, Any] = {"color": colour, "linestyle": ":"} if i else {"color": "black"}
        style.histogram(axis, often["cosine"], BINS, linewidth=1, label=label, **look)
    own = table.drop_duplicates("feature")
    for column, name, key in (
        ("token_matched_cosine", "token means", "token_means"),
        ("row_matched_cosine", "random rows", "random_rows"),
    ):
        look = {"color": style.COLOURS[key], "linewidth": 1}
        style.histogram(axis, own[column].dropna(), BINS, label=f"{name}: {known[key]:.0%}", **look)
    axis.axvline(threshold, color="black", linestyle="--", linewidth=0.8)
    axis.set(xlim=(0, 1), ylim=(0, 1.35 * axis.get_ylim()[1]))
    axis.set(xlabel="cosine of stacked decoders", ylabel="features")
    axis.legend(loc="upper left")


def _densities(axis: Axes, table: pd.DataFrame, threshold: float) -> None:
    """Features that are never active on the held-out text appear at the left edge."""
    positive = table.loc[table["density"] > 0, "density"]
    least = positive.min() if len(positive) else 1e-4
    density = table["density"].clip(lower=least / 2)
    groups = {"unmatched": (~table["matched"], "0.6")}
    groups["matched"] = table["matched"], style.COLOURS["matched"]
    for name, (chosen, colour) in groups.items():
        axis.plot(
            density[chosen],
            table.loc[chosen, "cosine"],
            "o",
            markersize=2,
            markeredgewidth=0,
            alpha=0.75,
            color=colour,
            label=f"{name} ({chosen.sum():,}, {chosen.mean():.0%})",
            rasterized=True,
        )
    axis.axhline(threshold, color="black", linestyle="--", linewidth=0.8)
    least = min(0.0, table["cosine"].min()) - 0.12  # room for the legend below 0
    axis.set(xscale="log", xlabel="density (share of tokens on which it is active)")
    axis.set(ylim=(least, 1.02), ylabel="cosine of stacked decoders")
    axis.legend(loc="lower right", handletextpad=0.2, ncols=2)


def _peaks(
    figure: Figure,
    joint: Axes,
    apart: Axes,
    matched: pd.DataFrame,
    snapshots: tuple[list[int], list[int]],
) -> float | None:
    """Joint histogram of the peaks, and of their distances; returns the share that is near."""
    if matched.empty:
        for axis in (joint, apart):
            style.empty(axis, "no feature is matched across seeds")
        return None
    first, other = matched["peak_snapshot_index"], matched["partner_peak_index"]
    row = {number: i for i, number in enumerate(snapshots[0])}
    edges = np.arange(len(row) + 1) - 0.5
    counts, _, _ = np.histogram2d(first.map(row), other.map(row), [edges, edges])
    shown = np.ma.masked_equal(counts.T, 0)
    norm = LogNorm(1, max(2.0, counts.max()))
    joint.plot(edges, edges, color="0.6", linewidth=0.6, zorder=0)
    image = joint.pcolormesh(edges, edges, shown, norm=norm, cmap="viridis_r")
    style.snapshot_axis(joint, *snapshots, 9)
    style.snapshot_axis(joint, *snapshots, 12, "y")
    joint.set(xlabel="peak in first seed: snapshot number, step", ylabel="peak in other seed")
    bar = figure.colorbar(image, ax=joint, pad=0.01, aspect=35, format="{x:g}")
    bar.ax.set_title("features", fontsize=6.5)
    bar.ax.tick_params(labelsize=6)

    distance = other - first
    most = max(NEAR, int(distance.abs().max()))
    edges = np.arange(-most - 0.5, most + 1)
    counts = style.histogram(apart, distance, edges, fill=True, color=style.COLOURS["matched"])
    apart.axvspan(-NEAR - 0.5, NEAR + 0.5, color="0.9", zorder=0, linewidth=0)
    apart.set(xlabel="peak in other seed − peak in first (snapshots)", ylabel="features (log axis)")
    apart.set(yscale="log", ylim=(0.7, 1.6 * counts.max()))
    apart.yaxis.set_major_formatter("{x:g}")
    return float((distance.abs() <= NEAR).mean())
