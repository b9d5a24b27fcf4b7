"""Plots for notebooks, in the figures' style: each takes an axis or makes one, and returns it.

axis = plots.lives(experiment, [13, 841])
axis.figure.savefig("lives.png")
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ontogeny.experiment import Experiment
from ontogeny.figures import style, token_losses
from ontogeny.files import InputError
from ontogeny.reading.reading import Reading

SIZE = (120, 70)  # mm


def _axis(axis: Axes | None, size: tuple[float, float] = SIZE) -> Axes:
    return style.new_figure(*size).subplots() if axis is None else axis


def loss(experiment: Experiment, axis: Axes | None = None, **look: Any) -> Axes:
    """Held-out loss of the snapshots, nats per token, over log(step + 1), with n-gram levels."""
    with style.paper():
        axis = _axis(axis)
        phases, levels = experiment.table("phases"), experiment.json("levels")
        axis.plot(
            phases["step"], phases["loss"], **({"label": experiment.name, "marker": "."} | look)
        )
        for name in ("unigram", "bigram"):
            level, colour = levels[f"{name}_cross_entropy"], style.COLOURS[name]
            label = f"{experiment.name}: {name} level"
            axis.axhline(level, color=colour, linestyle="--", zorder=1, label=label)
        axis.legend()
        style.step_axis(axis, experiment.steps[-1], "log")
        axis.set_ylabel("held-out loss (nats per token)")
    return axis


def lives(
    experiment: Experiment,
    features: Iterable[int],
    crosscoder: str | None = None,
    axis: Axes | None = None,
) -> Axes:
    """Decoder norm of some features at each snapshot, relative to each feature's largest.

    Raises
    ------
    InputError : there is no feature with that number.
    """
    table = experiment.table("strengths", crosscoder)
    with style.paper():
        axis = _axis(axis)
        for feature in features:
            own = table[table["feature"] == feature]
            if own.empty:
                raise InputError(
                    f"feature {feature} has no history: no living feature has that number"
                )
            axis.plot(own["step"], own["normalised_strength"], label=str(feature), marker=".")
        style.step_axis(axis, experiment.steps[-1], "log")
        axis.set(ylim=(0, 1.04), ylabel="decoder norm / its largest")
        axis.legend(title="feature")
    return axis


def onsets(
    experiment: Experiment, crosscoder: str | None = None, axis: Axes | None = None, label: str = ""
) -> Axes:
    """Share of the matched features (of the living ones if none match) that have appeared by a
    step.

    Matched features are found again in another seed; only for them is "when" meaningful.
    """
    table = experiment.table("features", crosscoder)
    table = table[table["alive"]]
    matched = table[table["matched"]]
    steps = np.sort((matched if len(matched) else table)["onset_step"].dropna())
    with style.paper():
        axis = _axis(axis)
        share = np.arange(1, len(steps) + 1) / max(1, len(steps))
        axis.step(steps, share, where="post", label=label or experiment.name)
        style.step_axis(axis, experiment.steps[-1], "log")
        axis.set(ylim=(0, 1.04), ylabel="share of features with onset")
    return axis


def reading(read: Reading, axis: Axes | None = None) -> Axes:
    """Loss of each token (rows, from the top) at each snapshot, nats, as a map."""
    tokens = read.tokens
    largest = float(np.nanmax(tokens["loss"]))
    with style.paper():
        axis = _axis(axis, (SIZE[0], 20 + 4 * tokens["position"].nunique()))
        image = token_losses.draw(axis, tokens, largest)
        axis.figure.colorbar(image, ax=axis, label="loss of the token (nats)")
    return axis


def ablated(table: pd.DataFrame, axis: Axes | None = None) -> Axes:
    """The effect of a feature's ablation: loss of each token without it minus with it, in nats."""
    with style.paper():
        axis = _axis(axis, (SIZE[0], 20 + 4 * len(table)))
        axis.barh(range(len(table)), table["loss_without"] - table["loss"], color="#0072B2")
        token_losses.label(axis, table["token"])
        axis.invert_yaxis()
        axis.axvline(0, color="0.4", linewidth=0.6)
        axis.set_xlabel("loss without the feature − loss with it (nats)")
    return axis
