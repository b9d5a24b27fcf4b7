"""Ids that fill blocks, as padding does."""

from __future__ import annotations

import numpy as np

MOST = 0.4  # share of rows from which one id is suspicious
TIMES = 3.0  # if it is this many times as frequent as the next
RUN = 16  # positions in a row that hold the same id
OF_RUNS = 0.1  # share of rows in such runs
EDGE = 4  # positions at a block's end or start that hold the same id
OF_EDGES = 0.25  # share of blocks with such an edge
LEAST = 0.02  # share of rows below which nothing is reported


def _in_runs(blocks: np.ndarray, number: int) -> float:
    """Share of all positions that are in runs of RUN or more of the same id, within blocks."""
    inside = np.pad(blocks == number, ((0, 0), (1, 1))).astype(np.int8)
    change = np.diff(inside, axis=1)
    lengths = np.nonzero(change == -1)[1] - np.nonzero(change == 1)[1]
    return float(lengths[lengths >= RUN].sum()) / blocks.size


def fillers(
    blocks: np.ndarray, left_out: list[int], padding: int | None = None
) -> list[tuple[int, float]]:
    """Ids that fill blocks and are not text, most frequent first.

    Frequent letters or spaces of ordinary text do not count. An id counts if it is most of the
    rows, if it comes in long runs, if blocks end or begin with it, or if it is named as the padding
    token.

    Parameters
    ----------
    blocks : (blocks, context) ids. left_out : ids without rows. padding : the tokenizer's id.

    Returns
    -------
    (id, share of the rows) for each.
    """
    count = np.bincount(blocks.ravel())
    count[[number for number in left_out if number < len(count)]] = 0
    rows = int(count.sum())
    if not rows:
        return []
    order = np.argsort(-count, kind="stable")
    found = []
    edges = (blocks[:, :EDGE], blocks[:, -EDGE:])
    for rank, number in enumerate(order[:8].tolist()):
        share = count[number] / rows
        if share < LEAST:
            break
        following = count[order[rank + 1]] if rank + 1 < len(order) else 0
        ends = max(float((edge == number).all(1).mean()) for edge in edges)
        if (
            number == padding
            or (share > MOST and count[number] > TIMES * following)
            or _in_runs(blocks, number) > OF_RUNS
            or ends > OF_EDGES
        ):
            found.append((int(number), float(share)))
    return found
