"""Latent scaling: is a feature present where its decoder norm says otherwise (docs/method.md 4)?

Let f_i(x) be the activation of feature i at the snapshot p where its decoder W_i^p is largest. What
the other features leave unexplained at snapshot θ is y(x) = ã^θ − â^θ + f_i^θ(x) W_i^θ. Least
squares over held-out positions, along the peak's direction and along the best direction, gives

    β_i^θ = Σ_x f_i y·W_i^p / (‖W_i^p‖² Σ_x f_i²)        w_i^θ = Σ_x f_i y / Σ_x f_i²

β^θ/β^p is the test of Minder et al., which was made for models whose directions agree. It is near 0
for absent features, but also for features that are present in another direction, as concepts that
rotate are: a feature that it finds is present, but one that it does not find may have rotated.
‖w^θ‖/‖w^p‖, the *free* scaling, errs in the opposite way. It is near 0 only if f_i is linear in no
direction of the residual, but w also includes what the dictionary misses of other features that are
active together with f_i. So a norm of zero is wrong if the first is large, and right if the second
is small. ‖w‖² is computed over pairs of different folds k, l of the text's blocks, so that noise,
which would make any norm positive, has mean 0:

    ‖w‖² ≈ Σ_{k≠l} g_k·g_l / Σ_{k≠l} S_k S_l,    g_k = Σ_{x∈k} f_i y,  S_k = Σ_{x∈k} f_i²

and reported as a root with its sign. If a dictionary's decoders minimise only the reconstruction
error, then Σ_x f_i (ã − â) = 0 and w = W: norm and scaling agree by construction. The test measures
what the penalty on norms changes. The floor is the same with f_i's positions permuted.

References
----------
Minder et al. 2025, arXiv 2504.02922.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from scipy import sparse
from torch.nn.functional import embedding_bag

BLOCK_ENTRIES = 1 << 26  # entries of Σ f y in memory at a time


class Bags:
    """A sparse matrix on a device, to be multiplied with dense ones."""

    def __init__(self, matrix: sparse.csr_array, device: torch.device) -> None:
        self._bounds = matrix.indptr.astype(np.int64)
        self._starts = torch.from_numpy(self._bounds).to(device)
        self._columns = torch.from_numpy(matrix.indices.astype(np.int64)).to(device)
        self._values = torch.from_numpy(matrix.data.astype(np.float32)).to(device)

    def times(self, dense: torch.Tensor, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows [start, stop) of the matrix times `dense` (columns, d)."""
        last = len(self._bounds) - 1 if stop is None else stop
        low, high = self._bounds[start], self._bounds[last]
        if low == high:
            return dense.new_zeros(last - start, dense.shape[1])
        return embedding_bag(
            self._columns[low:high],
            dense,
            self._starts[start : last + 1] - low,
            mode="sum",
            per_sample_weights=self._values[low:high],
            include_last_offset=True,
        )


class Regressor:
    """Activations f (N, F), on which residuals are regressed; folds are consecutive positions.

    Parameters
    ----------
    bounds : (K + 1,) first position of each fold, then N.

    Attributes
    ----------
    squares : (K, F) Σ f² in each fold.
    """

    def __init__(self, f: sparse.csr_array, bounds: np.ndarray, device: torch.device) -> None:
        self.f = f
        self._bounds, self._device = bounds, device
        self._folds = list(pairwise(bounds))
        self._by_feature = [Bags(f[a:b].T.tocsr(), device) for a, b in self._folds]
        self.squares = self.overlap(f)

    def overlap(self, other: sparse.csr_array) -> torch.Tensor:
        """Σ f · other in each fold, (K, F)."""
        both = sparse.csr_array(self.f.multiply(other))
        sums = [np.asarray(both[a:b].sum(0, dtype=np.float64)).ravel() for a, b in self._folds]
        return torch.from_numpy(np.stack(sums)).to(self._device)

    def scalings(
        self, error: torch.Tensor, own: torch.Tensor, W: torch.Tensor, peak: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """β along the peak's decoder, and √‖w‖² with the sign of ‖w‖², both (F,).

        Parameters
        ----------
        error : (N, d) ã − â. own : (K, F) overlap with the features' own activations at the site.
        W : (F, d) decoders at the site. peak : (F, d) at each feature's peak.
        """
        F, d = W.shape
        K = len(self._folds)
        beta, free = torch.empty_like(own[0]), torch.empty_like(own[0])
        total = self.squares.sum(0)
        pairs = total.square() - self.squares.square().sum(0)
        step = max(1, BLOCK_ENTRIES // (K * d))
        for i in range(0, F, step):
            j = min(F, i + step)
            g = own[:, i:j, None].float() * W[i:j]
            for k, (first, last) in enumerate(self._folds):
                g[k] += self._by_feature[k].times(error[first:last], i, j)
            sum_, direction = g.sum(0), peak[i:j]
            beta[i:j] = (sum_ * direction).sum(1) / (total[i:j] * direction.square().sum(1))
            squared = sum_.double().square().sum(1) - g.square().sum((0, 2), dtype=torch.float64)
            free[i:j] = squared / pairs[i:j]
        return beta, free.sign() * free.abs().sqrt()


def fold_order(
    block: np.ndarray, folds: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """An order of positions, (N,), in which folds consist of whole blocks, and the folds' bounds.

    Parameters
    ----------
    block : (N,) of each position.
    """
    numbers, of = np.unique(block, return_inverse=True)
    folds = min(folds, len(numbers))
    fold = rng.permutation(np.arange(len(numbers)) % folds)[of]
    return np.argsort(fold, kind="stable"), np.r_[0, np.cumsum(np.bincount(fold))]
