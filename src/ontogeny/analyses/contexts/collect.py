"""Choosing the positions that show what a feature is, in one pass over text and bounded memory.

The blocks of the text come one after another. For each of F features, the choice uses its
pre-activations h at their positions, its score s = h·r and its gate s > t (docs/method.md 3;
`Gate`):

    top          the k positions with the largest activation, at most one per block
    sample       m of the positions where it is active, drawn uniformly: those with the largest u,
                 a hash of (seed, feature, position), so that pieces do not change the draw
    near misses  the k positions with the largest score below the gate, at most one per block and
                 more than `window` tokens from every position of the block where it is active
    together     the features that are active at the same positions (together.py)
    density      number of positions where it is active, mean activation, histogram of log₂ f

Ties go to the earlier position. The result is the same, to the bit, for any division of the
positions into pieces of whole blocks, as long as h is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ontogeny.analyses.contexts.together import Together
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.features.contexts import BINS, LOWEST, OCTAVE, around

PIECE_ENTRIES = 1 << 22  # positions × features processed at a time, in addition to h itself
SLACK = 1 << 17  # least number of waiting candidates before only the best are kept
LARGEST_HALF = 65504.0  # largest number in float16


@dataclass(frozen=True)
class Gate:
    """The gate of features: active if the largest score over snapshots exceeds `threshold`.

    high, low : (F,) largest and smallest decoder norm that the gate sees; they are equal if one
    gate serves all snapshots. threshold : (F,). All in normalised units.
    """

    high: torch.Tensor
    low: torch.Tensor
    threshold: torch.Tensor

    @classmethod
    def of(cls, crosscoder: Crosscoder, features: torch.Tensor) -> Gate:
        """The gate of some features of a crosscoder, as in `Crosscoder.encode`."""
        about, weights = crosscoder.about, crosscoder.weights
        zero = torch.zeros(len(features), device=weights.W_dec.device)
        if about.activation == "relu":
            return cls(zero + 1, zero + 1, zero)
        threshold = zero + about.threshold
        if about.activation == "jumprelu":
            threshold = weights.log_threshold[features].exp()
        r = crosscoder._gate_norms()[features]
        return cls(r.amax(1), r.amin(1), threshold)

    def scores(self, h: torch.Tensor, part: slice) -> torch.Tensor:
        """The largest h·r over snapshots, (B, P), for h (B, P) of the features in `part`."""
        return h * torch.where(h > 0, self.high[part], self.low[part])

    def opened(self, scores: torch.Tensor, part: slice) -> torch.Tensor:
        """Where the features are active at some snapshot, (B, P) bool."""
        return scores > self.threshold[part].clamp(min=0)


def entries(
    feature: np.ndarray, row: np.ndarray, key: np.ndarray, value: np.ndarray, window: np.ndarray
) -> np.ndarray:
    """Entries (M,), one per position: its feature, row, sort key, value and window.

    window : (M, W) float16, activations from `window` tokens before the position (or the block's
    start) to as many after it; NaN where no activation is stored, 0 beyond the block.
    """
    fields: list[tuple[object, ...]] = [("feature", "i8"), ("row", "i8"), ("key", "f8")]
    fields += [("value", "f4"), ("window", "f2", window.shape[1:])]
    made = np.empty(len(feature), fields)
    made["feature"], made["row"], made["key"] = feature, row, key
    made["value"], made["window"] = value, window
    return made


def ranks(feature: np.ndarray, features: int) -> tuple[np.ndarray, np.ndarray]:
    """Rank of each entry within its feature, for entries sorted by feature; and counts by feature.

    Returns
    -------
    (M,) from 0, and (F,).
    """
    count = np.bincount(feature, minlength=features)
    return np.arange(len(feature)) - (np.cumsum(count) - count)[feature], count


class Best:
    """The k entries with the largest key for every feature, from a stream; ties go by row.

    Parameters
    ----------
    width : of the windows.
    """

    def __init__(self, features: int, k: int, width: int) -> None:
        self.features, self.k = features, k
        self._bar = np.full(features, -np.inf)  # key of the k-th best entry, if there are k
        nothing = np.zeros(0)
        self._parts = [entries(nothing, nothing, nothing, nothing, np.zeros((0, width)))]
        self._kept = self._waiting = 0

    def could_be(self, feature: np.ndarray, key: np.ndarray) -> np.ndarray:
        """Whether entries could be among the best, bool; their rows must come after all others."""
        return key > self._bar[feature]

    def add(self, more: np.ndarray) -> None:
        """Add entries that `could_be` among the best."""
        if len(more):
            self._parts.append(more)
            self._waiting += len(more)
        if self._waiting > max(SLACK, self._kept):
            self.settled()

    def settled(self) -> np.ndarray:
        """The best so far, sorted by feature, the best of each first."""
        every = np.concatenate(self._parts)
        order = np.lexsort((every["row"], -every["key"], every["feature"]))
        rank, _ = ranks(every["feature"][order], self.features)
        best = every[order[rank < self.k]]
        last = best[rank[rank < self.k] == self.k - 1]
        self._bar[last["feature"]] = last["key"]
        self._parts, self._kept, self._waiting = [best], len(best), 0
        return best


def _priority(seed: int, feature: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Pseudorandom numbers in [0, 1): a hash (SplitMix64) of seed, feature and row."""

    def mix(x: np.ndarray) -> np.ndarray:
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))

    step = np.uint64(0x9E3779B97F4A7C15)
    x = mix(row.astype(np.uint64) * step + np.uint64(seed))
    x = mix((x ^ feature.astype(np.uint64)) + step)
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(frozen=True)
class _Piece:
    """P features at the B positions of some blocks.

    f, scores, opened : (B, P). slot : (B,) slot of each position; every position of a block has
    one. row_at : (slots,) row of each slot, −1 if none. low : number of the first feature.
    """

    f: torch.Tensor
    scores: torch.Tensor
    opened: torch.Tensor
    slot: np.ndarray
    row_at: np.ndarray
    low: int


