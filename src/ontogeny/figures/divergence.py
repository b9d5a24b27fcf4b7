"""Distance of the model's predictions from the n-gram models, snapshot by snapshot."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ontogeny.figures import style

NAMES = ("unigram", "bigram")


def draw(phases: str | Path, levels: str | Path, output: str | Path) -> None:
    """KL(unigram‖model) and KL(bigram‖model), on a log and a linear axis of steps.

    Parameters
    ----------
    phases : table with snapshot_index, step, kl_unigram, kl_bigram (nats, token means).
    levels : JSON; {unigram,bigram}_crossing_step, where the loss crosses each level, or null.
    output : path without ending. Its CSV has series, snapshot_index, step, value; series
        '{unigram,bigram}_crossing' are the vertical lines, their value empty.

    References
    ----------
    METHOD.md 5.
    """
    table = style.read(phases, ["snapshot_index", "step", *(f"kl_{n}" for n in NAMES)])
    level = style.read_json(levels, [f"{n}_crossing_step" for n in NAMES])
    drawn = [
        table[["snapshot_index", "step"]].assign(series=f"kl_{n}", value=table[f"kl_{n}"])
        for n in NAMES
    ]
    crossings = pd.DataFrame(
        {
            "series": [f"{n}_crossing" for n in NAMES],
            "step": [level[f"{n}_crossing_step"] for n in NAMES],
        }
    )
    numbers, steps = list(table["snapshot_index"]), list(table["step"])
    with style.paper():
        figure = style.new_figure(180, 72)
        axes = figure.subplots(1, 2, sharey=True)
        for letter, kind, axis in zip("ab", style.KINDS, axes, strict=True):
            for name, marker in zip(NAMES, "os", strict=True):
                axis.plot(
                    steps,
                    table[f"kl_{name}"],
                    color=style.COLOURS[name],
                    marker=marker,
                    label=f"KL({name} ‖ model)",
                )
                step = level[f"{name}_crossing_step"]
                if step is not None:
                    axis.axvline(
                        step,
                        color=style.COLOURS[name],
                        linestyle=":",
                        linewidth=1,
                        zorder=0,
                        label=f"loss crosses the {name} level: step {step:,.0f}",
                    )
            axis.set_ylim(bottom=0)
            style.step_axis(axis, max(steps), kind)
            style.mark_snapshots(axis, numbers, steps, kind)
            style.title(axis, letter, "")
        axes[0].set_ylabel("divergence (nats per token)")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        columns = ["series", "snapshot_index", "step", "value"]
        every = pd.concat([*drawn, crossings])[columns]
        style.save(figure, every.astype({"snapshot_index": "Int64"}), output)
