"""What both the atlas and `ontogeny show` report about a feature: classes, nearest features."""

from __future__ import annotations

import numpy as np
import torch

KINDS = ("current_token", "previous_token", "induction", "context", "position")
"""Kinds of feature, in the order in which they are shown; a feature without a kind is 'none'."""
UNTESTED = "untested"  # cause of features that are active at too few of the sampled positions
CLASSES = ("initialisation", "emergent", "transient", "reappearing")
DOUBTS = {
    "relay": "in a relay: another feature carries the same concept before or after it",
    "silent_birth": "its birth is silent: its activation can be read before it",
    "silent_death": "its death is silent: its activation can still be read after it",
}
"""Why a feature's births and deaths are doubtful, by column of the trust table."""
NEAR_ENTRIES = 1 << 24  # cosines in memory at a time


def nearest(
    stacked: torch.Tensor, k: int, of: torch.Tensor | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """For each feature, the features whose stacked decoders have the largest cosine with its own.

    Parameters
    ----------
    stacked : (L, R). of : (M,) numbers of the features to look up; all if not given.

    Returns
    -------
    numbers and cosines, (M, min(k, L − 1)), the nearest first.
    """
    unit = torch.nn.functional.normalize(stacked.float(), dim=1)
    L = len(unit)
    parts = (torch.arange(L) if of is None else of).split(max(1, NEAR_ENTRIES // L))
    best = []
    for part in parts:
        cosines = unit[part] @ unit.T
        cosines[torch.arange(len(part)), part] = -2
        best.append(cosines.topk(min(k, L - 1), dim=1))
    return (
        torch.cat([found.indices for found in best]).numpy(),
        torch.cat([found.values for found in best]).numpy(),
    )
