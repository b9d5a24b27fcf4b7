"""Stability: which features of one seed come again in another (docs/method.md 8)."""

from __future__ import annotations

import numpy as np
import pandas as pd
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
    return assign(a @ b.T)


def assign(similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pair rows and columns one to one, with the largest possible sum.

    Parameters
    ----------
    similarity : (F1, F2).

    Returns
    -------
    partner : (F1,) column, −1 where none is left. value : (F1,) its similarity, NaN there.
    """
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    partner = np.full(len(similarity), -1)
    value = np.full(len(similarity), np.nan)
    partner[rows] = columns
    value[rows] = similarity[rows, columns]
    return partner, value


def shares(baselines: pd.DataFrame, matches: pd.DataFrame, threshold: float) -> dict[str, float]:
    """Shares of the living features that match, by what they are matched with.

    Parameters
    ----------
    baselines : the table of features/baselines.py. matches : that of the same crosscoder, empty of
        one seed.
    threshold : least cosine of a match.

    Returns
    -------
    token_means, random_rows; with several seeds beyond_token_means, the share matched in another
    seed of the features whose cosine with any token's mean is below the threshold.
    """
    values = {
        "token_means": float((baselines["token_matched_cosine"] >= threshold).mean()),
        "random_rows": float((baselines["row_matched_cosine"] >= threshold).mean()),
    }
    beyond = baselines.loc[baselines["token_cosine"] < threshold, "feature"]
    own = matches[matches["feature"].isin(beyond)]
    if len(own):
        values["beyond_token_means"] = float((own["cosine"] >= threshold).mean())
    return values
