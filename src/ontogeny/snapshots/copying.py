"""Passages that stand twice: the text that teaches induction, and the measures of it."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import cross_entropy


def double_passages(blocks: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Make a passage stand twice in a random share of the blocks.

    The passage has 1/8 to 1/2 of the block's length and a random place, so that the distance
    between the copies varies and position alone cannot find the first.

    Parameters
    ----------
    blocks : (B, context) token ids; not changed.
    share : probability of a block to be doubled.
    """
    blocks = blocks.copy()
    context = blocks.shape[1]
    for row in np.flatnonzero(rng.random(len(blocks)) < share):
        length = int(rng.integers(context // 8, context // 2 + 1))
        start = int(rng.integers(0, context - 2 * length + 1))
        blocks[row, start + length : start + 2 * length] = blocks[row, start : start + length]
    return blocks


def passages(held_out: np.ndarray, vocabulary: int, count: int, seed: int) -> dict[str, np.ndarray]:
    """Blocks whose second halves are compared by `measures`.

    Returns
    -------
    {'after_itself', 'after_another', 'random_twice'} : (count, context) token ids; the second
    halves of the first two are the same text, and the last is random tokens twice.
    """
    rng = np.random.default_rng(seed)
    half = held_out.shape[1] // 2
    count = min(count, len(held_out))
    text = held_out[:count, :half]
    other = np.roll(held_out[:count, half : 2 * half], 1, axis=0)
    noise = rng.integers(0, vocabulary, (count, half)).astype(held_out.dtype)
    return {
        "after_itself": np.concatenate([text, text], 1),
        "after_another": np.concatenate([other, text], 1),
        "random_twice": np.concatenate([noise, noise], 1),
    }


@torch.no_grad()
def measures(model: torch.nn.Module, blocks: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean losses in nats on second halves (their first token left out), and the two gains.

    copying_gain = loss after another passage − loss after itself (METHOD.md 5);
    random_gain = loss on the first copy of random tokens − loss on the second.
    """
    device = next(model.parameters()).device

    def loss(name: str) -> torch.Tensor:
        ids = torch.from_numpy(blocks[name].astype(np.int64)).to(device)
        logits = model(input_ids=ids).logits[:, :-1].float()
        return cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(
            len(ids), -1
        )

    half = next(iter(blocks.values())).shape[1] // 2
    itself = loss("after_itself")[:, half:].mean().item()
    another = loss("after_another")[:, half:].mean().item()
    noise = loss("random_twice")
    first, second = noise[:, : half - 1].mean().item(), noise[:, half:].mean().item()
    return {
        "loss_after_itself": itself,
        "loss_after_another": another,
        "copying_gain": another - itself,
        "random_first": first,
        "random_second": second,
        "random_gain": first - second,
    }
