"""Linear probes: can a feature's activity be read from a snapshot's activations (docs/method.md 4)?

A ridge discriminant predicts "f_i > 0" from ã^θ itself. It is fitted on half of the held-out blocks
and scored on the other half, both ways, by the area under the ROC curve, which is 1/2 at chance. It
finds what is linearly readable, whether or not the crosscoder reads it: a feature of the token is
readable at every snapshot whose embeddings differ, including the initial one. Hence the control
task of Hewitt and Liang: labels drawn again from the feature's rates by token, which are assigned
to other tokens of similar frequency. A probe is evidence about a feature only to the extent that
it reads the feature better than its control (its *selectivity*).

References
----------
Hewitt and Liang 2019, arXiv 1909.03368.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse

from ontogeny.analyses.presence.scaling import Bags

RIDGE = 1e-3  # share of the mean variance of a coordinate
AGAINST = 2048  # most positions that a probe's scores at active ones are ranked among
NEIGHBOURS = 8  # tokens of similar frequency that a control task permutes


def stratified(strata: np.ndarray, density: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` of the features, ascending, with all strata and densities in proportion.

    This is a systematic sample, from a random start, of the features by stratum and density.
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

    For each feature, tokens are rotated within groups of NEIGHBOURS of similar frequency. A
    position is active with the feature's rate at the token that takes the place of its own. A
    feature of a set of tokens becomes a feature of equally many others; a feature that does not
    depend on the token becomes chance.
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
        # A group of fewer than turn + 1 tokens rotates by less; a single token stays.
        shift = np.where(size > 1, 1 + (turn - 1) % np.maximum(size - 1, 1), 0)
        stand_in = first + (rank[token] - first + shift) % size
        columns.append(sparse.csc_array(rng.random((len(token), 1)) < rate[stand_in][:, None]))
    return sparse.csr_array(sparse.hstack(columns))


class Probes:
    """Linear probes for labels (N, M), fitted on either half of the positions.

    Parameters
    ----------
    middle : first position of the second half.
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
        """Area under the ROC curve of every label from activations (N, d), (M,): mean of both ways.

        NaN if a half has no active position, or only active ones.
        """
        return np.mean([self._way(a, fit) for fit in (0, 1)], axis=0)

    def _way(self, a: torch.Tensor, fit: int) -> np.ndarray:
        x = a[self._halves[fit]]
        mean = x.mean(0)
        x = x - mean
        gram = x.T @ x / len(x)
        # A constant snapshot has no variance; its weights are 0 whatever is added.
        gram.diagonal().add_((RIDGE * gram.diagonal().mean()).clamp_min(1e-30))
        # Σ (x − mean) over active positions; subtracting the labels' mean changes nothing.
        towards = self._bags[fit].times(x)
        weights = torch.linalg.solve(gram, (towards / self._count[fit].clamp_min(1)[:, None]).T)
        other = 1 - fit
        scores = (weights.T @ a[self._halves[other]].T).cpu().numpy()
        area = areas(scores, self._active[other], self._among[other])
        return np.where(self._count[fit].cpu().numpy() > 0, area, np.nan)


def areas(scores: np.ndarray, active: list[np.ndarray], among: np.ndarray) -> np.ndarray:
    """Area under the ROC curve for each row of scores (M, N), (M,).

    Parameters
    ----------
    active : for each row, the positions with the label.
    among : positions; those without the label represent all such positions.
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
    """How many values at `among` are below each value; ties count half."""
    ordered = np.sort(among)
    left, right = np.searchsorted(ordered, values), np.searchsorted(ordered, values, "right")
    return (left + right) / 2
