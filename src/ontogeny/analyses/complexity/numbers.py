"""Numbers on complexity for summary.json."""

from __future__ import annotations

from typing import Any

from ontogeny.experiment import Experiment


def numbers(experiment: Experiment) -> dict[str, Any]:
    """Correlations of context spans with peak and onset, for all features and for emergent ones."""
    table = experiment.table("complexity")
    values: dict[str, Any] = {}
    for group, end in (("all", ""), ("emergent", "_emergent")):
        rows = table[(table["which"] == "all") & (table["class"] == group)]
        for row in rows.to_dict("records"):
            against = str(row["against"]).removesuffix("_snapshot_index")
            name = f"{row['score']}_{against}_{row['coefficient']}{end}"
            values |= {name: row["value"], f"{name}_low": row["low"], f"{name}_high": row["high"]}
    return values
