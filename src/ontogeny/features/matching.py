"""Stability: which features of one seed come again in another (METHOD.md 8)."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment


def match(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Match features one to one by the cosine of their stacked decoders.

    Parameters
    ----------
    first, second : (F1, N, D) and (F2, N, D) full decoders of the living features.

    Returns
    -------
    partner : (F1,) index into `second`, −1 where none is left. cosine : (F1,), NaN there.
    The assignment has the largest possible sum of cosines.
    """
    a, b = (x.reshape(len(x), -1) for x in (first, second))
    a = a / np.linalg.norm(a, axis=1, keepdims=True)
    b = b / np.linalg.norm(b, axis=1, keepdims=True)
    cosines = a @ b.T
    rows, columns = linear_sum_assignment(cosines, maximize=True)
    partner = np.full(len(a), -1)
    cosine = np.full(len(a), np.nan)
    partner[rows] = columns
    cosine[rows] = cosines[rows, columns]
    return partner, cosine
