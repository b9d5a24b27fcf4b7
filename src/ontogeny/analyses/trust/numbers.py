"""What of the diagnostics of trust goes into summary.json."""

from __future__ import annotations

from typing import Any

from ontogeny.analyses.trust.measure import doubts
from ontogeny.experiment import Experiment


def numbers(experiment: Experiment) -> dict[str, Any]:
    """Relays, silent births and deaths, agreement of the signs; of each crosscoder, and doubts."""
    values: dict[str, Any] = {}
    for name in experiment.with_histories:
        verdicts = experiment.table("trust_verdicts", name)
        prefix = "" if name == experiment.primary else f"{name}_"
        for _, row in verdicts.iterrows():
            if row["group"] == "matched":
                continue
            end = "" if row["group"] == "all" else "_frequent"
            known = row["value"] == row["value"]
            values[f"{prefix}{row['measure']}{end}"] = float(row["value"]) if known else None
        values[f"{prefix}features_in_relays"] = int(experiment.table("trust", name)["relay"].sum())
        values[f"{prefix}doubts"] = doubts(verdicts)
    return values
