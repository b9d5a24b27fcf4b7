"""EleutherAI's sparsify: its SparseCoder (TopK) on the concatenated snapshots, its Adam step.

As its trainer steps: decoder rows to unit norm, loss = FVU, the gradient's part along each decoder
row removed, Adam with its learning-rate rule. Where Triton is missing it decodes by embedding_bag.
Activations are given as they are; b_dec starts at their mean, as its trainer sets it.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
from common import Rows, run
from sparsify import SparseCoder, SparseCoderConfig


class Sparsify:
    """A SparseCoder over n·d inputs."""

    def __init__(self, spec: dict[str, Any], rows: Rows) -> None:
        self.r, self.sites = rows.shape[1], spec["n"]
        self.versions = {"eai-sparsify": version("eai-sparsify")}
        config = SparseCoderConfig(num_latents=spec["features"], k=spec["k"])
        self.coder = SparseCoder(self.r, config)
        self.coder.b_dec.data = rows.mean()
        rate = spec["learning_rate"] or 2e-4 / (spec["features"] / 2**14) ** 0.5
        self.optimizer = torch.optim.Adam(self.coder.parameters(), lr=rate)
        self.note = f"learning rate {rate:.1e}"
        self.silent = torch.zeros(spec["features"], dtype=torch.long)

    def step(self, x: torch.Tensor) -> None:
        """As trainer.py does it, for one coder and no accumulation."""
        self.coder.set_decoder_norm_to_unit_norm()
        out = self.coder(x)
        out.fvu.backward()
        self.coder.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.silent += len(x)
        self.silent[out.latent_indices.flatten()] = 0

    def reconstruct(self, x: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Its forward pass."""
        out = self.coder(x)
        return out.sae_out, (out.latent_acts > 0).sum(1).float().mean().item()

    def dead(self, rows: int) -> float:
        """Share of features silent over the last `rows` rows."""
        return (self.silent >= rows).float().mean().item()


if __name__ == "__main__":
    run(Sparsify)
