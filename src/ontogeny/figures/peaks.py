"""When features are strongest: the peak snapshot index (docs/method.md 4 and 8)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from ontogeny.figures import style


def draw(features: Path, strengths: Path, output: Path) -> None:
    """Histogram of the peak snapshot index, all living features and the matched ones.

    Parameters
    ----------
    output : path without ending. Its CSV has snapshot_index, step, all, matched (counts).
    """
    living = style.read_living(features, ["peak_snapshot_index"])
    numbers, steps = style.snapshots(style.read(strengths, ["snapshot_index", "step"]))
    counts = pd.DataFrame({"snapshot_index": numbers, "step": steps})
    for group, own in (("all", living), ("matched", living[living["matched"]])):
        peaks = own["peak_snapshot_index"].value_counts()
        counts[group] = peaks.reindex(numbers, fill_value=0).to_numpy()

    with style.paper():
        figure = style.new_figure(180, 105)
        linear, log = figure.subplots(2, 1, sharex=True)
        x = np.arange(len(numbers))
        for group, width, marker, label in (
            ("all", 0.86, "D", "all living"),
            ("matched", 0.5, "o", "matched"),
        ):
            colour, some = style.COLOURS[group], counts[group].to_numpy() > 0
            linear.bar(x, counts[group], width, color=colour, label=label)
            log.plot(
                x[some],
                counts.loc[some, group],
                marker,
                markersize=4.5,
                color=colour,
                markeredgecolor="0.35" if group == "all" else colour,
                markeredgewidth=0.5,
                label=label,
            )
        log.set(yscale="log", ylim=(0.8, 1.6 * max(1, counts["all"].max())))
        log.grid(axis="y", linewidth=0.4, color="0.88")
        log.set_axisbelow(True)
        log.yaxis.set_major_formatter("{x:g}")
        for axis in (linear, log):
            axis.legend(loc="upper center", ncols=2)
        linear.set_ylabel("features")
        style.title(linear, "a", style.matched_note(living))
        style.title(log, "b", "")
        style.snapshot_axis(log, numbers, steps, 40, upright=True)
        log.set(xlim=(-0.8, len(numbers) - 0.2), ylabel="features (log axis)")
        log.set_xlabel("peak snapshot number · training step")
        style.save(figure, counts, output)
