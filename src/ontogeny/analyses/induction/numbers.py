"""Numbers on heads and copying for summary.json."""

from __future__ import annotations

from typing import Any

from ontogeny.experiment import Experiment


def numbers(experiment: Experiment) -> dict[str, Any]:
    """Onset steps of heads and copying; None if they do not form."""
    table = experiment.table("induction")
    values: dict[str, Any] = {}
    gains = table["event"].str.startswith("copying_gain")
    whole = table["detail"].isna() | ~gains  # of gains, only the median over distances
    for event, rows in table[table["maximum"].notna() & whole].groupby("event"):
        formed = rows[rows["verdict"] == "forms"]
        values[f"{event}_onset"] = formed["onset_step"].min() if len(formed) else None
        values[f"{event}_maximum"] = rows["maximum"].max()
    return values
