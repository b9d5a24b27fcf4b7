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
        description="Largest number of held-out positions at which tokens of the context are "
        "replaced.",
    )
    loss: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Least share of its activation that a feature must lose in a replacement "
        "for that replacement to decide its kind.",
    )
    control: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Largest share of its activation that it may lose in the control, where "
        "other tokens are replaced.",
    )
    active: int = Field(
        5,
        ge=1,
        description="Least number of positions at which a feature must be active to be tested: "
        "replaced positions for a kind by cause, held-out positions for a kind by "
        "rule.",
    )
    permutations: int = Field(60, ge=20, description="Permutations for each null of the rules.")
    quantile: float = Field(
        0.95, gt=0, lt=1, description="Quantile of its null that a rule's score must exceed."
    )
    share: float = Field(
        0.25,
        ge=0,
        lt=1,
        description="Least share of a feature's variance, or of its activation, that a rule "
        "requires.",
    )
