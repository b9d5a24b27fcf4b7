"""Stability: which features of one seed are found again in another (docs/method.md 8)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from ontogeny.features.sizes import ALL_PAIRS, MATCHED_AT_A_TIME, NEAREST


def match(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Match features one to one by the cosine of their stacked decoders.

    Parameters
    ----------
    first, second : (F1, M) and (F2, M) decoders of the living features, over all sites, in any
        orthonormal coordinates that they share. Large arrays are overwritten.

    Returns
    -------
    partner : (F1,) index into `second`, −1 if none is left. cosine : (F1,), NaN in that case.
    The assignment maximises the sum of cosines. If either has more than ALL_PAIRS features, only
    pairs are considered that are among each other's NEAREST and have a cosine above 0.
    """
    if max(len(first), len(second)) <= ALL_PAIRS:
        a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (first, second))
        return assign(a @ b.T)
    return _assign_near(len(first), len(second), *_mutual(first, second))


def _mutual(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs that are among each other's nearest: rows, columns and cosines, (P,) each.

    One pass over the cosines, some rows at a time, keeps the NEAREST of each row and column.
    """
    import torch  # loading torch takes seconds, and nothing else here needs it

    a, b = torch.from_numpy(first), torch.from_numpy(second)
    for x in (a, b):
        torch.nn.functional.normalize(x, out=x)
    k, width = min(NEAREST, len(b)), len(b)
    best = torch.full((min(NEAREST, len(a)), width), -2.0)  # nearest rows of each column so far
    rows, columns, cosines = [], [], []
    for start in range(0, len(a), MATCHED_AT_A_TIME):
        cosine = a[start : start + MATCHED_AT_A_TIME] @ b.T
        value, column = cosine.topk(k, dim=1)
        rows.append(torch.arange(start, start + len(cosine)).repeat_interleave(k))
        columns.append(column.flatten())
        cosines.append(value.flatten())
        best = torch.cat([best, cosine]).topk(len(best), dim=0).values
    row, column, cosine = torch.cat(rows), torch.cat(columns), torch.cat(cosines)
    near = (cosine >= best[-1][column]) & (cosine > 0)
    return row[near].numpy(), column[near].numpy(), cosine[near].numpy()


def _assign_near(
    count: int, others: int, row: np.ndarray, column: np.ndarray, value: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Like `assign`, but over a list of pairs; a row without a partner contributes 0.

    Parameters
    ----------
    count, others : numbers of rows and columns. row, column, value : (P,), values above 0.
    """
    # Each row may also take a private column, which means no partner. No weight is 0.
    own = np.arange(count)
    cost = np.r_[2.0 - value.astype(float), np.full(count, 2.0)]
    places = np.r_[row, own], np.r_[column, others + own]
    weights = csr_array((cost, places))
    chosen = min_weight_full_bipartite_matching(weights)[1]
    there = chosen < others
    return np.where(there, chosen, -1), np.where(there, 2.0 - weights[own, chosen], np.nan)


def assign(similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pair rows and columns one to one, with the largest possible sum.

    Parameters
    ----------
    similarity : (F1, F2).

    Returns
    -------
    partner : (F1,) column, −1 if none is left. value : (F1,) its similarity, NaN in that case.
    """
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    partner = np.full(len(similarity), -1)
    value = np.full(len(similarity), np.nan)
    partner[rows] = columns
    value[rows] = similarity[rows, columns]
    return partner, value


def shares(baselines: pd.DataFrame, matches: pd.DataFrame, threshold: float) -> dict[str, float]:
    """Shares of the living features that match each baseline, and another seed.

    Parameters
    ----------
    baselines : the table of features/baselines.py. matches : of the same crosscoder; empty with
        one seed.
    threshold : least cosine of a match.

    Returns
    -------
    token_means, random_rows; with several seeds also beyond_token_means: among the features whose
    cosine with every token's mean is below the threshold, the share matched in another seed.
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
