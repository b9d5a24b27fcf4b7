"""Sizes of what pre-training keeps that cost formulas share with the stage."""

from __future__ import annotations

SAVE_EVERY = 100  # steps between training states, besides those at snapshots


def neox_tensors(layers: int) -> int:
    """Tensors of the GPT-NeoX model that is trained here: twelve a block and four outside."""
    return 12 * layers + 4
