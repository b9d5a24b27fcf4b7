"""The pairs of a batch at which a feature acts, and the products of a step over them.

A step multiplies the feature activations f (B, F) with matrices four times: f W_dec decodes,
dE W_decᵀ is the gradient of f, fᵀ dE and dhᵀ x are the gradients of decoder and encoder. Two
classes say the same of them:

    Every   all B·F pairs: values are (B, F), each product is one of dense matrices
    Kept    P selected pairs: values are (P,), each product touches P rows alone

With a gate per site a feature acts at (token, feature, site): then a row of the decoder's products
is a (token, site), a column a (feature, site), and D wide; no (B, F, N) tensor ever exists.

On a CPU, Kept's weight gradients are products of a sparse (CSR) and a dense matrix, and selection a
partial sort: operators of their own that the compiler calls as they are. Elsewhere (`native=False`)
both are plain torch, which the compiler turns into Triton. Letters as in model.py.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

with warnings.catch_warnings():
    # The first CSR tensor of a process makes torch say that they are in beta; no user's business.
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0, 0], [], torch.zeros(0), (1, 1), check_invariants=False)


@dataclass
class Every:
    """All pairs of B tokens and F features, one gate a feature."""

    def of_feature(self, features: Tensor) -> Tensor:
        """Each pair's entry of (F, 1)."""
        return features.T

    def decode(self, f: Tensor, W_dec: Tensor, tokens: int) -> Tensor:
        """f W_dec, (B, O)."""
        return f @ W_dec

    def gradient(self, dE: Tensor, W_dec: Tensor) -> Tensor:
        """Gradient of f, dE W_decᵀ."""
        return dE @ W_dec.T

    def decoder_gradient(self, out: Tensor, f: Tensor, dE: Tensor) -> None:
        """Set `out`, (F, O), to fᵀ dE."""
        torch.mm(f.T, dE, out=out)

    def encoder_gradient(self, out: Tensor, dh: Tensor, x: Tensor) -> None:
        """Set `out`, (F, I), to dhᵀ x."""
        torch.mm(dh.T, x, out=out)

    def sums(self, values: Tensor) -> Tensor:
        """(F, 1): sums over tokens."""
        return values.sum(0)[:, None]


