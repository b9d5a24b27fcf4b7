"""Settings of the stored passages."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from ontogeny.settings.base import AnalysisSection


class Passages(AnalysisSection):
    """Passages that every snapshot reads, for the atlas (analysis `passages`)."""

    key: ClassVar[str] = "passages"

    held_out: int = Field(12, ge=1, description="Passages of held-out text.")
    length: int = Field(40, ge=2, description="Tokens of each that are shown.")
    prompts: int = Field(1, ge=0, description="Prompts of each task of `circuits`.")
    features: int = Field(
        6, ge=1, description="Features kept of each token and snapshot, the largest contributions."
    )
    predictions: int = Field(3, ge=1, description="Likeliest next tokens kept of each.")
