"""Settings of the stored passages."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from ontogeny.settings.base import AnalysisSection


class Passages(AnalysisSection):
    """Passages that every snapshot reads, for the atlas (analysis `passages`)."""

    key: ClassVar[str] = "passages"

    held_out: int = Field(12, ge=1, description="Number of passages of held-out text.")
    length: int = Field(40, ge=2, description="Tokens shown of each passage.")
    prompts: int = Field(1, ge=0, description="Prompts shown of each task of `circuits`.")
    features: int = Field(
        6,
        ge=1,
        description="Features kept for each token and snapshot, those with the largest "
        "contributions.",
    )
    predictions: int = Field(
        3, ge=1, description="Likeliest next tokens kept for each token and snapshot."
    )
