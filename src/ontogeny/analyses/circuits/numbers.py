"""Numbers on tasks and their circuits for summary.json."""

from __future__ import annotations

from typing import Any

import numpy as np

from ontogeny.experiment import Experiment


def numbers(experiment: Experiment) -> dict[str, Any]:
    """Accuracy in each task at the last snapshot, and what the features alone restore."""
    behaviour, circuits = experiment.table("behaviour"), experiment.table("circuits")
    values: dict[str, Any] = {}
    last = behaviour[behaviour["step"] == behaviour["step"].max()]
    for row in last.itertuples():
        values[f"task_{row.task}_accuracy"] = row.accuracy
        values[f"task_{row.task}_done"] = bool(row.done)
    done = circuits[(circuits["step"] == circuits["step"].max()) & circuits["done"]]
    for row in done[done["side"] == "sufficiency"].itertuples():
        for key in ("k_enough", "features_alone", "area_random", "area_matched"):
            value = float(getattr(row, key))
            values[f"task_{row.task}_{key}"] = value if np.isfinite(value) else None
    return values
