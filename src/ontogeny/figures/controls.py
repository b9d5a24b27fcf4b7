"""How each change of the training recipe changes the findings of the other figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ontogeny.figures import style
from ontogeny.settings.experiment import BASELINE

PANELS = {
    "turning_point_step": "turning point (step)",
    "turning_point_step_rate_sum": "turning point\n(sum of rates)",
    "previous_token_onset_median": "previous-token features,\nmedian onset (step)",
    "induction_onset_median": "induction features,\nmedian onset (step)",
    "copying_gain_onset": "copying gain,\nonset (step)",
    "initialisation_share": "share of features there\nat the start",
}
"""The outcomes to draw, if they were measured."""


def draw(controls: Path, models: Path, output: Path) -> None:
    """Each condition's mean with its interval, and its single models; one panel per outcome.

    Parameters
    ----------
    controls, models : CSV of the stage `controls`.
    output : path without ending. Its CSV has outcome, condition, seed (empty: the mean), value,
        low, high.
    """
    means = style.read(controls, ["condition", "outcome", "mean", "low", "high"])
    each = style.read(models, ["condition", "seed"])
    names = list(dict.fromkeys(means["condition"]))
    shown = [name for name in PANELS if name in set(means["outcome"]) & set(each.columns)]
    drawn = []
    with style.paper():
        rows = -(-max(1, len(shown)) // 3)
        figure = style.new_figure(180, rows * (18 + 5 * len(names)))
        grid = figure.subplots(rows, 3, sharey=True, squeeze=False)
        for axis, outcome in zip(grid.flat, shown, strict=False):
            of = means[means["outcome"] == outcome].set_index("condition")
            drawn += [_mean(axis, of, names, outcome), _models(axis, each, names, outcome)]
            axis.set_xlabel(PANELS[outcome])
            axis.set_ylim(len(names) - 0.5, -0.5)
            axis.set_yticks(range(len(names)), names)
        for axis in grid.flat[len(shown) :]:
            axis.set_visible(False)
        if not shown:
            style.empty(grid[0, 0], "no outcome that all models have")
            grid[0, 0].set_visible(True)
        table = pd.concat(drawn, ignore_index=True) if drawn else pd.DataFrame()
        columns = ["outcome", "condition", "seed", "value", "low", "high"]
        style.save(
            figure, table.reindex(columns=columns).astype({"seed": "Int64"}), output, finding
        )


def finding(table: pd.DataFrame) -> str:
    """Which conditions' intervals do not overlap with the baseline's."""
    means = table[table["seed"].isna() & table["low"].notna()]
    base = means[means["condition"] == BASELINE].set_index("outcome")
    others = means[(means["condition"] != BASELINE) & means["outcome"].isin(base.index)]
    if others.empty:
        return "No condition has an interval to compare with the unchanged recipe's"
    low, high = (base.loc[others["outcome"], end].to_numpy() for end in ("low", "high"))
    apart = others[(others["low"].to_numpy() > high) | (others["high"].to_numpy() < low)]
    if apart.empty:
        return "No change of the recipe can be distinguished from the unchanged recipe"
    names = ", ".join(dict.fromkeys(apart["condition"]))
    return f"{len(apart)} of {len(others)} outcomes differ from the unchanged recipe's: {names}"


def _mean(axis: Axes, of: pd.DataFrame, names: list[str], outcome: str) -> pd.DataFrame:
    """Means and intervals; the baseline's interval is a band in the background."""
    of = of.reindex(names)
    low, high = of[["low", "high"]].to_numpy(float)[names.index(BASELINE)]
    if np.isfinite(low):
        axis.axvspan(low, high, color="0.92", zorder=0)
    place = np.arange(len(names))
    axis.hlines(place, of["low"], of["high"], color=style.COLOURS["held_out"], linewidth=1.2)
    axis.plot(of["mean"], place, "o", color=style.COLOURS["held_out"], markersize=4)
    table = of[["mean", "low", "high"]].rename(columns={"mean": "value"}).reset_index()
    return table.assign(outcome=outcome)


def _models(axis: Axes, each: pd.DataFrame, names: list[str], outcome: str) -> pd.DataFrame:
    """Single models, a little below their condition."""
    place = each["condition"].map({name: i for i, name in enumerate(names)}) + 0.25
    axis.plot(each[outcome], place, "|", color="0.45", markersize=5)
    columns = ["condition", "seed", outcome]
    return each[columns].rename(columns={outcome: "value"}).assign(outcome=outcome)
