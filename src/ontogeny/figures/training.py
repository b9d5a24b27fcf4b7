"""Training overview: how the language model learnt, before any feature is looked at."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from ontogeny.figures import style

SERIES = {
    "loss": {"loss": "loss of the batch", "held_out_loss": "loss on held-out text"},
    "rate": {"learning_rate": "learning rate"},
    "gain": {
        "copying_gain": "repeated text, half a block apart",
        "copying_gain_near": "3/8 of a block apart",
        "random_gain": "random tokens, half a block apart",
    },
}
COLOUR = {
    "loss": "batch",
    "held_out_loss": "held_out",
    "learning_rate": "learning_rate",
    "copying_gain": "copying",
    "copying_gain_near": "copying_near",
    "random_gain": "random_tokens",
}


def draw(
    log: str | Path | None, phases: str | Path, levels: str | Path, output: str | Path
) -> None:
    """Loss beside the n-gram levels, learning rate and copying gains, on a log and a linear axis.

    Of a model that was not trained here the loss at the snapshots alone is known, and drawn.

    Parameters
    ----------
    log : the training log; step, loss, held_out_loss, learning_rate, and the gains copying_gain,
        copying_gain_near, random_gain. held_out_loss and the gains are there at some steps
        only. None where the model was not trained here.
    phases : table of the snapshots, which the ticks on top mark; snapshot_index, step, loss.
    levels : JSON; {unigram,bigram}_cross_entropy in nats and _crossing_step (null if never).
    output : path without ending. Its CSV has panel, series, step, value; for panel 'crossing',
        step is where the loss crosses the level `value`; for panel 'snapshot', value is a number.

    References
    ----------
    METHOD.md 5 and 8.
    """
    names = ["unigram", "bigram"]
    series = SERIES
    if log is None:
        series = {"loss": {"held_out_loss": SERIES["loss"]["held_out_loss"]}}
        table = style.read(phases, ["step", "loss"]).rename(columns={"loss": "held_out_loss"})
    else:
        table = style.read(log, ["step", *(c for panel in series.values() for c in panel)])
    level = style.read_json(
        levels, [f"{n}_{what}" for n in names for what in ("cross_entropy", "crossing_step")]
    )
    snapshots = style.read(phases, ["snapshot_index", "step"])
    last = table["step"].max()
    drawn = [
        table.loc[table[column].notna(), ["step", column]]
        .rename(columns={column: "value"})
        .assign(panel=panel, series=column)
        for panel, columns in series.items()
        for column in columns
    ]
    crossings = pd.DataFrame(
        {
            "panel": "crossing",
            "series": names,
            "step": [level[f"{n}_crossing_step"] for n in names],
            "value": [level[f"{n}_cross_entropy"] for n in names],
        }
    )
    marks = pd.DataFrame(
        {
            "panel": "snapshot",
            "series": "snapshot_index",
            "step": snapshots["step"],
            "value": snapshots["snapshot_index"],
        }
    )
    with style.paper():
        heights = [2.4, 1, 1.3][: len(series)]
        figure = style.new_figure(180, 20 + 29 * sum(heights))
        grid = figure.subplots(len(series), 2, sharey="row", height_ratios=heights, squeeze=False)
        for column, kind in enumerate(style.KINDS):
            for row, panel in enumerate(series):
                axis = grid[row, column]
                for name, label in series[panel].items():
                    there = table[table[name].notna()]
                    dots = name in ("held_out_loss", *SERIES["gain"])
                    axis.plot(
                        there["step"],
                        there[name],
                        color=style.COLOURS[COLOUR[name]],
                        marker="o" if dots else None,
                        markersize=2,
                        linewidth=0.8 if name == "loss" else 1.2,
                        label=label,
                    )
                style.step_axis(axis, last, kind, labels=row == len(series) - 1)
            _levels(grid[0, column], crossings)
            numbers, steps = list(snapshots["snapshot_index"]), list(snapshots["step"])
            style.mark_snapshots(grid[0, column], numbers, steps, kind)
            for letter, axis in zip("ace" if column == 0 else "bdf", grid[:, column], strict=False):
                style.title(axis, letter, "")
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
        grid[0, 0].set_ylabel("loss (nats per token)")
        if "gain" in series:
            for axis in grid[2]:
                axis.axhline(0, color="0.6", linewidth=0.6, zorder=0)
            gains = grid[2, 0].get_legend_handles_labels()
            figure.legend(*gains, loc="outside lower center", ncols=3)
            grid[1, 0].set_ylabel("learning rate")
            grid[2, 0].set_ylabel("copying gain (nats)")
        style.save(
            figure,
            pd.concat([*drawn, crossings, marks])[["panel", "series", "step", "value"]],
            output,
        )


def _levels(axis: Axes, crossings: pd.DataFrame) -> None:
    """Mark the n-gram levels and the steps at which the held-out loss crosses them."""
    for name, step, value in zip(
        crossings["series"], crossings["step"], crossings["value"], strict=True
    ):
        colour = style.COLOURS[name]
        crossed = pd.notna(step)
        text = f"{name} cross-entropy {value:.2f}, "
        text += f"crossed at step {step:,.0f}" if crossed else "not crossed"
        axis.axhline(value, color=colour, linewidth=0.9, linestyle="--", zorder=1, label=text)
        if crossed:
            axis.axvline(step, color=colour, linewidth=0.8, linestyle=":", zorder=1)
