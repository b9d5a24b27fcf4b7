"""Settings of the kinds of feature."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from ontogeny.settings.base import AnalysisSection


class Kinds(AnalysisSection):
    """When a score names the kind of a feature."""

    key: ClassVar[str] = "kinds"

    permutations: int = Field(100, ge=20, description="Permutations of each null of the kinds.")
    quantile: float = Field(
        0.95, gt=0, lt=1, description="Quantile of its null that a kind's score has to pass."
    )
    share: float = Field(
        0.25, ge=0, lt=1, description="Least share of variance, or of mass, that names a kind."
    )
    active: int = Field(
        5, ge=1, description="Held-out positions at which a feature of a kind is active at least."
    )
