"""Ontogeny's own step in any of its spaces: the trainer's, as it is.

A spec may also say `activation`, `gate`, `l0` (that λ is steered to) and `space`; and

    core        false: without the core in C++
    hold        true: a learning rate of 0, so that L0 stays as it is
    fill        seconds that the learning rate's schedule is stretched over
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from common import Rows, memory, run
from torch import Tensor

from ontogeny import devices
from ontogeny.activations import subspace
from ontogeny.activations.sites import Site
from ontogeny.crosscoder import data, model, native, pairs, train
from ontogeny.crosscoder.ranks import Ranks
from ontogeny.settings import Crosscoder

REFIT_EVERY = 20  # steps from one estimate of how many fill the time to the next


class SiteRows:
    """Rows of all dimensions, in memory site by site, as the trainer's sources give them."""

    def __init__(self, rows: Rows, sites: int) -> None:
        self._rows, self.rows = rows, rows.shape[0]
        self.shape = (sites, rows.shape[1] // sites)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop), (stop − start, N, D) float32."""
        rows = self._rows.read(start, stop).reshape(-1, *self.shape)
        return np.ascontiguousarray(rows.transpose(1, 0, 2)).transpose(1, 0, 2)


class Data(data.Data):
    """The trainer's data, of rows in files of the benchmark."""

    def __init__(self, spec: dict[str, Any], space: str, rows: Rows) -> None:
        n, self.width, self.device, self.tokens = spec["n"], spec["d"], torch.device("cpu"), ""
        self.scales_in = self.scales_out = torch.ones(n)
        self.space, self.U, self._same, self._shift = space, None, True, None
        self._sites = [Site(step, 0, "residual") for step in range(n)]
        self.sources = []
        if space == "full":
            self.mean = rows.mean()
        else:
            found = subspace.Subspace(spec["basis"])
            self.U, self.mean = torch.from_numpy(found.U), torch.from_numpy(found.mean)
            self.sources = [subspace.Projected([Path(spec["projected"])])]
        if space != "principal":
            self.sources.append(SiteRows(rows, n))
            self._shift = self.mean.view(n, -1)
        self._mean_in = self._mean_out = self.mean
        self._table = None

    def parts(self, start: int, stop: int) -> tuple[Tensor, ...]:
        """Rows [start, stop) of each source, as the trainer's reader hands them out."""
        return tuple(torch.from_numpy(source.read(start, stop)) for source in self.sources)

    def split(self, parts: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """(x, target) of a batch; the trainer does it between two steps."""
        return self._split(parts)

    @property
    def row_bytes(self) -> int:
        """Of a row of all sources."""
        return 4 * sum(int(np.prod(source.shape)) for source in self.sources)


class Ours:
    """A training of the package."""

    def __init__(self, spec: dict[str, Any], rows: Rows) -> None:
        devices.keep_memory()
        self.spec, self.sites = spec, spec["n"]
        self.versions = {"ontogeny": version("ontogeny")}
        space = spec.get("space", spec["path"])
        if not spec.get("core", True):
            native.library = lambda: None  # type: ignore[assignment]
        self.c = Crosscoder(
            inputs={"layers": [0]},
            basis=space,
            features=spec["features"],
            activation=spec.get("activation", "batch_topk"),
            gate=spec.get("gate", "feature"),
            k=spec["k"],
            l0=spec.get("l0"),
            batch_rows=spec["batch"],
            steps=spec["steps"],
            learning_rate=spec["learning_rate"],
            moments=spec["moments"],
        )
        self._warm()
        self.base = memory("VmRSS")
        self.data = Data(spec, space, rows)
        self.training = train.Training(self.c, self.data, self.sites, Ranks())
        self.now = self.training.begin(spec["seed"])
        self.r = spec["n"] * spec["d"] if self.data.U is None else self.data.U.shape[1]
        self.bytes_per_parameter = self.now.optimizer.bytes_per_parameter
        self.parameters = sum(w.numel() for w in self.now.optimizer.weights)
        state = int(self.parameters * self.bytes_per_parameter)
        self.state_bytes = state + 2 * spec["batch"] * self.data.row_bytes

    def _warm(self) -> None:
        """Compile and load what steps need, at a size of nothing: base memory then holds it."""
        small = {"features": 64, "k": 2, "batch_rows": 32, "aux_features": None, "aux_k": 4}
        c = self.c.model_copy(update=small)
        U = None if c.basis == "full" else torch.linalg.qr(torch.randn(8, 4)).Q
        target = torch.randn(*((1, 32, 4) if c.basis == "principal" else (2, 32, 4)))
        x = torch.randn(32, 8 if U is None else 4)
        about = {"U": U, "width": 4, "device": x.device, "digest": "", "scales_in": torch.ones(2)}
        batches = SimpleNamespace(batches=lambda *_: iter([(x, target)]), **about)
        training = train.Training(c, batches, 2, Ranks())
        now = training.begin(0)
        for now.aux in {0, min(8, c.aux)}:
            training.advance(now, x, target, 1e-3)

    def take(self, step: int) -> tuple[Tensor, ...]:
        """The rows of a step."""
        rows = min(source.rows for source in self.data.sources)  # projected ones may be more
        start = step % (rows // self.c.batch_rows) * self.c.batch_rows
        return self.data.parts(start, start + self.c.batch_rows)

    def step(self, parts: tuple[Tensor, ...]) -> None:
        """The trainer's own, with its look for dead features every LOG_EVERY steps."""
        now = self.now
        x, target = self.data.split(parts)
        rate = 0.0 if self.spec.get("hold") else self.training.rate(now.step)
        self.training.advance(now, x, target, rate)
        if now.step % train.LOG_EVERY == 0:
            now.aux = train.aux_size(now.silent, self.c)

    def spent(self, seconds: float) -> None:
        """Have the schedule's steps fill the time, by the mean step so far."""
        fill, step = self.spec.get("fill"), self.now.step
        if fill and seconds and step % REFIT_EVERY == 0:
            steps = max(step + REFIT_EVERY + 1, round(step * fill / seconds))
            self.training.c = self.c.model_copy(update={"steps": steps})

    def reconstruct(self, x: Tensor) -> tuple[Tensor, float]:
        """In all dimensions; BatchTopK by the largest scores of these rows, as in training."""
        W, U, mean, c = self.now.weights, self.data.U, self.data.mean, self.c
        y = x - mean if U is None else (x - mean) @ U
        h = model.pre_activations(y, W.W_enc, W.b_enc)
        r = model.gate_norms(W.W_dec, self.sites, c.gate == "snapshot")
        gates, blocks = r.shape[1], W.W_dec.transpose(0, 1)
        if c.activation == "jumprelu":
            below = W.log_threshold.exp()
        else:
            cut = pairs.largest(h, r, c.k * len(x) * gates, 0)[1]
            below = torch.nextafter(cut, torch.zeros(())).clamp(min=0)
        decoded, active = [], 0.0
        for s, block in enumerate(blocks):
            if s < gates:
                f = torch.where(h * r[:, s] > below, h, 0.0)
                active += (f > 0).sum(1).float().mean().item() / gates
            decoded.append(f @ block)
        again = torch.cat(decoded, 1) + W.b_dec
        return (again @ U.T if c.basis == "principal" and U is not None else again) + mean, active

    def dead(self, rows: int) -> float:
        """Share of features silent over the last `rows` rows."""
        return (self.now.silent >= rows).float().mean().item()

    def decoders(self) -> Tensor:
        """(F, n·d) full decoders."""
        W, U = self.now.weights.W_dec.flatten(1), self.data.U
        return W @ U.T if self.c.basis == "principal" and U is not None else W


if __name__ == "__main__":
    run(Ours)
