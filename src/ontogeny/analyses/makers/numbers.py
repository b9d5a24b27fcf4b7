"""Numbers on the heads that produce features for summary.json."""

from __future__ import annotations

from typing import Any

from ontogeny.experiment import Experiment


def numbers(experiment: Experiment) -> dict[str, Any]:
    """For each kind, its strongest head, the loss without it, and the onset of its share."""
    table = experiment.table("makers_by_kind")
    values: dict[str, Any] = {}
    for row in table[table["strongest"].astype(bool)].itertuples():
        values[f"makers_{row.kind}_head"] = f"{row.layer}.{row.head}"
        values[f"makers_{row.kind}_loss"] = row.loss
        values[f"makers_{row.kind}_onset"] = row.onset_step
    return values
