"""A whole training by the paper's library: its Initializer, its Trainer, its loss.

    python llamascopium_training.py SPEC       (in the library's environment)

SPEC is JSON: `folder`, where rows.npy lies, (rows, sites·d) float32 with means taken off, and where
config.json and sae_weights.safetensors go, the library's own folder; seed, sites, features,
batch_rows, steps, learning_rate, threads, sparsity (λ).

Two places of this release stop a crosscoder's training and are mended here, nothing else.
The paper's penalty, `tanh-quad`, is one number, and its loss asks which axes that number has
(`axes_of_any`). Its trainer asks the first batch for a mask of tokens, which a crosscoder's loss
refuses (`WholeBatches`).
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llamascopium.initializer import Initializer, InitializerConfig
from llamascopium.models.crosscoder import Crosscoder, CrosscoderConfig
from llamascopium.trainer import Trainer, TrainerConfig


def axes_of_any(
    axes: Callable[[torch.Tensor], tuple[str, ...]],
) -> Callable[[torch.Tensor], tuple[str, ...]]:
    """Their axes of a loss, and none of a loss that is one number."""
    return lambda loss: axes(loss) if loss.ndim else ()


class WholeBatches(Trainer):
    """Their trainer, which sees a mask where it counts the first batch and nowhere else."""

    def _initialize_trainer(
        self, sae: Any, activation_stream: Any, wandb_logger: Any = None
    ) -> None:
        batch = next(iter(activation_stream))
        masked = batch | {"mask": torch.ones_like(batch["tokens"], dtype=torch.bool)}
        super()._initialize_trainer(sae, [masked], wandb_logger)


class Stream:
    """Batches of the rows in order, over and over, as the library wants them."""

    def __init__(self, x: np.ndarray, heads: list[str], batch: int) -> None:
        self._x, self._heads, self._batch = x, heads, batch

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        at, count = 0, len(self._x)
        tokens = torch.zeros(self._batch, dtype=torch.long)
        while True:
            rows = torch.from_numpy(self._x[np.arange(at, at + self._batch) % count])
            at += self._batch
            parts = rows.view(self._batch, len(self._heads), -1).unbind(1)
            named = dict(zip(self._heads, parts, strict=True))
            yield named | {"tokens": tokens}


def main(spec: dict[str, Any]) -> None:
    """Train, and save."""
    torch.set_num_threads(spec["threads"])
    torch.manual_seed(spec["seed"])
    folder = Path(spec["folder"])
    x = np.load(folder / "rows.npy")
    heads = [f"snapshot{i}" for i in range(spec["sites"])]
    width = x.shape[1] // spec["sites"]
    Crosscoder.specs.loss = staticmethod(axes_of_any(Crosscoder.specs.loss))
    stream = Stream(x, heads, spec["batch_rows"])
    config = CrosscoderConfig(
        hook_points=heads,
        d_model=width,
        expansion_factor=spec["features"] / width,
        act_fn="jumprelu",
        norm_activation="inference",  # the rows are scaled
        device="cpu",
        dtype=torch.float32,
    )
    initial = InitializerConfig(
        decoder_uniform_bound=1 / width**0.5,
        encoder_uniform_bound=1 / width**0.5,
        init_log_jumprelu_threshold_value=math.log(0.1),
        grid_search_init_norm=True,
    )
    coder = Initializer(initial).initialize_sae_from_config(config, activation_stream=stream)
    trainer = TrainerConfig(
        l1_coefficient=spec["sparsity"],
        sparsity_loss_type="tanh-quad",
        amp_dtype=torch.float32,
        lr=spec["learning_rate"],
        lr_warm_up_steps=max(1, round(0.02 * spec["steps"])),
        jumprelu_lr_factor=0.1,
        total_training_tokens=spec["steps"] * spec["batch_rows"],
        skip_metrics_calculation=True,
        n_checkpoints=0,
        exp_result_path=str(folder / "library"),
    )
    WholeBatches(trainer).fit(coder, stream)
    coder.save_pretrained(folder)
    coder.cfg.save_hyperparameters(folder)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
