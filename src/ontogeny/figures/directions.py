"""Cosines between features' directions at all pairs of snapshots (docs/method.md 4)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from ontogeny.figures import style

GROUPS = {"all": "all living features", "matched": "matched features alone"}

KEPT = 0.7  # mean cosine from which directions count as the same


def draw(features: Path, directions: Path, turning_point: Path, output: Path) -> None:
    """Matrix of mean cosines between decoder directions, for all and for the matched features.

    Parameters
    ----------
    output : path without ending. Its CSV is the directions table without other columns.
    """
    living = style.read_living(features)
    columns = ["group", "snapshot_index", "other_index", "step", "other_step", "cosine"]
    table = style.read(directions, columns)[columns]
    turning = style.read_json(turning_point, ["all"])
    numbers, steps = style.snapshots(table)
    row = {float(step): i for i, step in enumerate(steps)}
    with style.paper():
        figure = style.new_figure(180, 95)
        axes = figure.subplots(1, 2)
        image = None
        for letter, axis, (group, label) in zip("ab", axes, GROUPS.items(), strict=True):
            own = table[table["group"] == group]
            if own.empty or group not in turning:
                style.title(axis, letter, label)
                style.empty(axis, "no feature is matched across seeds")
                continue
            square = own.pivot(index="snapshot_index", columns="other_index", values="cosine")
            about = turning[group]
            image = _matrix(axis, square.to_numpy())
            style.snapshot_axis(axis, numbers, steps, 9)
            style.snapshot_axis(axis, numbers, steps, 16, "y")
            split = (row[about["snapshot_before"]] + row[about["snapshot_after"]]) / 2
            _split(axis, split, row[about["low"]], row[about["high"]])
            style.title(axis, letter, f"{label} ({about['features']:,})")
            hatched = own["cosine"].isna().any()
            axis.set_xlabel(
                "snapshot number, below it the training step\n\n"
                f"turning point: step {about['step']:,.0f} "
                f"(95% interval {about['low']:,.0f} to {about['high']:,.0f})\n"
                f"mean cosine {about['within']:.2f} within the blocks, "
                f"{about['between']:.2f} between them"
                + ("\nhatched: no feature is present at both" if hatched else "")
            )
        axes[1].set_ylabel("")
        if image is not None:
            figure.colorbar(image, ax=axes, shrink=0.6, label="mean cosine", pad=0.015)
        figure.suptitle(style.matched_note(living), x=0.01, ha="left")
        style.save(figure, table, output, finding)


def finding(table: pd.DataFrame) -> str:
    """Whether the features' directions at the first snapshot are still those of the last."""
    of_all = table[table["group"] == "all"]
    last = of_all[of_all["step"] == of_all["step"].max()].set_index("other_step")["cosine"]
    first = last.get(of_all["step"].min(), np.nan)
    if not np.isfinite(first):
        return "Directions of the first and the last snapshot cannot be compared"
    how = (
        "are new"
        if first < 0.3
        else "are still those of the first snapshot"
        if first >= KEPT
        else "have turned in part"
    )
    away = last.index[last < KEPT]
    since = last.index[last.index > away.max()].min() if len(away) else last.index.min()
    return (
        f"By the last snapshot the directions {how} (mean cosine with the first {first:z.2f}); "
        f"from step {since:,} on they are within a cosine of {KEPT:g} of the last"
    )


def _matrix(axis: Axes, cosines: np.ndarray) -> AxesImage:
    """White is orthogonal; cells without a value are hatched grey."""
    n = len(cosines)
    if np.isnan(cosines).any():
        look: dict[str, Any] = {"facecolor": "0.88", "edgecolor": "0.6", "hatch": "//////"}
        axis.add_patch(Rectangle((-0.5, -0.5), n, n, linewidth=0, **look))
    image = axis.imshow(
        np.ma.masked_invalid(cosines),
        aspect="auto",
        cmap="RdBu",
        vmin=-1,
        vmax=1,
        origin="lower",
        interpolation="nearest",
        zorder=2,
    )
    axis.spines[["top", "right"]].set_visible(True)
    return image


def _split(axis: Axes, split: float, low: float, high: float) -> None:
    """The turning point as a full line, the bounds of its interval dashed."""
    for line in (axis.axvline, axis.axhline):
        line(split, color="black", linewidth=1, zorder=3)
        for bound in (low, high):
            line(bound, color="black", linewidth=0.6, linestyle=(0, (3, 3)), zorder=3)
