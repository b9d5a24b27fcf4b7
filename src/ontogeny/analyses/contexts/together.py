"""Which features are active together: at the same positions of the first held-out text.

For features i and j, with n_i the number of positions at which i is active and n_ij the number at
which both are,

    share_ij = n_ij / (n_i + n_j − n_ij)

is the share of the positions with either at which both are active (Jaccard's index). Pairs that
share fewer than LEAST positions are left out, since of two rare features chance makes a large
share.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from ontogeny.features.held_out import MOST_POSITIONS

LEAST = 5  # positions that a pair has to share
ENTRIES = 1 << 23  # pairs of features counted at a time


class Together:
    """Collects where F features are active, and finds each one's companions.

    Parameters
    ----------
    most : number of positions that count, the first ones.
    """

    def __init__(self, features: int, most: int = MOST_POSITIONS) -> None:
        self.features, self.most = features, most
        self._parts = [np.zeros((2, 0), np.int32)]

    def add(self, row: np.ndarray, feature: np.ndarray) -> None:
        """Add pairs of a position and a feature that is active there, (M,) each."""
        counted = row < self.most
        self._parts.append(np.stack([row[counted], feature[counted]]).astype(np.int32))

    def nearest(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k features that share most with each, the largest share first; ties by number.

        Returns
        -------
        numbers (F, k) and shares (F, k); where there are fewer than k, the rest is 0.
        """
        row, feature = np.concatenate(self._parts, 1)
        shape = (int(row.max(initial=-1)) + 1, self.features)
        active = sparse.csc_array((np.ones(len(row), np.int32), (row, feature)), shape)
        count = np.bincount(feature, minlength=self.features)
        numbers = np.zeros((self.features, k), np.uint32)
        shares = np.zeros((self.features, k), np.float32)
        step = max(1, ENTRIES // max(1, self.features))
        for low in range(0, self.features, step):
            both = (active[:, low : low + step].T @ active).tocoo()
            i, j, n = both.row + low, both.col, both.data
            kept = (i != j) & (n >= LEAST)
            i, j, n = i[kept], j[kept], n[kept]
            share = n / (count[i] + count[j] - n)
            order = np.lexsort((j, -share, i))
            first = np.searchsorted(i[order], i[order])  # of the same feature
            rank = np.arange(len(order)) - first
            best, rank = order[rank < k], rank[rank < k]
            numbers[i[best], rank], shares[i[best], rank] = j[best], share[best]
        return numbers, shares
