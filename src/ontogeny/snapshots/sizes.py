"""Sizes of what pre-training keeps that cost formulas share with the stage."""

from __future__ import annotations

from collections.abc import Iterable

SAVE_EVERY = 100  # steps between training states, besides those at snapshots

LEAST_LEG = 500  # steps of the shortest job of a pre-training, which pays for its start
LEGS = 4  # jobs of a pre-training, at most


def leg_ends(steps: int, chosen: Iterable[int]) -> list[int]:
    """Steps at which the jobs of a pre-training end, ascending: the last, its half, its quarter ...

    Snapshots are used as soon as the job that reaches them has ended, and early ones are closest. A
    job that would reach no snapshot is left out. Where jobs end depends on no single snapshot, so
    that one more changes none of the others'.

    Parameters
    ----------
    steps : of the whole training. chosen : those of the snapshots.
    """
    ends = [steps // 2**n for n in reversed(range(LEGS))]
    ends = [end for end in ends if end >= LEAST_LEG or end == steps]
    return sorted({*(min(end for end in ends if end >= step) for step in chosen), steps})


LOSS_BLOCKS, LOSS_TOKENS = 8, 4096  # of held-out text that a snapshot's first look reads, at most


def loss_blocks(held_out: int, context: int) -> int:
    """Blocks of held-out text that a snapshot's loss is measured on as it is read."""
    return max(1, min(LOSS_BLOCKS, LOSS_TOKENS // context, held_out))


def neox_tensors(layers: int) -> int:
    """Tensors of the GPT-NeoX model that is trained here: twelve a block and four outside."""
    return 12 * layers + 4