@dataclass
class Kept:
    """P pairs, in the order of (token, site, feature).

    Attributes
    ----------
    token, feature : (P,). row, column : (P,) token·N + site and feature·N + site.
    order : (P,) the pairs by (feature, site). features, sites : F and N (1: one gate for all).
    native : whether the CPU's own operators serve.
    """

    token: Tensor
    feature: Tensor
    row: Tensor
    column: Tensor
    order: Tensor
    features: int
    sites: int
    native: bool

    @classmethod
    def at(cls, position: Tensor, features: int, sites: int, native: bool) -> Kept:
        """The pairs at ascending positions (P,) of a flattened (B, N, F)."""
        row, feature = position // features, position % features
        column = feature * sites + row % sites
        if native:
            order = torch.ops.ontogeny.stable_order(column, features * sites)
        else:
            order = torch.argsort(column, stable=True)
        return cls(row // sites, feature, row, column, order, features, sites, native)

    def take(self, h: Tensor) -> Tensor:
        """Values of (B, F) at the pairs."""
        return h.flatten()[self.token * self.features + self.feature]

    def of_feature(self, features: Tensor) -> Tensor:
        """Each pair's entry of (F, N)."""
        return features.flatten()[self.column]

    def decode(self, f: Tensor, W_dec: Tensor, tokens: int) -> Tensor:
        """f W_dec, (B, O)."""
        W = W_dec.view(self.features * self.sites, -1)
        start = _starts(self.row, tokens * self.sites)[:-1]
        rows = torch.nn.functional.embedding_bag(
            self.column, W, start, mode="sum", per_sample_weights=f
        )
        return rows.view(tokens, -1)

    def gradient(self, dE: Tensor, W_dec: Tensor) -> Tensor:
        """Gradient of f, dE W_decᵀ. Compiled, no (P, D) tensor exists.

        Feature by feature: W_dec, the larger of the two, is then read once.
        """
        W = W_dec.view(self.features * self.sites, -1)
        row, column = self.row[self.order], self.column[self.order]
        df = (dE.reshape(-1, W.shape[1])[row] * W[column]).sum(1)
        return torch.empty_like(df).scatter(0, self.order, df)

    def decoder_gradient(self, out: Tensor, f: Tensor, dE: Tensor) -> None:
        """Set `out`, (F, O), to fᵀ dE."""
        rows = out.view(self.features * self.sites, -1)
        self._spread(rows, self.column, self.row, f, dE.reshape(-1, rows.shape[1]))

    def encoder_gradient(self, out: Tensor, dh: Tensor, x: Tensor) -> None:
        """Set `out`, (F, I), to dhᵀ x."""
        self._spread(out, self.feature, self.token, dh, x)

    def sums(self, values: Tensor) -> Tensor:
        """(F, N): sums over tokens."""
        size = self.features * self.sites
        if self.native:
            total = torch.ops.ontogeny.sums(self.column, values, size)
        else:
            total = values.new_zeros(size).index_add(0, self.column, values)
        return total.view(self.features, self.sites)

    def _spread(self, out: Tensor, into: Tensor, source: Tensor, values: Tensor, X: Tensor) -> None:
        """Set each row i of `out` to Σ values·X[source] over the pairs with into = i."""
        if self.native:
            start = _starts(into[self.order], len(out))
            torch.ops.ontogeny.segment_sums(out, start, source[self.order], values[self.order], X)
        else:
            out.zero_().index_add_(0, into, values[:, None] * X[source])


def _starts(ascending: Tensor, size: int) -> Tensor:
    """(size + 1,): where each of 0 … size − 1 begins in ascending indices, then their number."""
    bounds = torch.arange(size + 1, device=ascending.device)
    return torch.searchsorted(ascending, bounds)


def largest(h: Tensor, r: Tensor, count: int, native: bool) -> tuple[Tensor, Tensor]:
    """The `count` largest h·r of a batch.

    Parameters
    ----------
    h : (B, F). r : (F, N), or (F, 1) for one gate a feature.

    Returns
    -------
    (count,) ascending positions in a flattened (B, N, F), and () the smallest of these scores.
    """
    if native and r.shape[1] == 1:
        return torch.ops.ontogeny.largest(h, r, count)
    if native:
        return torch.ops.ontogeny.largest_of_sites(h, r, count)
    B, F = h.shape
    best, position = torch.topk((h * r[:, 0]).flatten(), min(count, B * F), sorted=False)
    N = r.shape[1]
    position = position // F * (N * F) + position % F
    within = torch.arange(B, device=h.device)[:, None] * (N * F) + torch.arange(F, device=h.device)
    for site in range(1, N):  # a site at a time: no (B, F, N)
        best = torch.cat([best, (h * r[:, site]).flatten()])
        position = torch.cat([position, (within + site * F).flatten()])
        best, chosen = torch.topk(best, min(count, len(best)), sorted=False)
        position = position[chosen]
    return position.sort().values, best.min()


PASS_ENTRIES = 1 << 16  # of (B, F), that a pass of selection has in the cache at a time

# ---- The CPU's operators. A batch's number of active pairs is at most a few per cent of B·F.


@torch.library.custom_op("ontogeny::largest", mutates_args=())
def _largest(h: Tensor, r: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Ascending positions of the `count` largest of h (B, F) times r (F, 1), and the smallest.

    A sample bounds the cut from below, so that one pass, some rows at a time, leaves a few
    candidates, and no second (B, F) exists.
    """
    hs, norms = h.numpy(), r.numpy().ravel()
    size, features = hs.size, len(norms)
    every = max(1, size // 16384) | 1
    sample = hs.ravel()[::every] * norms[np.arange(0, size, every) % features]
    rank = int(1.2 * count * sample.size / size + 50)
    bound = largest_but(sample, rank) if rank < sample.size else -np.inf
    position, values = _at_least(bound, hs, norms)
    if position.size < count:  # a sample unlike the whole, or values that are not finite
        position, values = np.arange(size), (hs * norms).ravel()
    chosen, cut = _select(values, count)
    return torch.from_numpy(position[chosen]), torch.from_numpy(np.array(cut))


def _at_least(
    bound: float | np.floating, hs: np.ndarray, norms: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Flat positions at which h·r reaches a bound, and these scores."""
    rows = max(1, PASS_ENTRIES // len(norms))
    score = np.empty((min(rows, len(hs)), len(norms)), hs.dtype)
    positions, values = [], []
    for start in range(0, len(hs), rows):
        part = np.multiply(hs[start : start + rows], norms, out=score[: len(hs) - start]).ravel()
        found = np.flatnonzero(part >= bound)
        positions.append(found + start * len(norms))
        values.append(part[found])
    return np.concatenate(positions), np.concatenate(values)


def _select(values: np.ndarray, count: int) -> tuple[np.ndarray, np.floating]:
    """Ascending indices of the `count` largest of (P,) values, and the smallest of these."""
    cut = largest_but(values, count - 1)
    chosen = np.flatnonzero(values >= cut)
    if chosen.size != count:  # ties at the cut, or values that are not finite
        chosen = np.sort(np.argpartition(values, values.size - count)[-count:])
    return chosen, cut


def largest_but(values: np.ndarray, rank: int) -> np.floating:
    """The largest value but `rank` larger ones."""
    return np.partition(values, values.size - 1 - rank)[values.size - 1 - rank]


@torch.library.custom_op("ontogeny::largest_of_sites", mutates_args=())
def _largest_of_sites(h: Tensor, r: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The same over h (B, F) times r (F, N), of candidates that a lower bound on the cut leaves."""
    F, N = r.shape
    hs, rs = h.numpy(), r.numpy()
    ranked = -np.sort(-rs, axis=1)
    # With the m-th largest norm of each feature, P pairs above a value make m·P scores above it.
    bound: float | np.floating = -np.inf
    for m in {max(1, N // 8), max(1, N // 4), max(1, N // 2), N}:
        pairs = -(-count // m)
        if pairs <= hs.size:
            reached = (hs * ranked[:, m - 1]).ravel()
            bound = np.maximum(bound, largest_but(reached, pairs - 1))
    token, feature = np.nonzero(hs * ranked[:, 0] >= bound)
    score = hs[token, feature][:, None] * rs[feature]  # (candidates, N)
    position = (token[:, None] * N + np.arange(N)) * F + feature[:, None]
    if score.size < count:  # values that are not finite
        score, position = np.zeros((count, 1), hs.dtype), np.arange(count)[:, None]
    chosen, cut = _select(score.ravel(), count)
    return torch.from_numpy(np.sort(position.ravel()[chosen])), torch.from_numpy(np.array(cut))


@_largest.register_fake
@_largest_of_sites.register_fake
def _(h: Tensor, r: Tensor, count: int) -> tuple[Tensor, Tensor]:
    return h.new_empty(count, dtype=torch.long), h.new_empty(())


@torch.library.custom_op("ontogeny::above", mutates_args=())
def above(h: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """Ascending positions in a flattened (B, N, F) at which h·r > t.

    Of any device, though elsewhere than on a CPU the host waits for the number.

    Parameters
    ----------
    h : (B, F). r : (F, N). t : (F,).
    """
    F, N = r.shape
    token, feature = torch.nonzero(h * r.amax(1) > t, as_tuple=True)
    passed = h[token, feature][:, None] * r[feature] > t[feature][:, None]
    pair, site = torch.nonzero(passed, as_tuple=True)
    position = (token[pair] * N + site) * F + feature[pair]
    return position if N == 1 else position.sort().values


@above.register_fake
def _(h: Tensor, r: Tensor, t: Tensor) -> Tensor:
    number = torch.library.get_ctx().new_dynamic_size()
    return h.new_empty(number, dtype=torch.long)


@torch.library.custom_op("ontogeny::stable_order", mutates_args=())
def _stable_order(index: Tensor, size: int) -> Tensor:
    """The order that sorts (P,) indices below `size`, equal ones as they come."""
    P = len(index)
    by_pair = scipy.sparse.csr_array(
        (np.arange(P), index.numpy(), np.arange(P + 1)), shape=(P, size)
    )
    return torch.from_numpy(by_pair.tocsc().data)


@_stable_order.register_fake
def _(index: Tensor, size: int) -> Tensor:
    return torch.empty_like(index)


@torch.library.custom_op("ontogeny::segment_sums", mutates_args=("out",))
def _segment_sums(out: Tensor, start: Tensor, source: Tensor, values: Tensor, X: Tensor) -> None:
    """Set row i of `out` to Σ values·X[source] over the pairs from start_i to start_i+1.

    Into memory that is there: fresh pages for a gradient would cost more than its sums.
    """
    size = (len(out), len(X))
    sums = torch.sparse_csr_tensor(start.int(), source.int(), values, size, check_invariants=False)
    torch.addmm(out, sums, X, beta=0, out=out)


@torch.library.custom_op("ontogeny::sums", mutates_args=())
def _sums(index: Tensor, values: Tensor, size: int) -> Tensor:
    """(size,): sums of values by index, always in the same order."""
    total = np.bincount(index.numpy(), values.numpy(), size)
    return torch.from_numpy(total).to(values.dtype)


@_sums.register_fake
def _(index: Tensor, values: Tensor, size: int) -> Tensor:
    return values.new_empty(size)
