"""Settings of the toy analysis."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from ontogeny.settings import AnalysisSection


class Toy(AnalysisSection):
    """How peaks are counted."""

    key: ClassVar[str] = "toy"

    bins: int = Field(3, ge=1, description="Bins of the training steps, evenly apart.")
