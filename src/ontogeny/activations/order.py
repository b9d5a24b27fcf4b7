"""The order of rows that all snapshots' activations share, and how it is cut.

Blocks are permuted once, then taken in windows of about `activations.window` rows, and the rows of
each window are permuted. So reading from start to end gives shuffled data, and any window can be
computed on its own. Training rows on disk are cut into *shards* of some whole windows each.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from ontogeny.activations.sizes import FORWARD_TOKENS, PLACE_BYTES
from ontogeny.corpus.build import Tokens
from ontogeny.files import InputError
from ontogeny.settings import Activations, Settings

NORMS_FORMAT = "ontogeny-norms-1"


def number_of_windows(blocks: int, context: int, window: int) -> int:
    """Number of windows of a split: the fewest that have at most about `window` rows each."""
    return max(1, -(-blocks * context // window))


class Order:
    """The rows of a split, in order.

    Parameters
    ----------
    tokens : the corpus. split : 'train', shuffled, or 'held_out', in text order.
    a : the settings' section; window, leave_out and seed are used.
    over : (blocks, context) bool, further positions without a row: `above_bound`.

    Attributes
    ----------
    windows : block numbers of each window.
    starts : (windows + 1,) the first row of each window, then the total number of rows.

    Raises
    ------
    InputError : leave_out names a token that the tokenizer does not have, or no row remains.
    """

    def __init__(
        self, tokens: Tokens, split: str, a: Activations, over: np.ndarray | None = None
    ) -> None:
        self.tokens = tokens
        self._first, self._over = "first" in a.leave_out, over
        self._ids = tokens.marks.ids(list(a.leave_out), tokens.vocabulary)
        first, last = tokens.splits[split]
        numbers = np.arange(first, last)
        self._bits: np.random.PCG64 | None = None
        if split == "train":
            self._bits = np.random.PCG64(a.seed)
            np.random.Generator(self._bits).shuffle(numbers)
        count = number_of_windows(len(numbers), tokens.context, a.window)
        self.windows = np.array_split(numbers, count)
        sizes = [int(self.kept(w).sum()) for w in self.windows]
        if not sizes[0]:
            raise InputError(
                f"activations.leave_out: no row of the {split} blocks remains; leave out fewer "
                "positions, or raise corpus.train_blocks and corpus.held_out_blocks"
            )
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    def kept(self, numbers: np.ndarray) -> np.ndarray:
        """(W, context) bool: which positions of some blocks have a row."""
        ids = self.tokens.take(numbers)
        kept = np.ones(ids.shape, bool)
        for number in self._ids:
            kept &= ids != number
        if self._first:
            kept[:, 0] = False
        if self._over is not None:
            kept &= ~self._over[numbers]
        return kept

    @property
    def rows(self) -> int:
        """Number of all rows."""
        return int(self.starts[-1])

    def slots(self, window: int) -> np.ndarray:
        """(R,) the window's rows, as indices into its W·context positions."""
        slots = np.flatnonzero(self.kept(self.windows[window]))
        if self._bits is not None:
            np.random.Generator(self._bits.jumped(window)).shuffle(slots)
        return slots

    def position(self, window: int) -> np.ndarray:
        """(R, 2) uint32: block and offset of each row of the window."""
        slots, context = self.slots(window), self.tokens.context
        chosen = self.windows[window][slots // context]
        return np.stack([chosen, slots % context], 1).astype(np.uint32)

    def token(self, window: int) -> np.ndarray:
        """(R, 2) int32: ids of the previous and the current token of each row of the window.

        The previous one is −1 at the start of a block.
        """
        ids = self.tokens.take(self.windows[window]).astype(np.int32)
        before = np.pad(ids[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
        return np.stack([before.ravel(), ids.ravel()], 1)[self.slots(window)]


def above_bound(settings: Settings, folder: Path | None, tokens: Tokens) -> np.ndarray | None:
    """(blocks, context) bool: positions whose norm exceeds activations.leave_out_norm anywhere.

    It is None if there is no such bound.

    Parameters
    ----------
    folder : of the norms stage, with a step{S}.h5 for each snapshot.

    Raises
    ------
    InputError : a file is missing, damaged, or made from other tokens or with another bound.
    """
    bound = settings.activations.leave_out_norm
    if bound is None:
        return None
    assert folder is not None, "activations.leave_out_norm needs the files of norms"
    over = np.zeros((tokens.splits["train"][1], tokens.context), bool)
    for step in settings.snapshots.chosen:
        path = folder / f"step{step}.h5"
        try:
            with h5py.File(path, "r") as file:
                known = [file.attrs.get(key) for key in ("format", "tokens", "bound")]
                own = file["over"][:]
        except (OSError, KeyError):
            raise InputError(
                f"{path}: missing or damaged; make it again with `ontogeny extract --norms`"
            ) from None
        if known != [NORMS_FORMAT, tokens.digest, bound] or own.shape != over.shape:
            raise InputError(f"{path}: made from other tokens or with another bound; make it again")
        over |= own
    return over


def batches(
    numbers: np.ndarray, context: int, positions: int = FORWARD_TOKENS
) -> Iterator[np.ndarray]:
    """A window's blocks in batches of about `positions` positions, at least one block each."""
    step = max(1, positions // context)
    for start in range(0, len(numbers), step):
        yield numbers[start : start + step]


def row_bytes(a: Activations, width: int) -> int:
    """Bytes on disk of one site's training row, including its position and tokens."""
    return width * (2 if a.dtype == "float16" else 4) + PLACE_BYTES


def shards(s: Settings, width: int) -> list[range]:
    """Windows of each shard of training rows: one shard, or as `activations.budget` requires.

    Two shards of all sites are on disk at a time: one is projected while the next is extracted.

    Parameters
    ----------
    width : of the model's residual stream.

    Raises
    ------
    InputError : the budget does not hold two windows.
    """
    a, c = s.activations, s.corpus
    count = number_of_windows(c.train_blocks, c.context, a.window)
    sites = len(a.layers) * len(a.streams) * len(s.snapshots.chosen)
    window = -(-c.train_blocks // count) * c.context * row_bytes(a, width) * sites
    if a.budget is None or count * window <= a.budget * 1e9:
        return [range(count)]
    fitting = int(a.budget * 1e9 / 2 // window)
    if not fitting:
        raise InputError(
            f"activations.budget: {a.budget:g} GB are too little for two windows, which take "
            f"{2 * window / 1e9:.1f} GB together; raise it, or lower activations.window or the "
            "number of snapshots"
        )
    return [range(i, min(i + fitting, count)) for i in range(0, count, fitting)]
