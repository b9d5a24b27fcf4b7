"""Ontogeny's own step, in all dimensions or in the principal subspace: the trainer's, as it is."""

from __future__ import annotations

import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Rows, memory, run

from ontogeny import devices
from ontogeny.activations import subspace
from ontogeny.crosscoder import model, train
from ontogeny.settings import Crosscoder


class Projected:
    """Projected rows, as common.Rows."""

    def __init__(self, spec: dict[str, Any], most: int) -> None:
        space = subspace.Subspace(spec["basis"])
        self.U, self.mean = torch.from_numpy(space.U), torch.from_numpy(space.mean)
        self._rows = subspace.Projected([Path(spec["projected"])])
        self.shape = (min(most, self._rows.rows), space.dimensions)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop), float32."""
        return self._rows.read(start, stop)


class Data:
    """What the trainer asks of its data."""

    def __init__(self, spec: dict[str, Any], rows: Rows) -> None:
        self.width, self.device = spec["d"], torch.device("cpu")
        self.scales_in = torch.ones(spec["n"])
        self.U: torch.Tensor | None = None
        if spec["path"] == "principal":
            projected = Projected(spec, rows.shape[0])
            self.U, self.mean, self.array = projected.U, projected.mean, projected
        else:
            self.mean, self.array = rows.mean(), rows
        self.source, self.rows = self, self.array.shape[0]
        self.digest = ""  # of the rows, for states, of which there is none here

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop), (rows, I) float32."""
        return self.array.read(start, stop)

    def split(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(x, target)."""
        x = batch if self.U is not None else batch - self.mean
        return x, x


class Ours:
    """BatchTopK with AuxK, one gate a feature."""

    def __init__(self, spec: dict[str, Any], rows: Rows) -> None:
        devices.keep_memory()
        self.spec, self.sites = spec, spec["n"]
        self.versions = {"ontogeny": version("ontogeny")}
        self.c = Crosscoder(
            inputs={"layers": [0]},
            features=spec["features"],
            k=spec["k"],
            batch_rows=spec["batch"],
            steps=spec["steps"],
            learning_rate=spec["learning_rate"],
            moments=spec["moments"],
            aux_features=min(128, spec["features"]),
        )
        self._warm_compiler(spec)
        self.base = memory("VmRSS")
        self.data = Data(spec, rows)
        self.rows = self.data.array
        self.r = spec["n"] * spec["d"] if self.data.U is None else self.data.U.shape[1]
        loss = train.make_loss(self.c, self.sites, native=True)
        self.compute = devices.compiled(loss, torch.device("cpu"))
        self.now = train._begin(self.c, self.data, self.compute, self.sites, spec["seed"])
        self.peak_rate = self.c.learning_rate * math.sqrt(spec["n"] * spec["d"] / self.r)
        self.bytes_per_parameter = self.now.optimizer.bytes_per_parameter
        weights = sum(t.numel() for t in self.now.weights.named().values())
        self.state_bytes = int(weights * self.bytes_per_parameter) + 2 * 4 * spec["batch"] * self.r

    def _warm_compiler(self, spec: dict[str, Any]) -> None:
        """Compile the same step at a size of nothing, so that base memory holds the compiler's."""
        c = self.c.model_copy(update={"features": 64, "k": 2, "aux_features": 8, "aux_k": 4})
        W = model.initial(1, 1, 64, 16, None, 0)
        G = model.Weights(**{n: torch.zeros_like(t) for n, t in W.named().items()})
        compute = devices.compiled(train.make_loss(c, 1, native=True), torch.device("cpu"))
        x, dead = torch.randn(32, 16), torch.arange(8)
        for d in (dead[:0], dead):
            compute(W, G, x, x, d, d >= 0, torch.zeros(()), torch.arange(4))
        weights, gradients = (list(w.named().values()) for w in (W, G))
        train.Adam(weights, gradients, [1.0] * 5, c.moments, x.device).step(1, 1e-3)

    def step(self, batch: torch.Tensor) -> None:
        """The trainer's own, with its look for dead features every LOG_EVERY steps."""
        now = self.now
        x, target = self.data.split(batch)
        rate = self.peak_rate * train.schedule(now.step, self.c)
        train._advance(now, self.c, self.compute, x, target, rate)
        if now.step % train.LOG_EVERY == 0:
            now.aux = train.aux_size(now.silent, self.c)

    def reconstruct(self, x: torch.Tensor) -> tuple[torch.Tensor, float]:
        """By the batch's k·B largest scores, in all dimensions."""
        W, U, mean = self.now.weights, self.data.U, self.data.mean
        y = x - mean if U is None else (x - mean) @ U
        h = model.pre_activations(y, W.W_enc, W.b_enc)
        score = h * W.W_dec.norm(dim=1) / self.sites**0.5
        cut = torch.topk(score.flatten(), self.c.k * len(x), sorted=False).values.min()
        f = h * ((score >= cut) & (score > 0))
        again = f @ W.W_dec + W.b_dec
        return (again if U is None else again @ U.T) + mean, (f > 0).sum(1).float().mean().item()

    def dead(self, rows: int) -> float:
        """Share of features silent over the last `rows` rows."""
        return (self.now.silent >= rows).float().mean().item()

    def decoders(self) -> torch.Tensor:
        """(F, n·d) full decoders."""
        W, U = self.now.weights.W_dec, self.data.U
        return W if U is None else W @ U.T


if __name__ == "__main__":
    run(Ours)
