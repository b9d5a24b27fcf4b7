"""When features are strongest: the peak snapshot index (docs/method.md 4 and 8)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from ontogeny.figures import style


def draw(features: Path, strengths: Path, output: Path) -> None:
    """Histograms of the peak snapshot index, for matched features and for the others.

    Parameters
    ----------
    output : path without ending. Its CSV has snapshot_index, step, matched, unmatched (counts).
    """
    living = style.read_living(features, ["peak_snapshot_index"])
    numbers, steps = style.snapshots(style.read(strengths, ["snapshot_index", "step"]))
    counts = pd.DataFrame({"snapshot_index": numbers, "step": steps})
    groups = style.by_match(living)
    for group, own in groups.items():
        peaks = own["peak_snapshot_index"].value_counts()
        counts[group] = peaks.reindex(numbers, fill_value=0).to_numpy()

    if style.of_one_seed(living):
        groups.pop("matched")
    with style.paper():
        figure = style.new_figure(180, 105 if len(groups) > 1 else 65)
        axes = figure.subplots(len(groups), 1, sharex=True, squeeze=False)[:, 0]
        x = np.arange(len(numbers))
        for letter, axis, (group, own) in zip("ab", axes, groups.items(), strict=False):
            colour = style.COLOURS[group if len(groups) > 1 else "matched"]
            axis.bar(x, counts[group], 0.86, color=colour)
            axis.set_ylabel("features")
            axis.locator_params(axis="y", integer=True)
            if len(groups) > 1:
                style.title(axis, letter, f"{group} ({len(own):,})")
            if own.empty:
                style.empty(axis, "no such feature")
        figure.suptitle(style.matched_note(living), x=0.01, ha="left")
        style.snapshot_axis(axes[-1], numbers, steps, 40, upright=True)
        axes[-1].set(xlim=(-0.8, len(numbers) - 0.2))
        axes[-1].set_xlabel("peak snapshot number · training step")
        style.save(figure, counts, output, finding)


def finding(table: pd.DataFrame) -> str:
    """At which snapshot most features peak, and whether that exceeds chance."""
    counts = (table["matched"] + table["unmatched"]).to_numpy()
    total, most = int(counts.sum()), int(counts.argmax())
    chance = stats.binomtest(int(counts[most]), total, 1 / len(counts), alternative="greater")
    if chance.pvalue * len(counts) > 0.05:
        return "Features peak at all snapshots about equally often"
    return (
        f"More features peak at step {table['step'].iloc[most]:,} than at any other snapshot: "
        f"{counts[most]:,} of {total:,} ({counts[most] / total:.0%})"
    )
