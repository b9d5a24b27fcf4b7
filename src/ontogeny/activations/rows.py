"""Rows of activations: one protocol for rows that are on disk or computed on demand.

    Cached      training rows of some sites, in shards on disk                  (N, D) each
    HeldOut     held-out rows of some sites, on disk in every mode              (N, D)
    Streamed    training rows computed from the snapshots (streamed.py)         (N, D), or (R,)
    Projected   training rows in a principal subspace, on disk (subspace.py)    (R,)

Training rows have one seeded order (order.py), so reading from start to end gives shuffled data.
feed.py makes batches of them. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any, Protocol

import numpy as np

from ontogeny.activations.sites import Site, rows_path
from ontogeny.activations.sizes import READ_AHEAD
from ontogeny.activations.store import Reader, Stacks, open_checked
from ontogeny.activations.table import Table
from ontogeny.files import InputError


class Rows(Protocol):
    """Normalised activations by token.

    Attributes
    ----------
    rows : how many there are. shape : of one row: (N, D), or (R,) in a principal subspace.
    """

    rows: int
    shape: tuple[int, ...]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop), (stop − start, *shape) float32."""


class SiteRows(Rows, Protocol):
    """Rows of N sites in all D dimensions, and the digest of the tokens that they belong to."""

    sites: list[Site]
    tokens: str
    scales: np.ndarray

    def tokens_at(self, start: int, stop: int) -> np.ndarray:
        """Previous and current token of rows [start, stop), (stop − start, 2); −1 means none."""


@dataclass(frozen=True)
class RowPaths:
    """The paths of an experiment's rows.

    Attributes
    ----------
    activations : folder of the activations, whose stacks hold the scales in either mode.
    basis : basis file. projected : files of projected rows, in the order of the shards.
    tables : folder of the token tables (token_table.py).
    snapshots, tokens : folder of snapshots and tokens.h5, used if rows are streamed.
    norms : folder of the norms stage, used if rows are streamed and their norm is bounded.
    """

    activations: Path
    basis: Path | None = None
    projected: tuple[Path, ...] = ()
    snapshots: Path | None = None
    tokens: Path | None = None
    tables: Path | None = None
    norms: Path | None = None


class Cached(Stacks):
    """Training rows of some sites, read from the shards' files and multiplied by each site's scale.

    Parameters
    ----------
    table : subtracted from the rows; its scales then replace theirs.

    Raises
    ------
    InputError : as for Stacks; `read` raises it if a file is missing or a chunk was altered.
    """

    def __init__(self, folder: str | Path, sites: list[Site], table: Table | None = None) -> None:
        super().__init__(folder, sites, None if table is None else table.scales)
        self._table = table
        self.starts = starts_of(self.shard_rows)
        self.rows = self.starts[-1]
        self.shape: tuple[int, ...] = (len(sites), self.width)
        self._readers: dict[int, list[Reader]] = {}  # of one shard only, since the files stay open
        self._token_readers: dict[int, Reader] = {}

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop), (stop − start, N, D) float32."""
        rows = across(self.starts, start, stop, self._read)
        if self._table is None:
            return rows
        return self._table.off(rows, self.tokens_at(start, stop)[:, 1])

    def tokens_at(self, start: int, stop: int) -> np.ndarray:
        """Previous and current token of rows [start, stop), (stop − start, 2); −1 means none."""
        return across(self.starts, start, stop, self._read_tokens)

    def _read_tokens(self, shard: int, start: int, stop: int) -> np.ndarray:
        if shard not in self._token_readers:
            self._token_readers.clear()
            self._token_readers[shard] = self._open(rows_path(self.paths[0], shard), "token")
        return self._token_readers[shard].read(start, stop)

    def _read(self, shard: int, start: int, stop: int) -> np.ndarray:
        if shard not in self._readers:
            self._readers.clear()
            self._readers[shard] = [
                self._open(rows_path(path, shard), "activations") for path in self.paths
            ]
        return _scaled(self._readers[shard], self.scales, start, stop)

    def _open(self, path: Path, name: str) -> Reader:
        if not path.exists():
            raise InputError(
                f"{path}: these training rows were deleted after use; set activations.keep: true "
                "and make them again"
            )
        with open_checked(path):
            return Reader(path, name)


class HeldOut(Stacks):
    """Held-out rows of some sites in text order, multiplied by each site's scale.

    Parameters
    ----------
    scales : (N,) a crosscoder's scales, which replace those of the stacks.

    Raises
    ------
    InputError : as for Stacks; `read` raises it if a chunk was altered.
    """

    def __init__(
        self, folder: str | Path, sites: list[Site], scales: np.ndarray | None = None
    ) -> None:
        super().__init__(folder, sites, scales)
        self.rows = len(self.position)
        self.shape: tuple[int, ...] = (len(sites), self.width)

    @cached_property
    def _readers(self) -> list[Reader]:
        return [Reader(path, "held_out/activations") for path in self.paths]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop), (stop − start, N, D) float32."""
        return _scaled(self._readers, self.scales, start, stop)

    def tokens_at(self, start: int, stop: int) -> np.ndarray:
        """Previous and current token of rows [start, stop), (stop − start, 2); −1 means none."""
        return self.token[start:stop]


def _scaled(readers: list[Reader], scales: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Scaled rows, contiguous by site, as they are read."""
    out = np.empty((len(readers), stop - start, readers[0].shape[1]), np.float32)
    for part, reader, scale in zip(out, readers, scales, strict=True):
        np.multiply(reader.read(start, stop), scale, out=part, dtype=np.float32)
    return out.transpose(1, 0, 2)


def starts_of(sizes: Sequence[int]) -> list[int]:
    """The first row of each of several consecutive parts, then the total number of rows."""
    return [0, *(int(end) for end in np.cumsum(sizes))]


def across(
    starts: Sequence[int] | np.ndarray,
    start: int,
    stop: int,
    read: Callable[[int, int, int], np.ndarray],
) -> np.ndarray:
    """Rows [start, stop) of several consecutive parts.

    Parameters
    ----------
    starts : from `starts_of`. read : (part, first, last) → rows [first, last) of that part.
    """
    parts = [read(*each) for each in parts_of(starts, start, stop)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def parts_of(
    starts: Sequence[int] | np.ndarray, start: int, stop: int
) -> Iterator[tuple[int, int, int]]:
    """Rows [start, stop) as (part, first row, row after the last), counted within the part."""
    part = int(np.searchsorted(starts, start, side="right")) - 1
    while start < stop:
        first, last = int(starts[part]), min(stop, int(starts[part + 1]))
        if start < last:
            yield part, start - first, last - first
            start = last
        part += 1


def pieces(
    rows: Rows, size: int, start: int = 0, stop: int | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Rows [start, stop) as (first row, (≤ size, *shape)), read ahead by a thread."""
    last = rows.rows if stop is None else min(stop, rows.rows)
    return read_ahead(
        (at, lambda at=at: rows.read(at, min(at + size, last))) for at in range(start, last, size)
    )


def read_ahead(
    jobs: Iterator[tuple[int, Any]], depth: int = READ_AHEAD
) -> Iterator[tuple[int, Any]]:
    """Run each job's function in a thread, `depth` results ahead of their use, in order."""
    queue: Queue[Any] = Queue(depth)
    stop = object()

    def work() -> None:
        try:
            for key, function in jobs:
                queue.put((key, function()))
            queue.put(stop)
        except Exception as error:
            queue.put(error)

    Thread(target=work, daemon=True).start()
    while (item := queue.get()) is not stop:
        if isinstance(item, Exception):
            raise item
        yield item
