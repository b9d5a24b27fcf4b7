"""What of the names goes into summary.json."""

from __future__ import annotations

from typing import Any

from ontogeny.experiment import Experiment


def numbers(experiment: Experiment) -> dict[str, Any]:
    """How many living features have a name."""
    living = experiment.table("features").query("alive")["feature"]
    names = experiment.table("names")
    named = names[(names["name"] != "") & names["feature"].isin(living)]
    return {"named_features": len(named)}
