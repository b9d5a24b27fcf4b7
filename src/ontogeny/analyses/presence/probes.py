"""Linear probes: can a feature's activity be read from a snapshot's activations (docs/method.md 4)?

The ridge discriminant of "f_i > 0" from ã^θ itself, fitted on half of the held-out blocks and
scored on the other half, both ways: the area under the ROC curve, 1/2 at chance. It finds what is
linearly readable, whether or not the crosscoder reads it there: a feature of the token is readable
at every snapshot whose embeddings differ, the initial one included. Hence the control task of
Hewitt and Liang: the feature's rates by token, given to other tokens of like frequency and drawn
again. A probe says something of the feature as far as it reads it better than that (its
*selectivity*).

References
----------
Hewitt and Liang 2019, arXiv 1909.03368.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse

from ontogeny.analyses.presence.scaling import Bags

RIDGE = 1e-3  # of the mean variance of a coordinate
AGAINST = 2048  # positions that a probe's scores at active ones are ranked among, at most
NEIGHBOURS = 8  # tokens of like frequency that a control task swaps


def stratified(strata: np.ndarray, density: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` of the features, ascending; every stratum and density in its share.

    A systematic sample, from a random start, of the features in order of stratum and density.
    """
    order = np.lexsort((density, strata))
    if len(order) <= count:
        return np.arange(len(order))
    start = np.random.default_rng(seed).random()
    return np.sort(order[np.floor((start + np.arange(count)) * len(order) / count).astype(int)])


def control_task(
    labels: sparse.csr_array, token: np.ndarray, rng: np.random.Generator
) -> sparse.csr_array:
    """Labels (N, m) that depend on the token as the given ones do, but on other tokens.

    For each feature the tokens are turned within groups of NEIGHBOURS of like frequency; a position
    is active with the rate that the feature has at the token which now stands for its own. A
    feature of a set of tokens becomes a set of as many others; one that tokens tell nothing of
    becomes chance.
    """
    counts = np.bincount(token)
    seen = np.flatnonzero(counts)
    by_frequency = seen[np.argsort(-counts[seen], kind="stable")]
    rank = np.empty(len(counts), np.int64)
    rank[by_frequency] = np.arange(len(by_frequency))
    V = len(by_frequency)
    first = rank[token] // NEIGHBOURS * NEIGHBOURS
    size = np.minimum(NEIGHBOURS, V - first)
    by_token = sparse.csr_array((np.ones(len(token)), (rank[token], np.arange(len(token)))))
    rates = sparse.csc_array(by_token @ labels.astype(np.float64))
    frequency = counts[by_frequency]
    columns = []
    for j in range(labels.shape[1]):
        rate = rates[:, [j]].toarray().ravel() / frequency
        turn = 1 + rng.integers(NEIGHBOURS - 1)
        # A group of fewer than turn + 1 tokens turns less, and one token alone stays.
        shift = np.where(size > 1, 1 + (turn - 1) % np.maximum(size - 1, 1), 0)
        stand_in = first + (rank[token] - first + shift) % size
        columns.append(sparse.csc_array(rng.random((len(token), 1)) < rate[stand_in][:, None]))
    return sparse.csr_array(sparse.hstack(columns))


class Probes:
    """Linear probes of labels (N, M), fitted on either half of the positions.

    Parameters
    ----------
    middle : where the second half begins.
    """

    def __init__(
        self, labels: sparse.csr_array, middle: int, seed: int, device: torch.device
    ) -> None:
        rng = np.random.default_rng(seed)
        N = labels.shape[0]
        self._halves = (slice(0, middle), slice(middle, N))
        self._bags, self._count, self._active, self._among = [], [], [], []
        for half in self._halves:
            own = labels[half]
            by_label = own.T.tocsr()
            self._bags.append(Bags(by_label, device))
            self._count.append(torch.from_numpy(np.diff(by_label.indptr)).float().to(device))
            self._active.append(np.split(by_label.indices, by_label.indptr[1:-1]))
            self._among.append(rng.permutation(own.shape[0])[:AGAINST])

    def score(self, a: torch.Tensor) -> np.ndarray:
        """Area under the ROC curve of every label from activations (N, d), (M,): both ways' mean.

        NaN where a half has no active position, or nothing else.
        """
        return np.mean([self._way(a, fit) for fit in (0, 1)], axis=0)

    def _way(self, a: torch.Tensor, fit: int) -> np.ndarray:
        x = a[self._halves[fit]]
        mean = x.mean(0)
        x = x - mean
        gram = x.T @ x / len(x)
        # A constant snapshot has no variance; its weights are 0 whatever is added.
        gram.diagonal().add_((RIDGE * gram.diagonal().mean()).clamp_min(1e-30))
        # Σ (x − mean) over active positions; less the labels' mean makes no difference.
        towards = self._bags[fit].times(x)
        weights = torch.linalg.solve(gram, (towards / self._count[fit].clamp_min(1)[:, None]).T)
        other = 1 - fit
        scores = (weights.T @ a[self._halves[other]].T).cpu().numpy()
        area = areas(scores, self._active[other], self._among[other])
        return np.where(self._count[fit].cpu().numpy() > 0, area, np.nan)


def areas(scores: np.ndarray, active: list[np.ndarray], among: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each row of scores (M, N), (M,).

    Parameters
    ----------
    active : by row, the positions with the label.
    among : positions of which those without the label stand for all of them.
    """
    area = np.full(len(scores), np.nan)
    chosen = np.zeros(scores.shape[1], bool)
    chosen[among] = True
    for j, at in enumerate(active):
        inside = at[chosen[at]]
        rest = len(among) - len(inside)
        if len(at) and rest:
            own = scores[j, at]
            below = _rank(own, scores[j, among]) - _rank(own, scores[j, inside])
            area[j] = below.mean() / rest
    return area


def _rank(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """How many of `among` lie below each value; ties count half."""
    ordered = np.sort(among)
    left, right = np.searchsorted(ordered, values), np.searchsorted(ordered, values, "right")
    return (left + right) / 2
