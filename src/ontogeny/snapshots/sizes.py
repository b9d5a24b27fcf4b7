"""Sizes of what pre-training keeps, shared by the stage and the formulas of its cost."""

from __future__ import annotations

from collections.abc import Iterable

SAVE_EVERY = 100  # steps between training states, besides those at snapshots

LEAST_LEG = 500  # steps of the shortest job of a pre-training, which has to be worth its start
LEGS = 4  # most jobs of a pre-training


def leg_ends(steps: int, chosen: Iterable[int]) -> list[int]:
    """Steps at which the jobs of a pre-training end, ascending: the last, half of it, a quarter ...

    Snapshots are used as soon as the job that reaches them has ended, and early ones are closest
    together. A job that would reach no snapshot is left out. The ends do not depend on any single
    snapshot, so adding one does not change the other jobs.

    Parameters
    ----------
    steps : of the whole training. chosen : steps of the snapshots.
    """
    ends = [steps // 2**n for n in reversed(range(LEGS))]
    ends = [end for end in ends if end >= LEAST_LEG or end == steps]
    return sorted({*(min(end for end in ends if end >= step) for step in chosen), steps})


LOSS_BLOCKS, LOSS_TOKENS = 8, 4096  # most held-out text for a snapshot's first loss


def loss_blocks(held_out: int, context: int) -> int:
    """Blocks of held-out text on which a snapshot's loss is measured when it is read."""
    return max(1, min(LOSS_BLOCKS, LOSS_TOKENS // context, held_out))


def neox_tensors(layers: int) -> int:
    """Tensors of the GPT-NeoX model that is trained here: twelve per block, four outside."""
    return 12 * layers + 4
