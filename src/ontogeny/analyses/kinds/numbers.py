"""What of the kinds goes into summary.json."""

from __future__ import annotations

from typing import Any

from ontogeny.experiment import Experiment


def numbers(experiment: Experiment) -> dict[str, Any]:
    """Features of each kind, and when they appear: median and quartiles of the onset step."""
    control = experiment.table("kinds_control").set_index("kind")
    features = experiment.table("features").merge(experiment.table("kinds"), on="feature")
    values: dict[str, Any] = {
        "kinds_permuted_features": int(control["permuted"].drop("none").sum()),
    }
    for kind in control.index.drop("none"):
        living = features[features["alive"] & (features["kind"] == kind)]
        values[f"{kind}_features"] = int(control.loc[kind, "features"])
        for group, part in (("", living), ("_matched", living[living["matched"]])):
            onset = part["onset_step"].quantile([0.25, 0.5, 0.75]) if len(part) else [None] * 3
            names = ("q25", "median", "q75")
            values |= {
                f"{kind}_onset_{name}{group}": value
                for name, value in zip(names, onset, strict=True)
            }
    return values
