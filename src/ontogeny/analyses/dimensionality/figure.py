"""How much of the residual stream features take up, snapshot by snapshot."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from ontogeny.figures import style

CLASSES = {"initialisation": "s", "emergent": "o", "transient": "D"}


def draw(features: str | Path, dimensionality: str | Path, output: str | Path) -> None:
    """Total dimensionality of the living features, a line a seed, and the mean of each class.

    Parameters
    ----------
    features : the features table; feature, alive, matched, matched_cosine.
    dimensionality : the table; seed, group, snapshot_index, step, features, share, mean.
    output : path without ending. Its CSV has panel ('share', 'mean'), seed, group, features,
        snapshot_index, step, value.

    References
    ----------
    METHOD.md 4.
    """
    living = style.read_living(features)
    columns = ["seed", "group", "snapshot_index", "step", "features", "share", "mean"]
    table = style.read(dimensionality, columns)
    seeds = list(table["seed"].unique())
    first = table[table["seed"] == seeds[0]]
    snapshots = first[first["group"] == "all"]
    numbers, steps = list(snapshots["snapshot_index"]), list(snapshots["step"])
    drawn = []
    for panel, groups in (("share", ["all", "matched"]), ("mean", list(CLASSES))):
        some = table[table["group"].isin(groups)]
        drawn.append(some[columns[:5]].assign(panel=panel, value=some[panel]))
    with style.paper():
        figure = style.new_figure(180, 110)
        grid = figure.subplots(2, 2, sharey="row")
        for column, kind in enumerate(style.KINDS):
            top, bottom = grid[:, column]
            for seed in seeds:
                some = table[(table["seed"] == seed) & (table["group"] == "all")]
                label = f"seed {seed}, {some['features'].iloc[0]:,} living features"
                line = "o-" if seed == seeds[0] else "--"
                colour = "k" if seed == seeds[0] else "0.55"
                top.plot(some["step"], some["share"], line, color=colour, label=label)
            some = first[first["group"] == "matched"]
            if some["features"].iloc[0]:
                label = f"seed {seeds[0]}, the {some['features'].iloc[0]:,} matched ones"
                top.plot(
                    some["step"], some["share"], "^-", color=style.COLOURS["matched"], label=label
                )
            for group, marker in CLASSES.items():
                _class(bottom, table, seeds, group, marker)
            for axis in (top, bottom):
                style.step_axis(axis, max(steps), kind, labels=axis is bottom)
                style.mark_snapshots(axis, numbers, steps, kind, labels=axis is top)
            style.title(top, "ab"[column], "")
            style.title(bottom, "cd"[column], "")
        grid[0, 0].set_ylabel("total dimensionality / d")
        grid[1, 0].set_ylabel("mean dimensionality\nof a feature")
        grid[0, 0].set_ylim(bottom=0)
        grid[1, 0].set_ylim(bottom=0)
        figure.suptitle(style.matched_note(living), x=0.01, ha="left")
        grid[0, 1].legend(loc="best")
        figure.legend(*grid[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        names = ["panel", "seed", "group", "features", "snapshot_index", "step", "value"]
        style.save(figure, pd.concat(drawn)[names], output)


def _class(axis: Axes, table: pd.DataFrame, seeds: list[int], group: str, marker: str) -> None:
    """A class's mean: the first seed with markers and in the legend, the others dashed."""
    for seed in seeds:
        some = table[(table["seed"] == seed) & (table["group"] == group)]
        if not some["features"].iloc[0]:
            continue
        first = seed == seeds[0]
        axis.plot(
            some["step"],
            some["mean"],
            marker + "-" if first else "--",
            color=style.COLOURS[group],
            alpha=1 if first else 0.6,
            label=f"{group} ({some['features'].iloc[0]:,})" if first else None,
        )