def _promising(best: Best, values: torch.Tensor, low: int) -> np.ndarray:
    """Columns of values (B, P) in which any value could be among the best.

    They are few once some text has been read.
    """
    most = values.amax(0).cpu().numpy()
    could_be = best.could_be(low + np.arange(len(most)), most)
    return np.flatnonzero(could_be & (most > -np.inf))


class Collector:
    """Chooses positions and counts activations, piece by piece.

    Parameters
    ----------
    gate : of F features. context : tokens in a block. top, sample, near : number of each kind.
    window : tokens on either side. seed : of the sample.

    Attributes
    ----------
    active : (F,) number of positions at which a feature is active. total : (F,) sum of its
    activations. histogram : (F, BINS). rows : number of positions read.
    top, sample, near : `Best`; their keys are activations, hashes, and scores.
    together : `Together`.
    """

    def __init__(
        self,
        gate: Gate,
        context: int,
        top: int,
        sample: int,
        near: int,
        window: int,
        seed: int,
    ) -> None:
        F, width = len(gate.high), 2 * window + 1
        self.gate, self.context, self.window, self.seed = gate, context, window, seed
        self.rows = 0
        self.active = np.zeros(F, np.int64)
        self.total = np.zeros(F)
        self.histogram = np.zeros((F, BINS), np.int64)
        self.top, self.sample = Best(F, top, width), Best(F, sample, width)
        self.near = Best(F, near, 0)  # no window: the feature is not active in it
        self.together = Together(F)

    def add(self, h: torch.Tensor, block: np.ndarray, offset: np.ndarray) -> None:
        """Process the positions of whole blocks that follow the earlier ones.

        Parameters
        ----------
        h : (B, F) pre-activations. block : (B,) ascending, any numbers. offset : (B,) ascending
            within each block.
        """
        numbers, block = np.unique(block, return_inverse=True)
        slots = len(numbers) * self.context
        slot = block * self.context + offset
        row_at = np.full(slots, -1)
        row_at[slot] = self.rows + np.arange(len(slot))
        step = max(1, PIECE_ENTRIES // slots)
        for low in range(0, h.shape[1], step):
            part = slice(low, min(low + step, h.shape[1]))
            scores = self.gate.scores(h[:, part], part)
            opened = self.gate.opened(scores, part)
            piece = _Piece(h[:, part] * opened, scores, opened, slot, row_at, low)
            self._every_active(piece)
            self._largest(piece)
            self._closest(piece)
        self.rows += len(slot)

    def _every_active(self, piece: _Piece) -> None:
        """Counts, sums and the sample, from all positions where a feature is active."""
        where = piece.opened.nonzero()
        value = piece.f[where[:, 0], where[:, 1]].cpu().numpy()
        at, column = where.cpu().numpy().T
        feature = column + piece.low
        self.together.add(self.rows + at, feature)
        np.add.at(self.active, feature, 1)
        np.add.at(self.total, feature, value)
        bins = np.floor(OCTAVE * (np.log2(value.astype(np.float64)) - LOWEST)).astype(np.int64)
        np.add.at(self.histogram, (feature, bins.clip(0, BINS - 1)), 1)
        key = _priority(self.seed, feature, self.rows + at)
        chosen = self.sample.could_be(feature, key)
        slot = piece.slot[at[chosen]]
        self._take(self.sample, piece, slot, column[chosen], key[chosen], value[chosen])

    def _largest(self, piece: _Piece) -> None:
        """Each block's largest activation of every feature."""
        active = torch.where(piece.f > 0, piece.f, -torch.inf)
        columns = _promising(self.top, active, piece.low)
        chosen = torch.from_numpy(columns).to(active.device)
        slot, column, value = self._best_of_blocks(self.top, active[:, chosen], columns, piece)
        self._take(self.top, piece, slot, column, value, value)

    def _closest(self, piece: _Piece) -> None:
        """Each block's largest score of every feature at positions far from where it is active."""
        closed = torch.where(piece.opened, -torch.inf, piece.scores)
        columns = _promising(self.near, closed, piece.low)
        chosen = torch.from_numpy(columns).to(closed.device)
        apart = self._apart(piece.opened[:, chosen], piece)
        closed = torch.where(apart, closed[:, chosen], -torch.inf)
        slot, column, value = self._best_of_blocks(self.near, closed, columns, piece)
        nothing = np.zeros((len(slot), 0))
        feature = column + piece.low
        self.near.add(entries(feature, piece.row_at[slot], value, value, nothing))

    def _best_of_blocks(
        self, best: Best, values: torch.Tensor, columns: np.ndarray, piece: _Piece
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Each block's first largest value for every feature, if it could be among the best.

        Parameters
        ----------
        values : (B, C) for the piece's `columns` (C,); −∞ at positions that are excluded.

        Returns
        -------
        slot, column and value of each entry.
        """
        grid = values.new_full((len(piece.row_at), len(columns)), -torch.inf)
        grid[torch.from_numpy(piece.slot).to(values.device)] = values
        largest, where = grid.unflatten(0, (-1, self.context)).max(1)
        value, offset = largest.cpu().numpy(), where.cpu().numpy()
        wanted = best.could_be(piece.low + columns, value) & (value > -np.inf)
        block, column = np.nonzero(wanted)
        slot = block * self.context + offset[block, column]
        return slot, columns[column], value[block, column]

    def _apart(self, opened: torch.Tensor, piece: _Piece) -> torch.Tensor:
        """Whether positions are more than a window from all active ones, (B, C) bool."""
        C, w, device = self.context, self.window, opened.device
        slot = torch.from_numpy(piece.slot).to(device)
        # Number of active positions before each position of the block: 0 before the first.
        shape = (len(piece.row_at) // C, C + 1, opened.shape[1])
        active = torch.zeros(shape, dtype=torch.int32, device=device)
        active[slot // C, slot % C + 1] = opened.int()
        active = active.cumsum(1, dtype=torch.int32)
        offset = torch.arange(C, device=device)
        start, stop = (offset - w).clamp(min=0), (offset + w + 1).clamp(max=C)
        return (active[:, stop] == active[:, start]).flatten(0, 1)[slot]

    def _take(
        self,
        into: Best,
        piece: _Piece,
        slot: np.ndarray,
        column: np.ndarray,
        key: np.ndarray,
        value: np.ndarray,
    ) -> None:
        """Add positions together with the activations around them."""
        first = slot // self.context * self.context
        offset, inside = around(slot - first, self.window, self.context)
        row = piece.row_at[first[:, None] + np.minimum(offset, self.context - 1)]
        index = torch.from_numpy(np.maximum(row - self.rows, 0)).to(piece.f.device)
        columns = torch.from_numpy(column).to(piece.f.device)
        window = piece.f[index, columns[:, None]].clamp(max=LARGEST_HALF).half().cpu().numpy()
        window[row < 0] = np.nan
        window[~inside] = 0
        into.add(entries(column + piece.low, piece.row_at[slot], key, value, window))


def over_quantiles(
    sample: np.ndarray, features: int, quantiles: int
) -> tuple[np.ndarray, np.ndarray]:
    """One position from each quantile of every feature's activations, from a uniform sample.

    A feature's sample, ordered by activation, is cut into as many equal parts as there are
    quantiles, and one position is drawn from each part. Features with fewer positions than
    quantiles keep them all.

    Returns
    -------
    Entries by feature, from weak to strong; and (M,) the share of the sample below each, with
    the entry itself counted as half.
    """
    sample = sample[np.lexsort((sample["row"], sample["value"], sample["feature"]))]
    feature = sample["feature"]
    rank, count = ranks(feature, features)
    size = count[feature]
    part = feature * quantiles + rank * quantiles // np.maximum(size, 1)
    drawn = np.lexsort((-sample["key"], part))
    _, leading = np.unique(part[drawn], return_index=True)
    chosen = np.sort(drawn[leading])
    return sample[chosen], (rank[chosen] + 0.5) / size[chosen]
