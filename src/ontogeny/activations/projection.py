"""Activations in the principal subspace: the one place where they are projected."""

from __future__ import annotations

from torch import Tensor


def projected(activations: Tensor, mean: Tensor, basis: Tensor | None = None) -> Tensor:
    """y = (ã − μ)U, (B, R), of normalised activations (B, N, D); ã − μ, (B, N·D), without a basis.

    Parameters
    ----------
    mean : μ, (N·D,). basis : U, (N·D, R) orthonormal columns, or None for all dimensions.
    """
    centred = activations.flatten(1) - mean
    return centred if basis is None else centred @ basis
