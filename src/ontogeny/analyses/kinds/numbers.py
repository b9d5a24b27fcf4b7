"""Numbers on the kinds for summary.json."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from ontogeny.experiment import Experiment
from ontogeny.features.described import KINDS, UNTESTED


def numbers(experiment: Experiment) -> dict[str, Any]:
    """Living features of each kind, and when they appear: quartiles of the onsets, and the median's
    95% interval over features; for all and for matched features."""
    control = experiment.table("kinds_control").set_index("kind")
    features = experiment.table("features")
    living = features[features["alive"]].merge(experiment.table("kinds"), on="feature", how="left")
    living = living.fillna({"kind": "none"})
    analysis = experiment.settings.analysis
    rng = np.random.default_rng(analysis.seed)
    values: dict[str, Any] = {
        "kinds_permuted_features": int(control["permuted"].drop("none").sum()),
        # Features with too few positions to be tested, whose kind is by rule.
        "kinds_untested_features": int((living["cause"].fillna(UNTESTED) == UNTESTED).sum()),
    }
    for kind in (*KINDS, "none"):
        of_kind = living[living["kind"] == kind]
        values[f"kind_{kind}_tested"] = int((of_kind["cause"].fillna(UNTESTED) != UNTESTED).sum())
        for group, part in (("", of_kind), ("_matched", of_kind[of_kind["matched"]])):
            values[f"kind_{kind}{group}"] = len(part)
            if kind != "none":
                values |= {
                    f"{kind}_onset_{name}{group}": value
                    for name, value in onsets(part["onset_step"], analysis.bootstrap, rng).items()
                }
    return values


def onsets(at: pd.Series, samples: int, rng: np.random.Generator) -> dict[str, float | None]:
    """Quartiles of onsets, and the 95% interval of their median over features."""
    if at.empty:
        return dict.fromkeys(("q25", "median", "q75", "low", "high"))
    x = at.to_numpy(dtype=float)
    medians = np.median(x[rng.integers(0, len(x), (samples, len(x)))], 1)
    found = [*np.quantile(x, [0.25, 0.5, 0.75]), *np.quantile(medians, [0.025, 0.975])]
    return dict(zip(("q25", "median", "q75", "low", "high"), map(float, found), strict=True))
