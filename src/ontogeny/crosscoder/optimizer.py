"""Adam [paper: β₁ 0.9, β₂ 0.999], one compiled graph for all weights, with compact moments.

    m ← β₁ m + (1 − β₁) g        v ← β₂ v + (1 − β₂) g²
    w ← w − η · m̂ / (√v̂ + ε),    m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)

moments: float32    m and v in float32: plain Adam, 8 bytes per weight
         compact    m in bfloat16, and for a matrix one v per row, the mean of g² over it
              (Adam-mini, arXiv 2406.16793): 2 bytes per weight. A row is a feature, or in the
              decoder a feature at a site, so a step does not depend on the axes of its space

Weights are always float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ontogeny import devices

BETAS = (0.9, 0.999)
EPSILON = 1e-8


def _update(
    weights: list[Tensor],
    gradients: list[Tensor],
    first: list[Tensor],
    second: list[Tensor],
    rate: Tensor,
    correction: Tensor,
    shares: list[float],
) -> None:
    """One step, in place.

    rate : () η / (1 − β₁ᵗ). correction : () 1 / (1 − β₂ᵗ). shares : factor of η for each weight.
    """
    for w, g, m, v, share in zip(weights, gradients, first, second, shares, strict=True):
        fresh = torch.lerp(g, m.to(g.dtype), BETAS[0])
        squared = g.square()
        if v.shape != g.shape:
            squared = squared.mean(-1, keepdim=True)
        v.copy_(torch.lerp(squared, v, BETAS[1]))
        length = rate * share / ((v * correction).sqrt() + EPSILON)
        w.sub_(length * fresh)
        m.copy_(fresh)


class Adam:
    """Adam over weights whose gradients are in given buffers.

    Parameters
    ----------
    weights, gradients : tensors of the same shapes. shares : factor of the rate for each.
    moments : float32 or compact. apart : a weight that `step` does not update, or None.

    Attributes
    ----------
    weights : the trained ones. first, second : the moments m and v of each.
    bytes_per_parameter : for weights, gradients and moments together.
    """

    def __init__(
        self,
        weights: list[Tensor],
        gradients: list[Tensor],
        shares: list[float],
        moments: str,
        device: torch.device,
        apart: Tensor | None = None,
    ) -> None:
        compact = [moments == "compact" and w.ndim > 1 for w in weights]
        self.first = [
            torch.zeros_like(w, dtype=torch.bfloat16 if small else w.dtype)
            for w, small in zip(weights, compact, strict=True)
        ]
        self.second = [
            torch.zeros_like(w[..., :1] if small else w)
            for w, small in zip(weights, compact, strict=True)
        ]
        self.weights = weights
        self._device = device
        own = [i for i, w in enumerate(weights) if w is not apart]
        lists = (weights, gradients, self.first, self.second, shares)
        self._moved = [[every[i] for i in own] for every in lists]
        self._compute: Callable[..., None] = devices.compiled(_update, device)
        tensors = [*weights, *gradients, *self.first, *self.second]
        parameters = sum(w.numel() for w in weights)
        self.bytes_per_parameter = sum(t.numel() * t.element_size() for t in tensors) / parameters

    def of(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The moments of one of the weights."""
        at = next(i for i, w in enumerate(self.weights) if w is weight)
        return self.first[at], self.second[at]

    def step(self, step: int, rate: float) -> None:
        """Update the weights. step : from 1. rate : the learning rate."""
        at = torch.tensor(corrected(step, rate))
        if self._device.type == "cuda":
            at = at.pin_memory().to(self._device, non_blocking=True)
        weights, gradients, first, second, shares = self._moved
        self._compute(weights, gradients, first, second, at[0], at[1], shares)


def corrected(step: int, rate: float) -> tuple[float, float]:
    """η / (1 − β₁ᵗ) and 1 / (1 − β₂ᵗ) at step t, from 1."""
    return rate / (1 - BETAS[0] ** step), 1 / (1 - BETAS[1] ** step)
