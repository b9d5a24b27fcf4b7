"""Explained variance and loss recovered against L0, for crosscoders and SAEs (docs/method.md 3).

The panels are those of Ge et al. 2026 (arXiv 2509.17196), figure 2.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from ontogeny.figures import style
from ontogeny.figures.fidelity import LEAST_DAMAGE

MEASURES = {"explained_variance": "explained variance", "loss_recovered": "loss recovered"}
PCA = "pca_explained_variance"
NEEDED = ["dictionary", "kind", "features", "sparsity", "seed", "snapshot_index", "step"]
NEEDED += [*MEASURES, PCA, "l0", "l0_present", "loss", "loss_ablated"]
COLOURS = style.CASES
GREY = "0.6"
EV_TICKS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.96, 0.97, 0.98, 0.99,
            0.995, 0.998, 0.999)  # fmt: skip
LOOKS = {"crosscoder": ("-", None), "sae": ("--", "white")}
"""Line style, and fill of the markers if it differs from the line's colour."""


def draw(frontier: Path, output: Path) -> None:
    """One row of panels for each snapshot with SAEs, the latest first, and one for the mean.

    Parameters
    ----------
    output : path without ending. Its CSV has panel (the training step, or 'mean' over all snapshots
        of the crosscoders), measure, series ('crosscoder', 'sae', and PCA of the sites of either),
        features, sparsity, seeds, l0, l0_present, value, low, high: means over seeds, and their
        range. The mean of loss recovered excludes snapshots at which mean-ablation costs less than
        0.05 nats.
    """
    points = style.read(frontier, NEEDED)
    numbers, steps = style.snapshots(points[points["kind"] == "sae"])
    panels, titles = {}, {}
    for number, step in zip(numbers[::-1], steps[::-1], strict=True):
        panels[str(step)] = _curves(points[points["step"] == step])
        titles[str(step)] = f"snapshot {number}, step {step:,}"
    panels["mean"] = _curves(_mean(points[points["kind"] == "crosscoder"]))
    titles["mean"] = "mean over all snapshots"
    drawn = pd.concat([t.assign(panel=name) for name, t in panels.items()], ignore_index=True)
    sizes = sorted(drawn.loc[drawn["series"] == "crosscoder", "features"].astype(int).unique())
    colours = {size: COLOURS[i % len(COLOURS)] for i, size in enumerate(sizes)}

    with style.paper():
        figure = style.new_figure(180, 18 + 62 * len(panels))
        grid = figure.subplots(len(panels), 2, squeeze=False, sharex=True)
        letters = iter("abcdefghijklmnopqrstuvwxyz")
        for row, (name, curves) in zip(grid, panels.items(), strict=True):
            for axis, (measure, label) in zip(row, MEASURES.items(), strict=True):
                shown = curves[curves["measure"] == measure]
                _panel(axis, shown, colours)
                if measure == "explained_variance":
                    _variance_axis(axis, shown)
                axis.set_ylabel(label)
                style.title(axis, next(letters, ""), titles[name])
        _l0_axis(grid[0, 0], drawn)
        for axis in grid[-1]:
            axis.set_xlabel("L0, active features per token (log axis)")
        of_size = [
            Line2D([], [], color=colour, marker="o", label=f"F = {size:,}")
            for size, colour in colours.items()
        ]
        grid[0, 1].legend(handles=of_size, loc="lower right")
        dark: dict[str, Any] = {"color": "0.2", "marker": "o"}
        grey: dict[str, Any] = {"color": GREY, "linewidth": 0.8}
        of_kind = [
            Line2D([], [], **dark, label="crosscoder of all snapshots"),
            Line2D([], [], **grey, label="PCA of all snapshots, as many coefficients"),
            Line2D([], [], **dark, ls="--", mfc="white", label="SAE of that snapshot alone"),
            Line2D([], [], **grey, ls="--", label="PCA of that snapshot alone"),
        ]
        figure.legend(handles=of_kind, loc="outside lower center", ncols=2, handlelength=3)
        style.save(figure, drawn[["panel", *drawn.columns.drop("panel")]], output, finding)


def finding(table: pd.DataFrame) -> str:
    """The most variance that a crosscoder of the sweep explains over all snapshots."""
    own = table[(table["measure"] == "explained_variance") & table["value"].notna()]
    if own.empty:
        return ""
    return f"The best dictionary of the sweep explains {own['value'].max():.0%} of the variance"


