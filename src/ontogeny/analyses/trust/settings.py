"""Settings of the diagnostics of trust."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from ontogeny.settings.base import AnalysisSection


class Trust(AnalysisSection):
    """How far births and deaths can be trusted: relays and silent births and deaths."""

    key: ClassVar[str] = "trust"

    frequent: float = Field(
        0.03, gt=0, lt=1, description="Density from which a feature counts as frequent."
    )
    relay_cosine: float = Field(
        0.8, gt=0, le=1, description="Cosine from which two decoders of a relay are parallel."
    )
    relay_overlap: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Correlation from which two features of a relay are active alike.",
    )
    readable: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="R² that a linear read-out of a feature must reach in its life, for its birth "
        "and death to be judged.",
    )
    silent: float = Field(
        0.8,
        gt=0,
        le=1,
        description="Share of the best R² in life from which a birth or death is silent, when the "
        "snapshots beyond it still reach it.",
    )
    gate: float = Field(
        0.25,
        gt=0,
        le=1,
        description="Share of its highest rate from which a feature's gate says that it is there.",
    )
