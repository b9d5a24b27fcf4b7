"""Numbers on the tests of presence for summary.json."""

from __future__ import annotations

from typing import Any

from ontogeny.analyses.presence.settings import Presence
from ontogeny.experiment import Experiment


def numbers(experiment: Experiment) -> dict[str, Any]:
    """Share of features and snapshots that are absent by norm but present by scaling."""
    stated = experiment.settings.section(Presence).contradicted
    values: dict[str, Any] = {}
    for name in experiment.with_histories:
        table = experiment.table("presence_verdicts", name)
        at = (table["measure"] == "contradicted") & (table["group"] == "all")
        at &= (table["threshold"] - stated).abs() < 1e-9
        for test in ("scaling", "free"):
            row = table[at & (table["test"] == test)].iloc[0]
            key = f"{name}_absent_contradicted_{test}"
            values |= {key: row["value"], f"{key}_low": row["low"], f"{key}_high": row["high"]}
    return values
