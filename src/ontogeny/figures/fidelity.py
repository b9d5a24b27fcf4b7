"""How well the crosscoder describes every snapshot, beside its baselines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from ontogeny.figures import style
from ontogeny.files import InputError

LEAST_DAMAGE = 0.05  # nats that mean-ablation must cost for loss recovered to mean anything
MEASURES = {
    "explained_variance": "explained variance",
    "l0": "L0 (active features per token)",
    "loss_recovered": "loss recovered",
}
NEEDED = ["snapshot_index", "step", "layer", "stream", "explained_variance"]
NEEDED += ["pca_explained_variance", "l0", "l0_present", "loss", "loss_ablated", "loss_recovered"]
HOLLOW = f"mean-ablation costs < {LEAST_DAMAGE} nats"
LINES = ("-", "--", "-.", ":")
SEEDS = ("#0072B2", "#000000", "#7A7A7A", "#D55E00")
PRESENT = ("#56B4E9", "#CC79A7", "#B5B5B5", "#F0E442")


def draw(
    fidelity: Sequence[str | Path],
    seeds: Sequence[int],
    random: Sequence[str | Path],
    output: str | Path,
) -> None:
    """Explained variance, L0 and loss recovered per snapshot, on a log and a linear axis of steps.

    Parameters
    ----------
    fidelity : a table for each seed; snapshot_index, step, layer, stream, explained_variance,
        pca_explained_variance, l0, l0_present, loss, loss_ablated, loss_recovered, of the
        snapshots of one layer and stream.
    seeds : their names.
    random : the same tables for dictionaries whose decoder directions stay random; may be empty.
    output : path without ending. Its CSV has series, measure, snapshot_index, step, value,
        meaningful; the last is false, and the marker hollow, where mean-ablation costs the model
        less than 0.05 nats, so that loss recovered means nothing.

    References
    ----------
    METHOD.md 3 and 8.
    """
    mains = {f"crosscoder, seed {s}": _read(p) for s, p in zip(seeds, fidelity, strict=True)}
    several = len(random) > 1
    baselines = {
        f"random directions, {i}" if several else "random directions": _read(p)
        for i, p in enumerate(random, start=1)
    }
    series = []
    for i, (name, table) in enumerate([*mains.items(), *baselines.items()]):
        main = name in mains
        colour = SEEDS[i % len(SEEDS)] if main else style.COLOURS["random_dictionary"]
        line = LINES[(i if main else i - len(mains)) % len(LINES)]
        series += [_series(table, m, m, name, colour, line) for m in MEASURES]
        if main:
            present = f"{name}, present features"
            series.append(
                _series(table, "l0", "l0_present", present, PRESENT[i % len(PRESENT)], line)
            )
    first = next(iter(mains.values()))
    pca = "PCA, as many coefficients"
    column = "pca_explained_variance"
    green = style.COLOURS["pca"]
    series.append(_series(first, "explained_variance", column, pca, green, "-."))
    drawn = pd.concat(series, ignore_index=True)

    with style.paper():
        figure = style.new_figure(180, 165)
        grid = figure.subplots(3, 2, sharey="row")
        for row, (measure, label) in enumerate(MEASURES.items()):
            some = drawn[drawn["measure"] == measure]
            bottom, top, text = _limits(measure, some)
            for column_, kind in enumerate(style.KINDS):
                axis = grid[row, column_]
                for _, one in some.groupby("series", sort=False):
                    _line(axis, one, bottom, top)
                style.step_axis(axis, drawn["step"].max(), kind, labels=row == 2)
                if row == 0:
                    style.mark_snapshots(
                        axis, list(first["snapshot_index"]), list(first["step"]), kind
                    )
                style.title(axis, "abcdef"[2 * row + column_], "")
            grid[row, 0].set_ylabel(label)
            grid[row, 0].set_ylim(bottom, top)
            if text:
                grid[row, 0].set_title(text, loc="right", fontsize=6.5, color="0.35")
        found: dict[str, Artist] = {}
        for axis in grid[:, 0]:
            handles, labels = axis.get_legend_handles_labels()
            found |= dict(zip(labels, handles, strict=True))
        last = [*baselines, pca]
        names = [*mains, HOLLOW, *(f"{name}, present features" for name in mains), *last]
        names = [name for name in names if name in found]
        shown = [found[name] for name in names]
        figure.legend(shown, names, loc="outside upper center", ncols=3, handlelength=2.6)
        style.save(figure, drawn.drop(columns=["colour", "line"]), output)


def _read(path: str | Path) -> pd.DataFrame:
    table = style.read(path, NEEDED)
    if len(table[["layer", "stream"]].drop_duplicates()) > 1:
        raise InputError(
            f"{path}: several layers or streams; this figure shows the snapshots of one, "
            "give it the primary crosscoder's table"
        )
    return table


def _series(
    table: pd.DataFrame, measure: str, column: str, name: str, colour: str, line: str
) -> pd.DataFrame:
    damage = table["loss_ablated"] - table["loss"]
    return pd.DataFrame(
        {
            "series": name,
            "measure": measure,
            "snapshot_index": table["snapshot_index"],
            "step": table["step"],
            "value": table[column],
            "meaningful": (damage >= LEAST_DAMAGE) | (measure != "loss_recovered"),
            "colour": colour,
            "line": line,
        }
    )


def _line(axis: Axes, one: pd.DataFrame, bottom: float, top: float) -> None:
    """A curve through the meaningful points; the others are hollow, grey and unconnected."""
    solid, hollow = one[one["meaningful"]], one[~one["meaningful"]]
    colour, line = one["colour"].iloc[0], one["line"].iloc[0]
    axis.plot(
        solid["step"],
        solid["value"],
        color=colour,
        linestyle=line,
        marker="o" if line == "-" else None,
        markersize=2.2,
        label=one["series"].iloc[0],
    )
    grey = style.COLOURS["unsure"]
    hollow = hollow[hollow["value"].between(bottom, top)]
    if len(hollow):
        axis.plot(
            hollow["step"],
            hollow["value"],
            "o",
            color=grey,
            markerfacecolor="none",
            clip_on=False,
            zorder=1,
            label=HOLLOW,
        )


def _limits(measure: str, some: pd.DataFrame) -> tuple[float, float, str]:
    """Limits of the y-axis, and a note on what they hide."""
    values = some.loc[some["meaningful"], "value"].dropna()
    low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
    if measure == "l0":
        return 0.0, 1.15 * high, ""
    bottom = max(low - 0.05, -0.5) if low < 0 else 0.0
    if measure == "explained_variance":
        outside = int((some["value"] < bottom).sum())
        return bottom, 1.02, _outside(outside)
    close = max(bottom, np.floor((low - 0.02) * 20) / 20)
    top = min(high + 0.02, 1.1)
    outside = int((~some["value"].between(close, top)).sum())
    return close, top, _outside(outside)


def _outside(count: int) -> str:
    """A note on so many values that the axis leaves out."""
    return f"{count} value{'s' if count > 1 else ''} off the axis" if count else ""
