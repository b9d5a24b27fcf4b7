"""Decoder-norm histories: how strong every feature is at every snapshot."""

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
SHADES = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7")


def draw(features: str | Path, strengths: str | Path, output: str | Path) -> None:
    """Heat maps of normalised strength, all living and matched features, and example curves.

    Rows are ordered by peak snapshot index, then onset, then falling lifetime. The examples of a
    class are features active on at least one token in 10,000, matched ones if there are any: of
    each peak snapshot the best matched feature, and of these the five best; other features fill
    the places left.

    Parameters
    ----------
    features : the features table; feature, alive, matched, matched_cosine, density,
        peak_snapshot_index, peak_step, onset_step, lifetime, initialisation, emergent, transient.
    strengths : table with feature, snapshot_index, step, normalised_strength.
    output : path without ending. Its CSV has row (from 1, of the map of all), feature,
        peak_snapshot_index, onset_step, matched, example (the class that the feature's curve
        stands for, or empty), snapshot_index, step, normalised_strength.

    References
    ----------
    METHOD.md 4 and 8.
    """
    living = style.read_living(features, COLUMNS)
    columns = ["feature", "snapshot_index", "step", "normalised_strength"]
    table = style.read(strengths, columns)[columns]
    snapshots = table[["snapshot_index", "step"]].drop_duplicates().sort_values("step")
    numbers, steps = list(snapshots["snapshot_index"]), list(snapshots["step"])
    order = living.sort_values(
        ["peak_snapshot_index", "onset_step", "lifetime", "feature"],
        ascending=[True, True, False, True],
    )
    square = table.pivot(index="feature", columns="snapshot_index", values="normalised_strength")
    square = square.loc[order["feature"], numbers]
    matched = order["matched"].to_numpy()
    chosen = {
        "initialisation": _examples(living[living["initialisation"] & ~living["transient"]]),
        "emergent": _examples(living[living["emergent"] & ~living["transient"]]),
        "transient": _examples(living[living["transient"]]),
    }

    with style.paper():
        figure = style.new_figure(180, 212)
        engine = figure.get_layout_engine()
        assert isinstance(engine, ConstrainedLayoutEngine)
        engine.set(rect=(0.01, 0.006, 0.98, 0.99))
        halves = figure.add_gridspec(2, 1, height_ratios=[1.1, 1])
        axes = halves[0].subgridspec(1, 2).subplots(squeeze=False)[0]
        image = _map(axes[0], square.to_numpy(), numbers, steps)
        style.title(axes[0], "a", f"all living features ({len(order):,})")
        share = f"matched alone ({matched.sum():,}, {matched.mean():.0%} of the living)"
        if matched.any():
            _map(axes[1], square.to_numpy()[matched], numbers, steps)
        else:
            share = "matched alone"
            known = living["matched_cosine"].notna().any()
            why = "no feature is matched\nacross seeds" if known else "one seed: nothing to match"
            style.empty(axes[1], why)
        style.title(axes[1], "b", share)
        axes[0].set_ylabel("feature, ordered by peak, then onset")
        figure.colorbar(image, ax=axes, label="strength / peak strength", shrink=0.7, pad=0.015)
        grid = halves[1].subgridspec(2, 3).subplots(sharey=True, squeeze=False)
        texts = {
            "initialisation": "initialisation, kept",
            "emergent": "emergent, kept",
            "transient": "transient",
        }
        for column, (name, examples) in enumerate(chosen.items()):
            for row, kind in enumerate(style.KINDS):
                axis = grid[row, column]
                _curves(axis, square, examples, steps)
                style.step_axis(axis, max(steps), kind)
                letter = "cdefgh"[3 * row + column]
                style.title(axis, letter, texts[name] if row == 0 else "")
            if examples.empty:
                style.empty(grid[0, column], "no such feature")
                style.empty(grid[1, column], "no such feature")
            else:
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
        style.save(figure, _drawn(order, square, chosen, snapshots), output)


def _examples(candidates: pd.DataFrame) -> pd.DataFrame:
    """Up to five features, by the rule that `draw` states."""
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


def _map(axis: Axes, values: np.ndarray, numbers: list[int], steps: list[int]) -> AxesImage:
    image = axis.imshow(values, aspect="auto", vmin=0, vmax=1, interpolation="nearest")
    ends = np.unique([1, len(values)])
    axis.set_yticks(ends - 1, [f"{row:,}" for row in ends])
    style.snapshot_axis(axis, numbers, steps, 12)
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
    chosen: dict[str, pd.DataFrame],
    snapshots: pd.DataFrame,
) -> pd.DataFrame:
    example = {f: name for name, some in chosen.items() for f in some["feature"]}
    count = square.shape[1]
    columns = ["feature", "peak_snapshot_index", "onset_step", "matched"]
    rows = order[columns].assign(
        row=np.arange(1, len(order) + 1), example=order["feature"].map(example)
    )
    long = rows.loc[rows.index.repeat(count)].reset_index(drop=True)
    long["snapshot_index"] = np.tile(snapshots["snapshot_index"], len(rows))
    long["step"] = np.tile(snapshots["step"], len(rows))
    long["normalised_strength"] = square.to_numpy().ravel()
    return long[["row", *columns, "example", "snapshot_index", "step", "normalised_strength"]]
