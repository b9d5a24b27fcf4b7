"""How much of the residual stream features occupy, snapshot by snapshot (docs/method.md 4)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from ontogeny.figures import style

CLASSES = {"initialisation": "s", "emergent": "o", "transient": "D"}


def draw(features: Path, dimensionality: Path, output: Path) -> None:
    """Total dimensionality of the living features, one line per seed, and the mean of each class.

    Parameters
    ----------
    output : path without ending. Its CSV has panel ('share', 'mean'), seed, group, features,
        snapshot_index, step, value.
    """
    living = style.read_living(features)
    columns = ["seed", "group", "features", "snapshot_index", "step"]
    table = style.read(dimensionality, [*columns, "share", "mean"])
    drawn = []
    for panel, groups in (("share", ["all", "matched"]), ("mean", list(CLASSES))):
        own = table[table["group"].isin(groups)]
        drawn.append(own[columns].assign(panel=panel, value=own[panel]))
    with style.paper():
        figure = style.new_figure(180, 110)
        grid = figure.subplots(2, 2, sharey="row")
        for top, bottom in grid.T:
            _curves(top, table, "all", "share", "o", "k", "0.55")
            colour = style.COLOURS["matched"]
            _curves(top, table, "matched", "share", "^", colour, colour)
            for group, marker in CLASSES.items():
                colour = style.COLOURS[group]
                _curves(bottom, table, group, "mean", marker, colour, colour)
        snapshots = style.snapshots(table)
        style.over_training(grid, table["step"].max(), snapshots)
        for axis, kind in zip(grid[1], style.KINDS, strict=True):
            style.mark_snapshots(axis, *snapshots, kind, labels=False)
        grid[0, 0].set_ylabel("total dimensionality / d")
        grid[1, 0].set_ylabel("mean dimensionality\nof a feature")
        for axis in grid[:, 0]:
            axis.set_ylim(bottom=0)
        figure.suptitle(style.matched_note(living), x=0.01, ha="left")
        grid[0, 1].legend(loc="best")
        figure.legend(*grid[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        style.save(figure, pd.concat(drawn)[["panel", *columns, "value"]], output, finding)


def finding(table: pd.DataFrame) -> str:
    """Whether the features occupy more dimensions at the end than at the start."""
    own = table[(table["panel"] == "share") & (table["group"] == "all")].sort_values("step")
    first, last = (
        own[own["step"] == step]["value"] for step in (own["step"].min(), own["step"].max())
    )
    apart = (first.min() - last.max()) * (first.max() - last.min()) > 0  # all seeds agree
    change = "more" if last.mean() > first.mean() else "fewer"
    how = change if apart else "neither more nor fewer"
    ends = f"{first.mean():.2f} d at the start, {last.mean():.2f} d at the end"
    return f"Features occupy {how} dimensions as training goes on: {ends}"


def _curves(
    axis: Axes, table: pd.DataFrame, group: str, value: str, marker: str, colour: str, others: str
) -> None:
    """One group, a line per seed: the first with markers, the others dashed and pale if classes."""
    for i, (seed, own) in enumerate(table[table["group"] == group].groupby("seed", sort=False)):
        count = own["features"].iloc[0]
        if not count:
            continue
        labels = {
            "all": f"seed {seed}, {count:,} living features",
            "matched": f"seed {seed}, the {count:,} matched ones",
        }
        of_class = None if i else f"{group} ({count:,})"
        axis.plot(
            own["step"],
            own[value],
            "--" if i else f"{marker}-",
            color=others if i else colour,
            alpha=0.6 if i and group in CLASSES else 1,
            label=labels.get(group, of_class),
        )
