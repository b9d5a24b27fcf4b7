"""The paper's library, llamascopium: its Crosscoder, JumpReLU, and its trainer's step in float32.

The sparsity loss is `tanh`: `tanh-quad`, which the paper names, raises for crosscoders in this
release (its loss has lost the axis of heads that the token mask asks for). Initialised as its
defaults are for crosscoders, the encoder as the decoder's transpose. It has no centring; the rows
it is given have each site's mean taken off. A spec may also say

    active      features that a token has active at first: all thresholds begin where they leave so
                many, in place of 0.1
    hold        true: a learning rate of 0, so that L0 stays as it is
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from common import Rows, run
from llamascopium.models.crosscoder import Crosscoder, CrosscoderConfig

JUDGED_ROWS = 64  # that thresholds are chosen on
HALVINGS = 14


class Llamascopium:
    """A crosscoder with a head a snapshot."""

    def __init__(self, spec: dict[str, Any], rows: Rows) -> None:
        n, d = spec["n"], spec["d"]
        self.r, self.sites, self.shape = n * d, n, (n, d)
        self.versions = {"llamascopium": version("llamascopium")}
        self.mean = rows.mean()
        self.heads = [f"snapshot{i}" for i in range(n)]
        config = CrosscoderConfig(
            hook_points=self.heads,
            d_model=d,
            expansion_factor=spec["features"] / d,
            act_fn="jumprelu",
            device="cpu",
            dtype=torch.float32,
        )
        self.coder = Crosscoder(config)
        bound = 1 / d**0.5
        self.coder.init_parameters(
            encoder_uniform_bound=bound,
            decoder_uniform_bound=bound,
            init_log_jumprelu_threshold_value=float(np.log(0.1)),
        )
        self.coder.set_decoder_to_fixed_norm(spec["decoder_norm"], force_exact=True)
        self.coder.init_encoder_with_decoder_transpose()
        if spec.get("active"):
            self._begin_with(spec["active"], torch.from_numpy(rows.read(0, JUDGED_ROWS)))
        rate = 0.0 if spec.get("hold") else spec["learning_rate"]
        groups = [
            group | ({"lr": 0.1 * rate} if group["name"] == "jumprelu" else {})
            for group in self.coder.get_parameters()
        ]
        self.optimizer = torch.optim.Adam(groups, lr=rate)
        self.sparsity, self.steps = spec["sparsity"], 0

    def _begin_with(self, active: float, x: torch.Tensor) -> None:
        """Choose the one threshold that leaves so many features active, by halving."""
        log_threshold = self.coder.activation_function.log_jumprelu_threshold
        low, high = -5.0, 10.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            log_threshold.data.fill_(middle)
            with torch.no_grad():
                more = self.reconstruct(x)[1] > active
            low, high = (middle, high) if more else (low, middle)

    def _batch(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = (x - self.mean).view(len(x), *self.shape).unbind(1)
        named = dict(zip(self.heads, parts, strict=True))
        return named | {"tokens": torch.zeros(len(x), dtype=torch.long)}  # it counts them

    def step(self, x: torch.Tensor) -> None:
        """compute_loss, backward, gradient clipping at infinity (for its norm alone), Adam."""
        self.steps += 1
        out = self.coder.compute_loss(
            self._batch(x),
            sparsity_loss_type="tanh",
            tanh_stretch_coefficient=4.0,
            l1_coefficient=min(1.0, self.steps / 100) * self.sparsity,
            return_aux_data=True,
        )
        out["loss"].backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def reconstruct(self, x: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Its encode and decode."""
        stacked, *_ = self.coder.prepare_input(self._batch(x))
        f = self.coder.encode(stacked)
        again = self.coder.decode(f).flatten(1) + self.mean
        return again, (f > 0).sum(2).float().mean().item()


if __name__ == "__main__":
    run(Llamascopium)
