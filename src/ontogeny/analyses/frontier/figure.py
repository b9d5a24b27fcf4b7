"""Explained variance and loss recovered against L0: crosscoders beside SAEs of single snapshots."""

from __future__ import annotations

from pathlib import Path

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
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "0.6"
EV_TICKS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.96, 0.97, 0.98, 0.99,
            0.995, 0.998, 0.999)  # fmt: skip


def draw(table: str | Path, output: str | Path) -> None:
    """A row of panels for each snapshot that has SAEs, the latest first, and one for the mean.

    Parameters
    ----------
    table : the frontier's points; dictionary, kind ('crosscoder', 'sae'), features, sparsity, seed,
        snapshot_index, step, explained_variance, pca_explained_variance, loss_recovered, l0,
        l0_present, loss, loss_ablated.
    output : path without ending. Its CSV has panel (the training step, or 'mean' over all snapshots
        of the crosscoders), measure, series ('crosscoder', 'sae', and PCA of the sites of either),
        features, sparsity, seeds, l0, l0_present, value, low, high: means over seeds, and their
        range. The mean of loss recovered leaves out snapshots where mean-ablation costs less than
        0.05 nats.

    References
    ----------
    METHOD.md 3; the paper's figure 2.
    """
    points = style.read(table, NEEDED)
    saes = points[points["kind"] == "sae"]
    snapshots = saes[["snapshot_index", "step"]].drop_duplicates().sort_values("step")
    steps = [int(step) for step in snapshots["step"]][::-1]
    panels = {str(step): _curves(points[points["step"] == step]) for step in steps}
    panels["mean"] = _curves(_mean(points[points["kind"] == "crosscoder"]))
    drawn = pd.concat([t.assign(panel=name) for name, t in panels.items()], ignore_index=True)
    sizes = sorted(drawn.loc[drawn["series"] == "crosscoder", "features"].astype(int).unique())
    colours = {size: COLOURS[i % len(COLOURS)] for i, size in enumerate(sizes)}
    numbers = dict(zip(snapshots["step"], snapshots["snapshot_index"], strict=True))

    with style.paper():
        figure = style.new_figure(180, 18 + 62 * len(panels))
        grid = figure.subplots(len(panels), 2, squeeze=False, sharex=True)
        letters = iter("abcdefghijklmnopqrstuvwxyz")
        for row, name in zip(grid, panels, strict=True):
            if name == "mean":
                said = "mean over all snapshots"
            else:
                said = f"snapshot {numbers[int(name)]}, step {int(name):,}"
            for axis, (measure, label) in zip(row, MEASURES.items(), strict=True):
                one = drawn[(drawn["panel"] == name) & (drawn["measure"] == measure)]
                _panel(axis, one, colours)
                if measure == "explained_variance":
                    _variance_axis(axis, one)
                axis.set_ylabel(label)
                style.title(axis, next(letters, ""), said)
        _l0_axis(grid[0, 0], drawn)
        for axis in grid[-1]:
            axis.set_xlabel("L0, active features a token (log axis)")
        of_size = [
            Line2D([], [], color=colour, marker="o", label=f"F = {size:,}")
            for size, colour in colours.items()
        ]
        grid[0, 1].legend(handles=of_size, loc="lower right")
        of_kind = [
            Line2D([], [], color="0.2", marker="o", label="crosscoder of all snapshots"),
            Line2D([], [], color=GREY, lw=0.8, label="PCA of all snapshots, as many coefficients"),
            Line2D([], [], color="0.2", marker="o", ls="--", mfc="white",
                   label="SAE of that snapshot alone"),
            Line2D([], [], color=GREY, lw=0.8, ls="--", label="PCA of that snapshot alone"),
        ]  # fmt: skip
        figure.legend(handles=of_kind, loc="outside lower center", ncols=2, handlelength=3)
        style.save(figure, drawn[["panel", *drawn.columns.drop("panel")]], output)


def _mean(points: pd.DataFrame) -> pd.DataFrame:
    """Each dictionary's mean over its snapshots, loss recovered where it means something."""
    meaningful = points["loss_ablated"] - points["loss"] >= LEAST_DAMAGE
    points = points.assign(loss_recovered=points["loss_recovered"].where(meaningful))
    keys = ["dictionary", "kind", "features", "sparsity", "seed"]
    return points.groupby(keys, as_index=False)[[*MEASURES, PCA, "l0", "l0_present"]].mean()


def _curves(points: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, and their range, of what a panel shows; a row a point."""
    found = []
    for series, measure in (
        ("crosscoder", "explained_variance"),
        ("sae", "explained_variance"),
        ("crosscoder", "loss_recovered"),
        ("sae", "loss_recovered"),
    ):
        some = points[points["kind"] == series]
        by = some.groupby(["features", "sparsity"], as_index=False)
        one = by.agg(
            seeds=("seed", "nunique"),
            l0=("l0", "mean"),
            l0_present=("l0_present", "mean"),
            value=(measure, "mean"),
            low=(measure, "min"),
            high=(measure, "max"),
        )
        found.append(one.assign(series=series, measure=measure))
    for series in ("crosscoder", "sae"):
        some = points[points["kind"] == series].assign(l0=lambda t: t["l0"].round().clip(lower=1))
        one = some.groupby("l0", as_index=False).agg(value=(PCA, "mean"))
        found.append(one.assign(series=f"pca_{series}", measure="explained_variance"))
    names = ["measure", "series", "features", "sparsity", "seeds", "l0", "l0_present"]
    table = pd.concat([t for t in found if len(t)], ignore_index=True)
    table = table.reindex(columns=[*names, "value", "low", "high"])
    return table.astype({"features": "Int64", "seeds": "Int64"})


def _panel(axis: Axes, curves: pd.DataFrame, colours: dict[int, str]) -> None:
    """Crosscoders solid, SAEs dashed, PCA grey."""
    for series, line in (("pca_crosscoder", "-"), ("pca_sae", "--")):
        some = curves[curves["series"] == series].sort_values("l0")
        axis.plot(some["l0"], some["value"], line, color=GREY, linewidth=0.8, zorder=1)
    for series, line in (("crosscoder", "-"), ("sae", "--")):
        for size, colour in colours.items():
            chosen = (curves["series"] == series) & (curves["features"] == size)
            some = curves[chosen].sort_values("l0")
            if some.empty:
                continue
            face = colour if series == "crosscoder" else "white"
            axis.plot(
                some["l0"], some["value"], f"{line}o", color=colour, markerfacecolor=face, zorder=3
            )
            if (some["seeds"] > 1).any():
                axis.vlines(some["l0"], some["low"], some["high"], color=colour, zorder=2)
            if series == "crosscoder":
                axis.hlines(
                    some["value"], some["l0_present"], some["l0"], color=colour, linewidth=0.7,
                    zorder=2,
                )  # fmt: skip


def _variance_axis(axis: Axes, curves: pd.DataFrame) -> None:
    """Spread explained variance as the log of what is left, so that PCA fits in too."""
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
