"""Settings of the fidelity frontier."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ontogeny.settings.base import AnalysisSection


class Frontier(AnalysisSection):
    """Crosscoders of several sizes and sparsities, beside SAEs of single snapshots.

    All that is not named here is as the primary crosscoder has it: activation, gate, basis,
    batches, learning rate and its schedule.
    """

    key: ClassVar[str] = "frontier"

    features: list[Annotated[int, Field(ge=1)]] = Field(
        ..., min_length=1, description="Numbers of features, F, of the dictionaries."
    )
    k: list[Annotated[int, Field(ge=1)]] = Field(
        [], description="Active features per token and site, k, if the primary is batch_topk."
    )
    sparsity: list[Annotated[float, Field(ge=0)]] = Field(
        [], description="Weights of the penalty, λ, if the primary is jumprelu or relu."
    )
    sae_snapshots: Literal["last"] | list[int] = Field(
        "last", description="Snapshots for which SAEs are trained: 'last', or training steps."
    )
    sae_basis: Literal["full", "principal"] = Field(
        "full",
        description="Space of the SAEs: all d dimensions, or their snapshot's principal subspace.",
    )
    sae_learning_rate: float | None = Field(
        None, gt=0, description="Peak learning rate of the SAEs; the primary's when left out."
    )
    steps: int | None = Field(
        None, ge=1, description="Optimiser steps of each dictionary; the primary's when left out."
    )
    seeds: list[int] = Field(
        [0], min_length=1, description="Seeds; each dictionary is trained once per seed."
    )
