"""Projection of activations into the principal subspace; all projections happen here."""

from __future__ import annotations

from torch import Tensor


def projected(activations: Tensor, mean: Tensor, basis: Tensor | None = None) -> Tensor:
    """y = (ã − μ)U, (B, R), of normalised activations (B, N, D); without U, ã − μ, (B, N·D).

    Parameters
    ----------
    mean : μ, (N·D,). basis : U, (N·D, R) orthonormal columns, or None for all dimensions.
    """
    centred = activations.flatten(1) - mean
    return centred if basis is None else centred @ basis
