"""Passages that occur twice: text that teaches induction, and measures of copying."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import cross_entropy


def double_passages(
    blocks: np.ndarray, share: float, distance: str, rng: np.random.Generator
) -> np.ndarray:
    """Double a passage in a random share of the blocks.

    Parameters
    ----------
    blocks : (B, context) token ids; not changed.
    share : probability that a block is doubled.
    distance : 'half' makes the passage half a block long, so the copies are always that far apart;
        'varied' makes it 1/8 to 1/2 of a block long, at a random position, so that no fixed
        distance finds the first copy.
    """
    blocks = blocks.copy()
    context = blocks.shape[1]
    half = context // 2
    for row in np.flatnonzero(rng.random(len(blocks)) < share):
        length = half if distance == "half" else int(rng.integers(context // 8, half + 1))
        start = int(rng.integers(0, context - 2 * length + 1))
        blocks[row, start + length : start + 2 * length] = blocks[row, start : start + length]
    return blocks


def passages(held_out: np.ndarray, vocabulary: int, count: int, seed: int) -> dict[str, np.ndarray]:
    """Blocks whose second halves are compared by `measures`.

    Returns
    -------
    {'itself', 'another', 'random'} : (count, context) token ids. The second halves of the first two
    are the same text, which follows itself or another text. The last is random tokens twice.
    {'itself_near', 'another_near'} : the same with passages of 3/8 of a block instead of half. A
    model that copies from one fixed distance gains nothing there, but one with induction does.
    """
    rng = np.random.default_rng(seed)
    count = min(count, len(held_out))
    half = held_out.shape[1] // 2
    noise = rng.integers(0, vocabulary, (count, half)).astype(held_out.dtype)
    blocks = {"random": np.concatenate([noise, noise], 1)}
    for name, length in (("", half), ("_near", half * 3 // 4)):
        text = held_out[:count, :length]
        other = np.roll(held_out[:count, half : half + length], 1, axis=0)
        blocks[f"itself{name}"] = np.concatenate([text, text], 1)
        blocks[f"another{name}"] = np.concatenate([other, text], 1)
    return blocks


@torch.no_grad()
def measures(model: torch.nn.Module, blocks: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean losses in nats on second halves, without their first token, and the gains.

    copying_gain = loss after another passage − loss after the same one, at a distance of half a
    block (docs/method.md 5); copying_gain_near is the same at 3/8; random_gain = loss on the first
    copy of random tokens − loss on the second.
    """
    device = next(model.parameters()).device

    def losses(name: str) -> tuple[float, float]:
        """Losses on the first and on the second half, each without its first token."""
        ids = torch.from_numpy(blocks[name].astype(np.int64)).to(device)
        logits = model(input_ids=ids).logits[:, :-1].float()
        loss = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        loss, half = loss.view(len(ids), -1), ids.shape[1] // 2
        return loss[:, : half - 1].mean().item(), loss[:, half:].mean().item()

    itself, another = losses("itself")[1], losses("another")[1]
    first, second = losses("random")
    return {
        "loss_after_itself": itself,
        "loss_after_another": another,
        "copying_gain": another - itself,
        "copying_gain_near": losses("another_near")[1] - losses("itself_near")[1],
        "random_first": first,
        "random_second": second,
        "random_gain": first - second,
    }
