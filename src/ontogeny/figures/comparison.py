"""What two snapshots or two models share: relative decoder norms, and agreement of directions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ontogeny.figures import style

GROUPS = {
    "only_first": "only at step {first}",
    "shared": "at both",
    "only_last": "only at step {last}",
    "between": "between",
}
NORM_BINS, COSINE_BINS = list(np.linspace(0, 1, 41)), list(np.linspace(-1, 1, 41))


def draw(features: Path, comparison: Path, output: Path) -> None:
    """Histograms of the relative decoder norm, and of the cosines of features in both snapshots.

    Parameters
    ----------
    features, comparison : tables of a crosscoder.
    output : path without ending. Its CSV is the comparison table.
    """
    living = style.read_living(features)
    columns = ["feature", "first_step", "last_step", "relative_norm", "cosine", "group", "matched"]
    table = style.read(comparison, columns)
    ends = {"first": "?", "last": "?"}
    if len(table):
        ends = {end: f"{table[f'{end}_step'].iloc[0]:,}" for end in ends}
    with style.paper():
        figure = style.new_figure(180, 80)
        axes = figure.subplots(1, 2, width_ratios=[3, 2])
        for name, text in GROUPS.items():
            own = table.loc[table["group"] == name, "relative_norm"]
            label = f"{text.format(**ends)} ({len(own):,})"
            axes[0].hist(own, NORM_BINS, color=style.COLOURS[name], label=label)
        axes[0].set(xlim=(0, 1), ylabel="features")
        axes[0].set_xlabel(
            f"relative decoder norm: 0 only at step {ends['first']}, 1 only at {ends['last']}"
        )
        style.title(axes[0], "a", "in which of the two a feature is")
        _cosines(axes[1], table.loc[table["group"] == "shared", "cosine"].to_numpy())
        style.legend(figure, axes[:1], loc="outside lower center", ncols=4)
        figure.suptitle(style.matched_note(living), x=0.01, ha="left")
        style.save(figure, table, output, finding)


def finding(table: pd.DataFrame) -> str:
    """How many features both snapshots share, and whether their directions agree."""
    if table.empty:
        return ""
    shared = table[table["group"] == "shared"]
    said = (
        f"{len(shared):,} of {len(table):,} features are "
        f"present at both snapshots ({len(shared) / len(table):.0%})"
    )
    if shared.empty:
        return said
    agree = (shared["cosine"] >= 0.7).mean()
    return f"{said}; the directions agree (cosine of at least 0.7) in {agree:.0%} of these"


def _cosines(axis: Axes, cosines: np.ndarray) -> None:
    style.title(axis, "b", "features at both: do directions agree?")
    if not len(cosines):
        style.empty(axis, "no feature is at both")
        return
    axis.hist(cosines, COSINE_BINS, color=style.COLOURS["shared"])
    axis.set(
        xlim=(-1, 1),
        xticks=[-1, -0.5, 0, 0.5, 1],
        ylabel="features",
        xlabel="cosine between the two decoder directions",
    )
