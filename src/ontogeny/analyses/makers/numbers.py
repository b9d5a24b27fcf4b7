"""What of the heads that make features goes into summary.json."""

from __future__ import annotations

from typing import Any

from ontogeny.experiment import Experiment


def numbers(experiment: Experiment) -> dict[str, Any]:
    """By kind of feature, its strongest head, what is lost without it, and its share's onset."""
    table = experiment.table("makers_by_kind")
    values: dict[str, Any] = {}
    for row in table[table["strongest"].astype(bool)].itertuples():
        values[f"makers_{row.kind}_head"] = f"{row.layer}.{row.head}"
        values[f"makers_{row.kind}_loss"] = row.loss
        values[f"makers_{row.kind}_onset"] = row.onset_step
    return values
