"""What of the complexity goes into summary.json."""

from __future__ import annotations

from typing import Any

from ontogeny.experiment import Experiment


def numbers(experiment: Experiment) -> dict[str, Any]:
    """Correlations of the context spans with peak and onset, of all features and the emergent."""
    table = experiment.table("complexity")
    values: dict[str, Any] = {}
    for group, end in (("all", ""), ("emergent", "_emergent")):
        rows = table[(table["which"] == "all") & (table["class"] == group)]
        for row in rows.to_dict("records"):
            against = str(row["against"]).removesuffix("_snapshot_index")
            name = f"{row['score']}_{against}_{row['coefficient']}{end}"
            values |= {name: row["value"], f"{name}_low": row["low"], f"{name}_high": row["high"]}
    return values
