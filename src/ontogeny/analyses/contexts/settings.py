"""Settings of the contexts of features."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from ontogeny.settings.base import AnalysisSection


class Contexts(AnalysisSection):
    """What is shown of each feature: positions of the held-out text, and what it speaks for."""

    key: ClassVar[str] = "contexts"

    top: int = Field(
        10, ge=1, description="Contexts with the largest activations, at most one per block."
    )
    quantiles: int = Field(
        8, ge=1, description="Number of quantiles of activation; one context is drawn from each."
    )
    near_misses: int = Field(
        5,
        ge=1,
        description="Contexts in which the feature is nearly active, at most one per block.",
    )
    window: int = Field(20, ge=1, description="Tokens shown on either side of the position.")
    lens_snapshots: int = Field(
        5,
        ge=0,
        description="Number of evenly spaced snapshots with a logit lens, in addition to each "
        "feature's peak; 0 is none.",
    )
    lens_tokens: int = Field(
        10, ge=1, description="Number of most promoted tokens, and of most suppressed ones."
    )
