"""How the language model learned, without any features (docs/method.md 5 and 8)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from ontogeny.figures import style

PANELS = {
    "loss": (2.4, "loss (nats per token)"),
    "rate": (1, "learning rate"),
    "gain": (1.3, "copying gain (nats)"),
}
"""Height and label of each panel."""
SERIES = {
    "loss": ("loss", "batch", "loss of the batch"),
    "held_out_loss": ("loss", "held_out", "loss on held-out text"),
    "learning_rate": ("rate", "learning_rate", "learning rate"),
    "copying_gain": ("gain", "copying", "repeated text, half a block apart"),
    "copying_gain_near": ("gain", "copying_near", "3/8 of a block apart"),
    "random_gain": ("gain", "random_tokens", "random tokens, half a block apart"),
}
"""Panel, colour and label of each series."""
LEVELS = ("unigram", "bigram")


def draw(log: Path | None, phases: Path, levels: Path, losses: Path, output: Path) -> None:
    """Loss with n-gram levels, learning rate and copying gains, on a log and a linear axis.

    For a model that was not trained here, only the loss at the snapshots is known and drawn.

    Parameters
    ----------
    log : None if the model was not trained here. Its held-out loss and gains exist only at some
        steps.
    losses : which snapshots have a loss that is out of place; these are marked.
    output : path without ending. Its CSV has panel, series, step, value; for panel 'crossing',
        step is where the loss crosses the level `value`; for panel 'snapshot', value is an index;
        for panel 'out_of_place', value is the loss of such a snapshot.
    """
    if log is None:
        series = {"held_out_loss": SERIES["held_out_loss"]}
        table = style.read(phases, ["step", "loss"]).rename(columns={"loss": "held_out_loss"})
    else:
        series = SERIES
        table = style.read(log, ["step", *series])
    level = style.read_json(
        levels, [f"{n}_{what}" for n in LEVELS for what in ("cross_entropy", "crossing_step")]
    )
    snapshots = style.read(phases, ["snapshot_index", "step"])
    long = table.melt("step", list(series), "series").dropna(subset=["value"])
    long["panel"] = long["series"].map({name: panel for name, (panel, *_) in series.items()})
    crossings = pd.DataFrame(
        {
            "panel": "crossing",
            "series": LEVELS,
            "step": [level[f"{n}_crossing_step"] for n in LEVELS],
            "value": [level[f"{n}_cross_entropy"] for n in LEVELS],
        }
    )
    marks = snapshots.assign(
        panel="snapshot", series="snapshot_index", value=snapshots["snapshot_index"]
    )
    apart = _out_of_place(style.read(losses, ["step", "out_of_place"]), phases)
    panels = list(dict.fromkeys(panel for panel, *_ in series.values()))
    heights = [PANELS[panel][0] for panel in panels]
    with style.paper():
        figure = style.new_figure(180, 20 + 29 * sum(heights))
        grid = figure.subplots(len(panels), 2, sharey="row", height_ratios=heights, squeeze=False)
        for row, panel in zip(grid, panels, strict=True):
            row[0].set_ylabel(PANELS[panel][1])
            for axis in row:
                for name, (where, colour, label) in series.items():
                    if where == panel:
                        known = table[table[name].notna()]
                        axis.plot(
                            known["step"],
                            known[name],
                            color=style.COLOURS[colour],
                            marker="o" if name == "held_out_loss" or panel == "gain" else None,
                            markersize=2,
                            linewidth=0.8 if name == "loss" else 1.2,
                            label=label,
                        )
                if panel == "loss":
                    _levels(axis, crossings)
                    _mark(axis, apart)
                if panel == "gain":
                    axis.axhline(0, color="0.6", linewidth=0.6, zorder=0)
        style.over_training(grid, table["step"].max(), style.snapshots(snapshots))
        grid[0, 1].legend(*grid[0, 0].get_legend_handles_labels(), loc="upper right")
        if "gain" in panels:
            gains = grid[2, 0].get_legend_handles_labels()
            figure.legend(*gains, loc="outside lower center", ncols=3)
        drawn = pd.concat([long, crossings, marks, *([apart] if len(apart) else [])])
        style.save(figure, drawn[["panel", "series", "step", "value"]], output, finding)


def finding(table: pd.DataFrame) -> str:
    """How the held-out loss falls, when it passes the n-gram levels, and whether copying helps."""
    loss = table[table["series"] == "held_out_loss"].sort_values("step")["value"].to_numpy()
    said = (
        f"The held-out loss {'falls' if loss[-1] < loss[0] else 'does not fall: it goes'} from "
        f"{loss[0]:.2f} to {loss[-1]:.2f} nats"
    )
    crossed = table[table["panel"] == "crossing"].set_index("series")["step"].dropna()
    parts = [
        f"below the {name} level at step {crossed[name]:,.0f}"
        for name in ("unigram", "bigram")
        if name in crossed
    ]
    gain = table[table["series"] == "copying_gain"].sort_values("step")["value"]
    copied = ""
    if len(gain):
        much = f"{gain.iloc[-1]:.2f} nats" if gain.iloc[-1] >= 0.005 else "nothing"
        copied = f"; a repeated passage gains {much} at the end"
    return ", ".join([said, *parts]) + copied


def _levels(axis: Axes, crossings: pd.DataFrame) -> None:
    """Mark the n-gram levels and the steps at which the held-out loss crosses them."""
    for name, step, value in crossings[["series", "step", "value"]].itertuples(index=False):
        colour = style.COLOURS[name]
        crossed = pd.notna(step)
        text = f"{name} cross-entropy {value:.2f}, "
        text += f"crossed at step {step:,.0f}" if crossed else "not crossed"
        axis.axhline(value, color=colour, linewidth=0.9, linestyle="--", zorder=1, label=text)
        if crossed:
            axis.axvline(step, color=colour, linewidth=0.8, linestyle=":", zorder=1)


def _out_of_place(losses: pd.DataFrame, phases: Path) -> pd.DataFrame:
    """The held-out loss of the snapshots that are out of place."""
    apart = losses.loc[losses["out_of_place"], ["step"]]
    found = apart.merge(style.read(phases, ["step", "loss"]), on="step")
    return found.rename(columns={"loss": "value"}).assign(
        panel="out_of_place", series="held_out_loss"
    )


def _mark(axis: Axes, apart: pd.DataFrame) -> None:
    """Ring the snapshots whose loss is far from those of their neighbours."""
    if len(apart):
        axis.plot(
            apart["step"],
            apart["value"],
            linestyle="none",
            marker="o",
            markersize=9,
            markerfacecolor="none",
            markeredgecolor=style.COLOURS["doubtful"],
            label="unusual: may hold another step's weights",
        )
