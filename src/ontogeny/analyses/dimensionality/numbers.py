"""Numbers on the dimensionality for summary.json."""

from __future__ import annotations

from typing import Any

from ontogeny.experiment import Experiment


def numbers(experiment: Experiment) -> dict[str, Any]:
    """How much of the stream the first seed's features occupy: first, least and last snapshot."""
    table = experiment.table("dimensionality")
    table = table[(table["group"] == "all") & (table["seed"] == table["seed"].iloc[0])]
    least = table.loc[table["share"].idxmin()]
    return {
        "dimensionality_first": float(table["share"].iloc[0]),
        "dimensionality_least": float(least["share"]),
        "dimensionality_least_step": int(least["step"]),
        "dimensionality_last": float(table["share"].iloc[-1]),
    }
