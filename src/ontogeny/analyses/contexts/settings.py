"""Settings of the contexts of features."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from ontogeny.settings.base import AnalysisSection


class Contexts(AnalysisSection):
    """What is shown of each feature: positions of the held-out text, and what it speaks for."""

    key: ClassVar[str] = "contexts"

    top: int = Field(10, ge=1, description="Contexts of the largest activations, one per block.")
    quantiles: int = Field(
        8, ge=1, description="Contexts drawn one from each of so many quantiles of activation."
    )
    near_misses: int = Field(5, ge=1, description="Near misses, one per block.")
    window: int = Field(20, ge=1, description="Tokens on either side of a context's position.")
    lens_snapshots: int = Field(
        5,
        ge=0,
        description="Logit lens at so many snapshots, evenly spread, and at each feature's peak.",
    )
    lens_tokens: int = Field(10, ge=1, description="Tokens most promoted, and most suppressed.")
