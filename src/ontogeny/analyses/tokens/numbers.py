"""Numbers on the token means for summary.json."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from ontogeny.experiment import Experiment

SETTLED = 0.7  # cosine with the last snapshot's means from which on directions count as settled
PARTED = 0.9  # share of distinct tokens from which on tokens count as separated


def since(steps: np.ndarray, values: np.ndarray, least: float) -> int | None:
    """The first step from which on all values are at least `least`; None if the last is not."""
    below = np.flatnonzero(~(values >= least))
    first = int(below[-1]) + 1 if len(below) else 0
    return int(steps[first]) if first < len(steps) else None


def of_place(table: pd.DataFrame) -> dict[str, Any]:
    """The numbers for one layer and stream, with rows in the order of the snapshots."""
    columns = ("step", "explained", "cosine_last", "distinct")
    steps, explained, cosine, distinct = (table[name].to_numpy() for name in columns)
    seen = np.where(np.isnan(explained), np.inf, explained)  # NaN for a constant stream
    return {
        "token_table_first": float(explained[0]),
        "token_table_least": float(seen.min()),
        "token_table_least_step": int(steps[seen.argmin()]),
        "token_table_last": float(explained[-1]),
        "token_means_settled_step": since(steps, cosine, SETTLED),
        "token_means_distinct_step": since(steps, distinct, PARTED),
    }


def numbers(experiment: Experiment) -> dict[str, Any]:
    """The numbers for the primary crosscoder's layer and stream."""
    inputs = experiment.settings.crosscoders[experiment.primary].inputs
    table = experiment.table("token_means")
    own = (table["layer"] == inputs.layers[0]) & (table["stream"] == inputs.streams[0])
    return of_place(table[own])
