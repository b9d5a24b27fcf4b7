"""Numbers on the diagnostics of trust for summary.json."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ontogeny.experiment import Experiment

DOUBTFUL = 0.1  # least share of silent births or deaths, or of relays, that a run reports
WORDS = {
    "relays": "frequent features are in relays: one concept that several features carry in turn",
    "silent_births": "births of frequent features are silent: the code can be read before them",
    "silent_deaths": "deaths of frequent features are silent: the code can be read after them",
}


def numbers(experiment: Experiment) -> dict[str, Any]:
    """Relays, silent births and deaths, agreement of the signs, for each crosscoder; and doubts."""
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


def doubts(verdicts: pd.DataFrame) -> list[str]:
    """One line for each share of the frequent features that is too large to trust their lives."""
    own = verdicts[(verdicts["group"] == "frequent") & (verdicts["value"] > DOUBTFUL)]
    return [
        f"{row['value']:.0%} of {row['count']:,} {WORDS[row['measure']]}"
        for _, row in own.iterrows()
        if row["measure"] in WORDS
    ]
