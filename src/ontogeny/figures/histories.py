"""How strong every feature is at every snapshot, by decoder norm (docs/method.md 4 and 8)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ontogeny.figures import style

EXAMPLES = 5
LEAST_DENSITY = 1e-4
COLUMNS = ["density", "peak_snapshot_index", "peak_step", "onset_step", "lifetime"]
COLUMNS += ["initialisation", "emergent", "transient"]
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
SHADES = ("#000000", *style.CASES[:4])
TITLES = {"initialisation": "initialisation, kept", "emergent": "emergent, kept"}


def draw(features: Path, strengths: Path, output: Path) -> None:
    """Heat maps of normalised strength for all living and for matched features, and example curves.

    Rows are ordered by peak snapshot index, then onset, then decreasing lifetime. Examples of a
    class are active on at least one token in 10,000, and are matched if any are. For each peak
    snapshot the best matched feature is taken, and the best five of these are shown; other features
    fill the places that are left.

    Parameters
    ----------
    output : path without ending. Its CSV has row (from 1, of the map of all features), feature,
        peak_snapshot_index, onset_step, matched, example (the class that the feature is an example
        of, or empty), snapshot_index, step, normalised_strength.
    """
    living = style.read_living(features, COLUMNS)
    table = style.read(strengths, ["feature", "snapshot_index", "step", "normalised_strength"])
    snapshots = style.snapshots(table)
    order = living.sort_values(
        ["peak_snapshot_index", "onset_step", "lifetime", "feature"],
        ascending=[True, True, False, True],
    )
    square = table.pivot(index="feature", columns="snapshot_index", values="normalised_strength")
    square = square.loc[order["feature"], snapshots[0]]
    matched = order["matched"].to_numpy()
    examples = {name: _examples(own) for name, own in style.by_class(living).items()}

    with style.paper():
        figure = style.new_figure(180, 212)
        engine = figure.get_layout_engine()
        assert isinstance(engine, ConstrainedLayoutEngine)
        engine.set(rect=(0.01, 0.006, 0.98, 0.99))
        halves = figure.add_gridspec(2, 1, height_ratios=[1.1, 1])
        maps = halves[0].subgridspec(1, 1 if style.of_one_seed(living) else 2)
        left, *right = maps.subplots(squeeze=False)[0]
        image = _map(left, square.to_numpy(), snapshots)
        left.set_ylabel("feature, ordered by peak, then onset")
        style.title(left, "a", f"all living features ({len(order):,})")
        for axis in right:
            share = ""
            if matched.any():
                _map(axis, square.to_numpy()[matched], snapshots)
                share = f" ({matched.sum():,}, {matched.mean():.0%} of the living)"
            else:
                style.empty(axis, "no feature is matched\nacross seeds")
            style.title(axis, "b", f"matched alone{share}")
        letters = "cdefgh" if right else "bcdefg"
        figure.colorbar(
            image, ax=[left, *right], label="strength / peak strength", shrink=0.7, pad=0.015
        )
        grid = halves[1].subgridspec(2, 3).subplots(sharey=True, squeeze=False)
        for column, (name, own) in enumerate(examples.items()):
            for row, kind in enumerate(style.KINDS):
                axis = grid[row, column]
                _curves(axis, square, own, snapshots[1])
                style.step_axis(axis, max(snapshots[1]), kind)
                text = "" if row else TITLES.get(name, name)
                style.title(axis, letters[3 * row + column], text)
                if own.empty:
                    style.empty(axis, "no such feature")
            if not own.empty:
                grid[1, column].legend(
                    loc="upper center",
                    bbox_to_anchor=(0.5, -0.36),
                    fontsize=6.2,
                    handlelength=2.6,
                    title="feature, peak snapshot (step)",
                    title_fontsize=6.5,
                )
        for axis in grid[:, 0]:
            axis.set_ylabel("strength / peak")
        style.save(figure, _drawn(order, square, examples, snapshots), output, finding)


def finding(table: pd.DataFrame) -> str:
    """By when half of the features have peaked, and how many end below half of their peak."""
    each = table.drop_duplicates("feature")
    steps = table.groupby("snapshot_index")["step"].first()
    half = steps[int(np.ceil(each["peak_snapshot_index"].median()))]
    end = table[table["step"] == table["step"].max()]
    faded = (end.drop_duplicates("feature")["normalised_strength"] < 0.5).mean()
    return (
        f"Half of the {len(each):,} features have peaked by step {half:,}; "
        f"{faded:.0%} end below half of their peak strength"
    )


def _examples(candidates: pd.DataFrame) -> pd.DataFrame:
    """Up to five features, chosen as `draw` describes."""
    often = candidates[candidates["density"] >= LEAST_DENSITY]
    known = often[often["matched"]]
    pool = (known if len(known) else often).sort_values(
        ["matched_cosine", "density", "feature"],
        ascending=[False, False, True],
        na_position="last",
    )
    best = pool.drop_duplicates("peak_snapshot_index").head(EXAMPLES)
    rest = pool[~pool["feature"].isin(best["feature"])].head(EXAMPLES - len(best))
    return pd.concat([best, rest]).sort_values(["peak_snapshot_index", "feature"])


def _map(axis: Axes, values: np.ndarray, snapshots: tuple[list[int], list[int]]) -> AxesImage:
    image = axis.imshow(values, aspect="auto", vmin=0, vmax=1, interpolation="nearest")
    ends = np.unique([1, len(values)])
    axis.set_yticks(ends - 1, [f"{row:,}" for row in ends])
    style.snapshot_axis(axis, *snapshots, 12)
    return image


def _curves(axis: Axes, square: pd.DataFrame, examples: pd.DataFrame, steps: list[int]) -> None:
    for i, one in enumerate(examples.to_dict("records")):
        label = f"{one['feature']}, {one['peak_snapshot_index']} ({one['peak_step']:.0f})"
        if one["matched"]:
            label += f", matched {one['matched_cosine']:.2f}"
        axis.plot(
            steps,
            square.loc[one["feature"]],
            color=SHADES[i],
            linestyle=LINES[i],
            linewidth=1.1,
            label=label,
        )
    axis.set_ylim(0, 1.04)


def _drawn(
    order: pd.DataFrame,
    square: pd.DataFrame,
    examples: dict[str, pd.DataFrame],
    snapshots: tuple[list[int], list[int]],
) -> pd.DataFrame:
    """One row per feature in the map and snapshot."""
    columns = ["feature", "peak_snapshot_index", "onset_step", "matched"]
    example = {feature: name for name, own in examples.items() for feature in own["feature"]}
    rows = order[columns].assign(example=order["feature"].map(example))
    rows.insert(0, "row", np.arange(1, len(rows) + 1))
    numbers, steps = snapshots
    return rows.loc[rows.index.repeat(len(steps))].assign(
        snapshot_index=np.tile(numbers, len(rows)),
        step=np.tile(steps, len(rows)),
        normalised_strength=square.to_numpy().ravel(),
    )
