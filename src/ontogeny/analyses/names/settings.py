"""Settings of names and the range chart."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from ontogeny.settings.base import AnalysisSection


class Names(AnalysisSection):
    """When contexts name a feature, and what the range chart shows (analysis `names`)."""

    key: ClassVar[str] = "names"

    agreement: float = Field(
        0.8, gt=0.5, le=1, description="Share of a feature's strongest contexts that names it."
    )
    range: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of its activation, over all quantiles, that a name has to account for; "
        "another says only where the feature is strongest.",
    )
    contexts: int = Field(5, ge=2, description="Contexts that a named feature has, at least.")
    shown: int = Field(60, ge=1, description="Features on the range chart, at most.")
