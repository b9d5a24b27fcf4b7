"""From rows to batches on the device, as the settings say.

Rows on disk are read ahead by a thread; streamed rows are on the device already.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from ontogeny.activations.rows import Cached, RowPaths, Rows, pieces, read_ahead
from ontogeny.activations.sites import Site
from ontogeny.activations.sizes import PIECE_ROWS
from ontogeny.activations.store import Stacks
from ontogeny.activations.streamed import Stream, Streamed
from ontogeny.activations.subspace import Projected, Subspace
from ontogeny.activations.table import Table
from ontogeny.peers import Peers
from ontogeny.settings import Crosscoder, Settings


def site_rows(
    settings: Settings,
    sites: list[Site],
    paths: RowPaths,
    device: torch.device,
    table: Table | None = None,
    stream: Stream | None = None,
    peers: Peers | None = None,
) -> Cached | Streamed:
    """Training rows of the sites in all dimensions, from disk or streamed, minus a token table.

    Parameters
    ----------
    stream : shared with other readers, if rows are streamed. peers : processes that share a new
        stream.
    """
    if settings.activations.mode == "cached":
        return Cached(paths.activations, sites, table)
    return Streamed(settings, sites, paths, device, None, table, stream, peers)


def principal_rows(
    settings: Settings,
    sites: list[Site],
    subspace: Subspace,
    paths: RowPaths,
    device: torch.device,
    table: Table | None = None,
    stream: Stream | None = None,
    peers: Peers | None = None,
) -> Projected | Streamed:
    """Training rows of the sites in their principal subspace, from disk or streamed.

    Parameters
    ----------
    table : subtracted before projection; rows on disk were projected without it.
    stream : shared with other readers, if rows are streamed. peers : processes that share a new
        stream.
    """
    if settings.activations.mode == "cached":
        return Projected(paths.projected)
    return Streamed(settings, sites, paths, device, subspace, table, stream, peers)


def table_of(c: Crosscoder, sites: list[Site], paths: RowPaths) -> Table | None:
    """A crosscoder's token table, with its scales, or None."""
    if not c.token_table:
        return None
    assert paths.tables is not None, "token_table: true needs the token tables"
    own = None if c.scale == "residual" else Stacks(paths.activations, sites).scales
    return Table(paths.tables, sites, own)


def mean_row(rows: Rows) -> np.ndarray:
    """Mean over all rows, (columns,) float32."""
    total = sum(
        piece.reshape(len(piece), -1).sum(0, dtype=np.float64)
        for _, piece in pieces(rows, PIECE_ROWS)
    )
    return np.asarray(total / rows.rows, np.float32)


def batches(
    sources: Sequence[Rows], size: int, start: int, stop: int, device: torch.device
) -> Iterator[tuple[torch.Tensor, ...]]:
    """The batches of steps [start, stop): (size, *shape) float32 on the device from each source.

    Step s has the rows from s·size on, continuing at the start after the end of the data. This
    depends on the step alone, so a resumed training sees the same batches as an unbroken one.
    """
    streamed = [source for source in sources if isinstance(source, Streamed)]
    for step in range(start, stop) if streamed else ():
        first, last = step * size, (step + 1) * size
        yield tuple(_taken_around(source, first, last).to(device) for source in streamed)
    if streamed:
        return

    def read(step: int) -> list[torch.Tensor]:
        first, last = step * size, (step + 1) * size
        parts = [torch.from_numpy(_read_around(s, first, last)) for s in sources]
        return [part.pin_memory() if device.type == "cuda" else part for part in parts]

    jobs = ((step, lambda step=step: read(step)) for step in range(start, stop))
    for _, parts in read_ahead(jobs):
        yield tuple(part.to(device, non_blocking=True) for part in parts)


def _around(rows: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Rows [start, stop) of rows that repeat without end, as ranges within [0, rows)."""
    first, last = start % rows, start % rows + stop - start
    yield first, min(last, rows)
    while last > rows:
        last -= rows
        yield 0, min(last, rows)


def _read_around(rows: Rows, start: int, stop: int) -> np.ndarray:
    parts = [rows.read(*each) for each in _around(rows.rows, start, stop)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _taken_around(rows: Streamed, start: int, stop: int) -> torch.Tensor:
    parts = [rows.take(*each) for each in _around(rows.rows, start, stop)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
