"""Settings of heads and copying."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from ontogeny.settings.base import AnalysisSection


class Induction(AnalysisSection):
    """When attention heads and copying form (analysis `induction`)."""

    key: ClassVar[str] = "induction"

    blocks: int = Field(
        20, ge=2, description="Held-out blocks on which heads and copying gains are measured."
    )
    least_attention: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="Attention above chance and above its control that a head needs to count as "
        "formed.",
    )
    least_gain: float = Field(
        0.1,
        gt=0,
        description="Copying gain, in nats, that is needed for copying to count as formed.",
    )
