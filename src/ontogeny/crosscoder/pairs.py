"""The candidates of a batch, which are pairs of a token and a feature, and a step's products.

A candidate is a pair with at least one open gate. If a feature has G gates, its activations at the
pair are f (G,), some of which may be 0. A step needs four products over candidates:

    decode            f W_dec          for each block of the decoder, (S, B, D)
    gradient          E W_decᵀ         the gradient of f
    decoder_gradient  fᵀ E
    encoder_gradient  dhᵀ x            dh is summed over gates first: one value per candidate

Each product is a sum of matrix rows over the candidates of a token or of a feature. Candidates are
sorted for it, so that no product needs atomic additions, and no tensor of tokens × features × sites
exists. On a CPU the number of candidates is that of the batch, and scipy and NumPy are used where
they are faster. On other devices shapes are fixed: `room` candidates are processed, open or not,
and the host never waits for the device. Letters as in model.py.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

with warnings.catch_warnings():
    # At the first CSR tensor of a process torch warns that they are in beta; users need not know.
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0, 0], [], torch.zeros(0), (1, 1), check_invariants=False)


def of_any_size(device: torch.device) -> bool:
    """Whether the number of candidates may vary by batch: only if the host need not wait for it."""
    return device.type == "cpu"


@dataclass
class Candidates:
    """P candidates, sorted by token and then by feature.

    Attributes
    ----------
    token, feature : (P,). order : (P,) the permutation that sorts them by feature, then by token.
    starts : (B + 1,) where the candidates of each token begin. starts_by_feature : (F + 1,) where
        those of each feature begin in `order`.
    """

    token: Tensor
    feature: Tensor
    order: Tensor
    starts: Tensor
    starts_by_feature: Tensor

    @classmethod
    def at(cls, position: Tensor, tokens: int, features: int) -> Candidates:
        """The candidates at ascending positions (P,) of a flattened (B, F)."""
        token, feature = position // features, position % features
        if of_any_size(position.device):
            order = torch.ops.ontogeny.stable_order(feature, features)
        else:
            order = torch.argsort(feature, stable=True)
        starts, by_feature = _starts(token, tokens), _starts(feature[order], features)
        return cls(token, feature, order, starts, by_feature)

    def decode(self, f: Tensor, W_dec: Tensor) -> Tensor:
        """Multiply f (P, G) by W_dec (F, S, D) for each block: (S, B, D)."""
        return _sums_of_rows(self.starts, self.feature, f, W_dec.transpose(0, 1))

    def gradient(self, E: Tensor, W_dec: Tensor, f: Tensor) -> Tensor:
        """Gradient of f (P, G) at each block, (P, S), from E (S, B, D).

        When compiled, no (P, D) tensor exists, and W_dec, the larger operand, is read feature by
        feature and only once. When eager, only a block's open gates are computed; the others get 0.
        """
        if torch.compiler.is_compiling() or not of_any_size(E.device):
            token, feature = self.token[self.order], self.feature[self.order]
            df = (E[:, token] * W_dec.transpose(0, 1)[:, feature]).sum(2).T
            return torch.empty_like(df).index_copy(0, self.order, df)
        df = E.new_zeros(len(E), len(f))
        size = (E.shape[1], len(W_dec))
        for s in range(len(E)):
            open_here = f[:, s if f.shape[1] > 1 else 0] != 0
            begin = torch.nn.functional.pad(open_here.cumsum(0), (1, 0))[self.starts]
            wanted = self.feature[open_here].int()
            values = torch.zeros(len(wanted), dtype=E.dtype)
            where = torch.sparse_csr_tensor(
                begin.int(), wanted, values, size, check_invariants=False
            )
            products = torch.sparse.sampled_addmm(where, E[s], W_dec[:, s].T, beta=0)
            df[s, open_here] = products.values()
        return df.T

    def decoder_gradient(self, out: Tensor, f: Tensor, E: Tensor) -> None:
        """Set `out`, (F, S, D), to fᵀ E for each block."""
        _sums_of_rows(
            self.starts_by_feature,
            self.token[self.order],
            f[self.order],
            E,
            out.transpose(0, 1),
        )

    def encoder_gradient(self, out: Tensor, dh: Tensor, x: Tensor) -> None:
        """Set `out`, (F, I), to dhᵀ x, from dh (P,)."""
        ordered = dh[self.order, None]
        _sums_of_rows(self.starts_by_feature, self.token[self.order], ordered, x[None], out[None])

    def sums(self, values: Tensor) -> Tensor:
        """(F, G): sums over tokens of values (P, G)."""
        starts = self.starts_by_feature
        return embedding_bag(self.order, values, starts, mode="sum", include_last_offset=True)


def _starts(ascending: Tensor, size: int) -> Tensor:
    """(size + 1,): where each of 0 … size − 1 begins in ascending indices, and their number."""
    bounds = torch.arange(size + 1, device=ascending.device)
    return torch.searchsorted(ascending, bounds)


def _sums_of_rows(
    starts: Tensor, rows: Tensor, by: Tensor, table: Tensor, out: Tensor | None = None
) -> Tensor:
    """Row i of block s: Σ_k by[k, s] · table[s, rows[k]] over k from starts[i] to starts[i + 1].

    Parameters
    ----------
    starts : (M + 1,). rows : (P,). by : (P, S), or (P, 1) for all blocks. table : (S, K, D).
    out : (S, M, D) to write to, or None.
    """
    S, K, D = table.shape
    M, P = len(starts) - 1, len(rows)
    if of_any_size(table.device):
        into = table.new_empty(S, M, D) if out is None else out
        torch.ops.ontogeny.sums_of_rows(into, starts, rows, by.T.contiguous(), table)
        return into
    blocks = torch.arange(S, device=rows.device)[:, None]
    sums = embedding_bag(
        (rows + blocks * K).flatten(),
        table.reshape(S * K, D),
        (starts[:-1] + blocks * P).flatten(),
        mode="sum",
        per_sample_weights=by.T.expand(S, P).flatten(),
    ).view(S, M, D)
    if out is not None:
        out.copy_(sums)
    return sums


def largest(h: Tensor, r: Tensor, count: int, room: int) -> tuple[Tensor, Tensor]:
    """Where the `count` largest h·r of a batch are.

    Parameters
    ----------
    h : (B, F). r : (F, G). room : candidates to look at elsewhere than on a CPU.

    Returns
    -------
    On a CPU: (P,) ascending positions in a flattened (B, F), and () the smallest of these scores.
    On other devices: the positions of the `room` largest, and the `count`-th of their scores.
    """
    if of_any_size(h.device):
        return torch.ops.ontogeny.largest(h, r, count)
    position = torch.topk((h * r.amax(1)).flatten(), min(room, h.numel()), sorted=False).indices
    position = position.sort().values
    scores = (h.flatten()[position, None] * r[position % len(r)]).flatten()
    best = torch.topk(scores, min(count, len(scores)), sorted=False).values
    return position, best.amin()


def above(h: Tensor, r: Tensor, t: Tensor, room: int) -> Tensor:
    """(P,) ascending positions in a flattened (B, F) at which h·r > t for some gate.

    Parameters
    ----------
    h : (B, F). r : (F, G). t : (F,). room : number of positions on other devices, open or not.
    """
    if of_any_size(h.device):
        return torch.ops.ontogeny.above(h, r, t)
    ratio = (h * (r.amax(1) / t)).flatten()
    return torch.topk(ratio, min(room, h.numel()), sorted=False).indices.sort().values


# ---- The CPU's operators. A batch's number of candidates is at most a few per cent of B·F.

PASS_ENTRIES = 1 << 16  # entries of (B, F) that one pass of selection holds in the cache


@torch.library.custom_op("ontogeny::largest", mutates_args=())
def _largest(h: Tensor, r: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As `largest`, but scores that tie with the smallest are all kept, and so are NaNs.

    A lower bound on the cut, applied to some rows at a time, leaves a few candidates, and no second
    (B, F) exists. If there is one gate, the bound comes from a sample. If there are several, and
    the m-th largest norm takes P pairs above a value, at least m·P scores are above it.
    """
    hs, rs = h.numpy(), r.numpy()
    F, G = rs.shape
    norms = rs.max(1)
    bound: np.floating | float = -np.inf
    if G == 1:
        every = max(1, hs.size // 16384) | 1
        sample = hs.ravel()[::every] * norms[np.arange(0, hs.size, every) % F]
        rank = int(1.2 * count * sample.size / hs.size + 50)
        bound = largest_but(sample, rank) if rank < sample.size else -np.inf
    else:
        ranked = -np.sort(-rs, axis=1)
        for m in {max(1, G // 8), max(1, G // 4), max(1, G // 2), G}:
            pairs = -(-count // m)
            if pairs <= hs.size:
                bound = np.maximum(bound, largest_but((hs * ranked[:, m - 1]).ravel(), pairs - 1))
    position = _reaching(bound, hs, norms)
    scores = hs.ravel()[position, None] * rs[position % F]
    if scores.size < count:  # the sample does not represent the whole, or values are not finite
        position = np.arange(hs.size)
        scores = hs.ravel()[:, None] * rs[position % F]
    cut = largest_but(scores.ravel(), min(count, scores.size) - 1)
    if np.isnan(cut):
        position = np.flatnonzero(~np.isfinite(hs))[:count]
    else:
        position = position[scores.max(1) >= cut]
    return torch.from_numpy(position), torch.from_numpy(np.array(cut))


def _reaching(bound: np.floating | float, hs: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """Flat positions at which h·r is at least a bound."""
    rows = max(1, PASS_ENTRIES // len(norms))
    score = np.empty((min(rows, len(hs)), len(norms)), hs.dtype)
    found = []
    for start in range(0, len(hs), rows):
        part = np.multiply(hs[start : start + rows], norms, out=score[: len(hs) - start]).ravel()
        found.append(np.flatnonzero(part >= bound) + start * len(norms))
    return np.concatenate(found)


def largest_but(values: np.ndarray, rank: int) -> np.floating:
    """The value at position `rank`, counted from 0, in descending order."""
    return np.partition(values, values.size - 1 - rank)[values.size - 1 - rank]


@_largest.register_fake
def _(h: Tensor, r: Tensor, count: int) -> tuple[Tensor, Tensor]:
    number = torch.library.get_ctx().new_dynamic_size()
    return h.new_empty(number, dtype=torch.long), h.new_empty(())


@torch.library.custom_op("ontogeny::above", mutates_args=())
def _above(h: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """As `above`; NaN scores are kept, so that the loss becomes NaN and is noticed."""
    below = h.numpy() * r.numpy().max(1) <= t.numpy()
    return torch.from_numpy(np.flatnonzero(~below))


@_above.register_fake
def _(h: Tensor, r: Tensor, t: Tensor) -> Tensor:
    number = torch.library.get_ctx().new_dynamic_size()
    return h.new_empty(number, dtype=torch.long)


@torch.library.custom_op("ontogeny::stable_order", mutates_args=())
def _stable_order(index: Tensor, size: int) -> Tensor:
    """The stable order that sorts (P,) indices below `size`."""
    P = len(index)
    by_pair = scipy.sparse.csr_array(
        (np.arange(P), index.numpy(), np.arange(P + 1)), shape=(P, size)
    )
    return torch.from_numpy(by_pair.tocsc().data)


@_stable_order.register_fake
def _(index: Tensor, size: int) -> Tensor:
    return torch.empty_like(index)


@torch.library.custom_op("ontogeny::sums_of_rows", mutates_args=("out",))
def _sums_of_rows_on_cpu(
    out: Tensor, starts: Tensor, rows: Tensor, by: Tensor, table: Tensor
) -> None:
    """As `_sums_of_rows`, with `by` (S, P) or (1, P), as products of sparse and dense matrices.

    It writes into existing memory, since fresh pages for a gradient would cost more than its sums.
    Closed gates are left out of the sums.
    """
    size = (len(starts) - 1, table.shape[1])
    for s in range(len(table)):
        values, source, begin = by[s if len(by) > 1 else 0], rows, starts
        if len(by) > 1:
            kept = values != 0
            before = torch.nn.functional.pad(kept.cumsum(0), (1, 0))
            values, source, begin = values[kept], rows[kept], before[starts]
        sums = torch.sparse_csr_tensor(
            begin.int(), source.int(), values, size, check_invariants=False
        )
        torch.addmm(out[s], sums, table[s], beta=0, out=out[s])
