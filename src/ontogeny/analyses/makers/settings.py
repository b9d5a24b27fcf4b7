"""Settings of the heads' ablations."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from ontogeny.settings.base import AnalysisSection


class Makers(AnalysisSection):
    """Which attention heads make which features (analysis `makers`)."""

    key: ClassVar[str] = "makers"

    blocks: int = Field(
        32, ge=2, description="Held-out blocks on which each head is ablated at each snapshot."
    )
    active: int = Field(
        5,
        ge=1,
        description="Number of positions in these blocks at which a feature must be active.",
    )
