"""Activations in the principal subspace: the one place where they are projected."""

from __future__ import annotations

import torch


def projected(
    activations: torch.Tensor, mean: torch.Tensor, basis: torch.Tensor | None = None
) -> torch.Tensor:
    """y = (ã − μ)U, (B, R), of normalised activations (B, N, D); ã − μ, (B, N·D), without a basis.

    Parameters
    ----------
    mean : μ, (N·D,). basis : U, (N·D, R) orthonormal columns, or None for all dimensions.
    """
    centred = activations.flatten(1) - mean
    return centred if basis is None else centred @ basis
