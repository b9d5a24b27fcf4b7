"""Numbers on the names for summary.json."""

from __future__ import annotations

from typing import Any

from ontogeny.experiment import Experiment


def numbers(experiment: Experiment) -> dict[str, Any]:
    """How many living features have a name, and how many only one for their strongest contexts."""
    living = experiment.table("features").query("alive")["feature"]
    names = experiment.table("names")
    named = names[(names["name"] != "") & names["feature"].isin(living)]
    return {
        "named_features": len(named),
        "named_features_strongest": int(named["strongest"].sum()),
        "named_feature_share": len(named) / len(living) if len(living) else None,
    }
