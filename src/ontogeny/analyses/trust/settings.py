"""Settings of the diagnostics of trust."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from ontogeny.settings.base import AnalysisSection

AROUND = range(-4, 5)  # distances from an event, in snapshots, for which R² is stored


class Trust(AnalysisSection):
    """How far births and deaths can be trusted: relays and silent births and deaths."""

    key: ClassVar[str] = "trust"

    frequent: float = Field(
        0.03,
        gt=0,
        lt=1,
        description="Density (share of tokens) from which a feature counts as frequent.",
    )
    relay_cosine: float = Field(
        0.8, gt=0, le=1, description="Cosine from which two decoders count as parallel in a relay."
    )
    relay_overlap: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Correlation of activations from which two features can be a relay.",
    )
    readable: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="R² that a linear read-out of a feature must reach while it is present, for "
        "its birth and death to be judged.",
    )
    silent: float = Field(
        0.8,
        gt=0,
        le=1,
        description="A birth or death is silent if the read-out at the absent snapshots next to "
        "it reaches this share of the best R² while the feature is present.",
    )
    gate: float = Field(
        0.25,
        gt=0,
        le=1,
        description="Share of its highest rate from which the rate of a feature's gate counts "
        "as saying present.",
    )
