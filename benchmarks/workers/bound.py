"""The encoder's product alone, h = x W_encᵀ + b: what no exact training step can do without."""

from __future__ import annotations

from typing import Any

import torch
from common import Rows, run


class Bound:
    """One product of (B, r) and (r, F)."""

    def __init__(self, spec: dict[str, Any], rows: Rows) -> None:
        self.r = spec.get("r") or rows.shape[1]
        self.versions: dict[str, str] = {}
        self.W = torch.randn(spec["features"], self.r)
        self.b = torch.zeros(spec["features"])
        self.out = torch.empty(spec["batch"], spec["features"])

    def step(self, x: torch.Tensor) -> None:
        """The product."""
        torch.addmm(self.b, x[:, : self.r], self.W.T, out=self.out)


if __name__ == "__main__":
    run(Bound)
