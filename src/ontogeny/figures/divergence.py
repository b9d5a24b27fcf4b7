"""Distance of the model from the n-gram models, snapshot by snapshot (docs/method.md 5)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ontogeny.figures import style

MARKERS = {"unigram": "o", "bigram": "s"}


def draw(phases: Path, levels: Path, output: Path) -> None:
    """KL(unigram‖model) and KL(bigram‖model), on a log and a linear axis of steps.

    Parameters
    ----------
    output : path without ending. Its CSV has series, snapshot_index, step, value; series
        '{unigram,bigram}_crossing' are the vertical lines, which have no value.
    """
    columns = [f"kl_{name}" for name in MARKERS]
    table = style.read(phases, ["snapshot_index", "step", *columns])
    level = style.read_json(levels, [f"{name}_crossing_step" for name in MARKERS])
    crossings = pd.DataFrame(
        {
            "series": [f"{name}_crossing" for name in MARKERS],
            "step": [level[f"{name}_crossing_step"] for name in MARKERS],
        }
    )
    with style.paper():
        figure = style.new_figure(180, 72)
        grid = figure.subplots(1, 2, sharey=True, squeeze=False)
        for axis in grid[0]:
            for name, marker in MARKERS.items():
                colour, step = style.COLOURS[name], level[f"{name}_crossing_step"]
                label = f"KL({name} ‖ model)"
                axis.plot(
                    table["step"], table[f"kl_{name}"], color=colour, marker=marker, label=label
                )
                if step is not None:
                    label = f"loss crosses the {name} level: step {step:,.0f}"
                    axis.axvline(
                        step, color=colour, linestyle=":", linewidth=1, zorder=0, label=label
                    )
            axis.set_ylim(bottom=0)
        style.over_training(grid, table["step"].max(), style.snapshots(table))
        grid[0, 0].set_ylabel("divergence (nats per token)")
        handles = grid[0, 0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=2)
        long = table.melt(["snapshot_index", "step"], columns, "series")
        drawn = pd.concat([long, crossings])[["series", "snapshot_index", "step", "value"]]
        style.save(figure, drawn.astype({"snapshot_index": "Int64"}), output, finding)


def finding(table: pd.DataFrame) -> str:
    """When the model is closest to the unigram and to the bigram distribution."""
    parts = []
    for name in ("unigram", "bigram"):
        own = table[table["series"] == f"kl_{name}"].sort_values("step")
        if own.empty:
            continue
        nearest = own.iloc[int(own["value"].argmin())]
        leaves = "" if nearest["step"] < own["step"].max() else ", and still approaching it"
        parts.append(
            f"to the {name} model at step {nearest['step']:,.0f} "
            f"({nearest['value']:.2f} nats{leaves})"
        )
    return f"The model is closest {' and '.join(parts)}" if parts else ""
