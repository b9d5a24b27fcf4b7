"""The section of the principal subspace."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from ontogeny.settings.base import Section, as_number


class Basis(Section):
    """The principal subspace of all sites, of crosscoders with basis: principal or hybrid."""

    max_variance_lost: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="Most that any site may lose of its variance, as far as `largest` allows.",
    )
    dimensions: int | None = Field(
        None, ge=1, description="Dimensions to keep; overrides max_variance_lost."
    )
    least_kept: float = Field(
        0.95,
        ge=0,
        le=1,
        description="Least share of any site's variance inside the subspace: with less nothing is "
        "projected or trained in it. Lower it to train all the same.",
    )
    rows: int = Field(
        1_048_576,
        ge=2,
        description="Training rows from which directions are computed, at most.",
    )
    exact_limit: int = Field(
        8192,
        ge=1,
        description="Largest n·d with exact directions; beyond it they are randomised.",
    )
    largest: int | None = Field(
        None,
        ge=1,
        description="Most dimensions to keep. Left out: five times the model's width, and 2,048 or "
        "`dimensions` where that is more.",
    )
    seed: int = Field(0, ge=0, description="Seed of the rotation inside the subspace.")

    @model_validator(mode="before")
    @classmethod
    def _kept_as_asked(cls, given: Any) -> Any:
        """If `least_kept` is not given, it is at most 1 − `max_variance_lost`."""
        if not isinstance(given, dict) or "least_kept" in given:
            return given
        lost = as_number(given.get("max_variance_lost"), float)
        default = cls.model_fields["least_kept"].default
        if isinstance(lost, float) and 1 - default < lost < 1:
            return given | {"least_kept": 1 - lost}
        return given
