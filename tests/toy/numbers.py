"""What of it goes into summary.json."""

from __future__ import annotations

from typing import Any

from ontogeny.experiment import Experiment


def numbers(experiment: Experiment) -> dict[str, Any]:
    """The number of bins that hold a peak."""
    return {"toy_bins_with_peaks": int((experiment.table("toy_bins")["features"] > 0).sum())}
