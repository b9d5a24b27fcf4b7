"""Settings of the kinds of feature."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from ontogeny.settings.base import AnalysisSection


class Kinds(AnalysisSection):
    """When a cause, or a score, names the kind of a feature."""

    key: ClassVar[str] = "kinds"

    positions: int = Field(
        1000,
        ge=10,
        description="Held-out positions at which tokens of the context are replaced, at most.",
    )
    loss: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of its activation that a feature loses, at least, by the replacement "
        "that names its kind.",
    )
    control: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Largest share that it may lose when other tokens are replaced.",
    )
    active: int = Field(
        5,
        ge=1,
        description="Positions at which a feature is active, at least: replaced ones for a kind by "
        "cause, held-out ones for a kind by rule.",
    )
    permutations: int = Field(
        60, ge=20, description="Permutations of each null of the kinds by rule."
    )
    quantile: float = Field(
        0.95, gt=0, lt=1, description="Quantile of its null that a rule's score has to pass."
    )
    share: float = Field(
        0.25, ge=0, lt=1, description="Least share of variance, or of mass, that a rule asks for."
    )