def _mean(points: pd.DataFrame) -> pd.DataFrame:
    """Each dictionary's mean over its snapshots; loss recovered only where it is meaningful."""
    meaningful = points["loss_ablated"] - points["loss"] >= LEAST_DAMAGE
    points = points.assign(loss_recovered=points["loss_recovered"].where(meaningful))
    keys = ["dictionary", "kind", "features", "sparsity", "seed"]
    return points.groupby(keys, as_index=False)[[*MEASURES, PCA, "l0", "l0_present"]].mean()


def _curves(points: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, and their range, for one panel; one row per point."""
    parts = []
    for measure, series in itertools.product(MEASURES, LOOKS):
        by_size = points[points["kind"] == series].groupby(["features", "sparsity"], as_index=False)
        part = by_size.agg(
            seeds=("seed", "nunique"),
            l0=("l0", "mean"),
            l0_present=("l0_present", "mean"),
            value=(measure, "mean"),
            low=(measure, "min"),
            high=(measure, "max"),
        )
        parts.append(part.assign(series=series, measure=measure))
    for series in LOOKS:
        own = points[points["kind"] == series].assign(l0=lambda t: t["l0"].round().clip(lower=1))
        part = own.groupby("l0", as_index=False).agg(value=(PCA, "mean"))
        parts.append(part.assign(series=f"pca_{series}", measure="explained_variance"))
    names = ["measure", "series", "features", "sparsity", "seeds", "l0", "l0_present"]
    table = pd.concat([part for part in parts if len(part)], ignore_index=True)
    table = table.reindex(columns=[*names, "value", "low", "high"])
    return table.astype({"features": "Int64", "seeds": "Int64"})


def _panel(axis: Axes, curves: pd.DataFrame, colours: dict[int, str]) -> None:
    """Crosscoders are solid lines, SAEs are dashed, PCA is grey."""
    for series, (line, face) in LOOKS.items():
        pca = curves[curves["series"] == f"pca_{series}"].sort_values("l0")
        axis.plot(pca["l0"], pca["value"], line, color=GREY, linewidth=0.8, zorder=1)
        of_series = curves[curves["series"] == series].sort_values("l0")
        for size, colour in colours.items():
            own = of_series[of_series["features"] == size]
            if own.empty:
                continue
            l0, value = own["l0"], own["value"]
            axis.plot(l0, value, f"{line}o", color=colour, markerfacecolor=face, zorder=3)
            if (own["seeds"] > 1).any():
                axis.vlines(l0, own["low"], own["high"], color=colour, zorder=2)
            if series == "crosscoder":
                axis.hlines(value, own["l0_present"], l0, color=colour, linewidth=0.7, zorder=2)


def _variance_axis(axis: Axes, curves: pd.DataFrame) -> None:
    """Scale explained variance as the log of the unexplained part, so that PCA fits in too."""
    least = min(0.999, float(curves["value"].min()))
    most = min(0.9995, float(curves["value"].max()))
    room = (np.log(1 - least) - np.log(1 - most)) * 0.06 + 0.02
    axis.set_yscale("function", functions=(_spread, _gather))
    axis.set_ylim(1 - (1 - least) * np.exp(room), 1 - (1 - most) * np.exp(-room))
    low, high = axis.get_ylim()
    shown: list[float] = []
    for tick in (t for t in EV_TICKS if low <= t <= high):
        apart = (np.log(1 - (shown[-1] if shown else -9)) - np.log(1 - tick)) / (
            np.log(1 - low) - np.log(1 - high)
        )
        if apart >= 0.07:
            shown.append(tick)
    axis.yaxis.set_major_locator(FixedLocator(shown))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _spread(value: np.ndarray) -> np.ndarray:
    return -np.log(np.maximum(1 - np.asarray(value), 1e-9))


def _gather(value: np.ndarray) -> np.ndarray:
    return 1 - np.exp(-np.asarray(value))


def _l0_axis(axis: Axes, drawn: pd.DataFrame) -> None:
    """A log axis of L0 with ticks at the powers of two; shared by all panels."""
    low = max(1e-3, float(np.nanmin(drawn[["l0", "l0_present"]])))
    high = float(drawn["l0"].max())
    axis.set_xscale("log", base=2)
    axis.set_xlim(low / 1.12, high * 1.12)
    powers = 2.0 ** np.arange(np.ceil(np.log2(low / 1.12)), np.floor(np.log2(high * 1.12)) + 1)
    axis.xaxis.set_major_locator(FixedLocator(list(powers)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
