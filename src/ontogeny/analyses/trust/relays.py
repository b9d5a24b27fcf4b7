"""Relays: one concept of the model that several learned features represent in turn.

A feature dies, and at nearly the same snapshot another one is born whose decoder is parallel and
which is active on the same tokens. The death and the birth then belong to the dictionary, not to
the model: the concept continued. The paper's penalty favours this, since it is taken over all
snapshots together and grows with the square of how often a feature is active (docs/method.md 3).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import sparse

from ontogeny.features.histories import births, deaths

NEAR = 2  # most snapshots between the death and the birth
COLUMNS = ["falling", "rising", "death", "birth", "cosine", "overlap"]


def find_relays(
    decoders: np.ndarray,
    present: np.ndarray,
    f: sparse.csc_array,
    cosine: float,
    overlap: float,
) -> pd.DataFrame:
    """Pairs of features in which one takes over from the other.

    Parameters
    ----------
    decoders : (F, n, d). present : (F, n) bool, the features' lives.
    f : (rows, F) their activations.
    cosine : least cosine of the decoders: of the falling feature before its death with the rising
        one at its birth, or of both before the death, or of both at the birth.
    overlap : least correlation of their activations over rows where either is active.

    Returns
    -------
    falling, rising : numbers of the features. death, birth : snapshots, from 0. cosine, overlap.
    """
    unit = decoders / np.maximum(np.linalg.norm(decoders, axis=2), 1e-12)[:, :, None]
    died, born = deaths(present), births(present)
    n = present.shape[1]
    known: dict[tuple[int, int], float] = {}
    rows = []
    for s in range(1, n):
        falling = np.flatnonzero(died[:, s])
        for t in range(max(1, s - NEAR), min(n, s + NEAR + 1)):
            rising = np.flatnonzero(born[:, t])
            before = unit[falling, s - 1]
            most = np.maximum.reduce(
                [
                    before @ unit[rising, t].T,
                    before @ unit[rising, s - 1].T,
                    unit[falling, t] @ unit[rising, t].T,
                ]
            )
            for i, j in np.argwhere(most >= cosine):
                pair = int(falling[i]), int(rising[j])
                if pair[0] == pair[1]:
                    continue  # the feature itself returns
                if pair not in known:
                    known[pair] = correlation(f, *pair)
                if known[pair] >= overlap:
                    rows.append((*pair, s, t, float(most[i, j]), known[pair]))
    return pd.DataFrame(rows, columns=COLUMNS)


def correlation(f: sparse.csc_array, first: int, second: int) -> float:
    """Correlation of two features' activations over the rows where either is active.

    0 if one of them does not vary, or if fewer than five rows are left.
    """
    a, b = (f[:, [i]].toarray()[:, 0] for i in (first, second))
    either = (a > 0) | (b > 0)
    a, b = a[either], b[either]
    if len(a) < 5 or not a.std() or not b.std():
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])
