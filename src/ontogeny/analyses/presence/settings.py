"""Settings of the tests of presence."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from ontogeny.settings.base import AnalysisSection


class Presence(AnalysisSection):
    """Does the norm mean presence? Latent scaling and linear probes beside it."""

    key: ClassVar[str] = "presence"

    features: int = Field(
        256, ge=1, description="Number of features for which linear probes are fitted."
    )
    active: int = Field(
        5,
        ge=2,
        description="Number of positions in each half of the held-out text at which a feature "
        "must be active to be tested.",
    )
    absent: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="Normalised strength below which the norm counts as saying absent.",
    )
    contradicted: float = Field(
        0.25,
        gt=0,
        le=1,
        description="Latent scaling, relative to that at the peak, from which it counts as saying "
        "present.",
    )
