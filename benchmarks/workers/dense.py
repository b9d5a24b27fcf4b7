"""The same BatchTopK crosscoder written plainly: dense products, autograd, one compiled step."""

from __future__ import annotations

from typing import Any

import torch
from common import Rows, run


class Dense:
    """All n·d dimensions, each site centred, decoder rows of one norm at the start."""

    def __init__(self, spec: dict[str, Any], rows: Rows) -> None:
        self.r, self.sites, self.k = rows.shape[1], spec["n"], spec["k"]
        self.versions: dict[str, str] = {}
        features = spec["features"]
        self.mean = rows.mean()
        start = torch.randn(features, spec["d"]).repeat(1, spec["n"])
        start *= 0.2 / start.norm(dim=1, keepdim=True) * spec["n"] ** 0.5
        self.W_enc = start.T.clone().requires_grad_()
        self.b_enc = torch.zeros(features, requires_grad=True)
        self.W_dec = start.clone().requires_grad_()
        self.b_dec = torch.zeros(self.r, requires_grad=True)
        self.weights = [self.W_enc, self.b_enc, self.W_dec, self.b_dec]
        self.optimizer = torch.optim.Adam(self.weights, lr=spec["learning_rate"], fused=True)
        self.loss = torch.compile(self._loss, fullgraph=True, dynamic=False)
        self.silent = torch.zeros(features, dtype=torch.long)

    def _score(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = x @ self.W_enc + self.b_enc
        return h, (h * self.W_dec.norm(dim=1) / self.sites**0.5).detach()

    def _kept(self, score: torch.Tensor, tokens: int) -> torch.Tensor:
        cut = torch.topk(score.flatten(), self.k * tokens, sorted=False).values.min()
        return (score >= cut) & (score > 0)

    def _loss(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x - self.mean
        h, score = self._score(x)
        f = h * self._kept(score, len(x))
        error = x - f @ self.W_dec - self.b_dec
        return error.square().sum() / (len(x) * self.sites), (f > 0).any(0)

    def step(self, x: torch.Tensor) -> None:
        """Loss, gradients, fused Adam."""
        loss, fired = self.loss(x)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.silent += len(x)
        self.silent[fired] = 0

    def reconstruct(self, x: torch.Tensor) -> tuple[torch.Tensor, float]:
        """By the batch's k·B largest scores."""
        h, score = self._score(x - self.mean)
        f = h * self._kept(score, len(x))
        return f @ self.W_dec + self.b_dec + self.mean, (f > 0).sum(1).float().mean().item()

    def dead(self, rows: int) -> float:
        """Share of features silent over the last `rows` rows."""
        return (self.silent >= rows).float().mean().item()


if __name__ == "__main__":
    run(Dense)
