"""Batches for training: shuffled rows, read or computed ahead by a thread."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from ontogeny.activations.store import Site, Stacks, read_ahead
from ontogeny.activations.streamed import Streamed
from ontogeny.basis.principal import Projected, Subspace
from ontogeny.settings import Settings


@dataclass(frozen=True)
class Places:
    """Where a training finds its data.

    Attributes
    ----------
    activations : folder of the activations; its stacks hold the scales in either mode.
    basis : basis file. projected : files of projected rows, in the shards' order.
    snapshots, tokens : folder of snapshots and tokens.h5, where rows are streamed.
    """

    activations: Path
    basis: Path | None = None
    projected: tuple[Path, ...] = ()
    snapshots: Path | None = None
    tokens: Path | None = None


class Source(Protocol):
    """Rows of training data: (rows, I) float32, already shuffled."""

    rows: int

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop)."""


class FullSource:
    """All dimensions: rows of the input sites, then, where they differ, of the output sites."""

    def __init__(self, rows: Stacks | Streamed) -> None:
        self._all = rows
        self.rows = rows.rows

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop), (rows, N·D)."""
        return self._all.read(start, stop).reshape(stop - start, -1)


class StreamedSource:
    """The principal subspace, computed from the snapshots a window of rows at a time."""

    def __init__(self, rows: Streamed, space: Subspace, device: torch.device) -> None:
        self.rows = rows.rows
        self._streamed, self._dimensions = rows, space.dimensions
        self._project = space.projection(device)
        self._windows: dict[int, torch.Tensor] = {}  # two at most: batches may lie in two

    def _window(self, number: int) -> torch.Tensor:
        if number not in self._windows:
            while len(self._windows) > 1:
                del self._windows[next(iter(self._windows))]
            self._windows[number] = self._streamed.projected(
                number, self._dimensions, self._project
            )
        return self._windows[number]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop), (rows, R)."""
        starts = self._streamed.order.starts
        parts = []
        while start < stop:
            number = self._streamed.order.window_of(start)
            first, last = int(starts[number]), min(stop, int(starts[number + 1]))
            parts.append(self._window(number)[start - first : last - first].float())
            start = last
        return torch.cat(parts).numpy()


def training_rows(
    s: Settings, sites: list[Site], places: Places, device: torch.device
) -> Stacks | Streamed:
    """All dimensions of the sites' training rows, as activations.mode has them."""
    if s.activations.mode == "cached":
        return Stacks(places.activations, sites)
    assert places.snapshots is not None, "streamed rows need --snapshots"
    assert places.tokens is not None, "streamed rows need --tokens"
    return Streamed(s, sites, places.activations, places.snapshots, places.tokens, device)


def principal_source(
    s: Settings, sites: list[Site], space: Subspace, places: Places, device: torch.device
) -> Source:
    """Rows in a subspace of the sites."""
    if s.activations.mode == "cached":
        return Projected(list(places.projected))
    rows = training_rows(s, sites, places, device)
    assert isinstance(rows, Streamed)
    return StreamedSource(rows, space, device)


def mean_row(source: Source) -> np.ndarray:
    """Mean over all rows, (I,) float32."""
    total = sum(
        source.read(start, min(start + 4096, source.rows)).sum(0, dtype=np.float64)
        for start in range(0, source.rows, 4096)
    )
    return np.asarray(total / source.rows, np.float32)


def _read_around(source: Source, start: int, stop: int) -> np.ndarray:
    """Rows [start, stop) of the source repeated without end."""
    first, last = start % source.rows, start % source.rows + stop - start
    parts = [source.read(first, min(last, source.rows))]
    while last > source.rows:
        last -= source.rows
        parts.append(source.read(0, min(last, source.rows)))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def batches(
    source: Source, rows: int, start: int, stop: int, device: torch.device
) -> Iterator[torch.Tensor]:
    """The batches of steps [start, stop), each (rows, I) float32 on the device.

    Step s has the rows from s·rows on, counted around the end of the data: a function of the step
    alone, so that a resumed training sees what an unbroken one would.
    """

    def read(step: int) -> torch.Tensor:
        data = torch.from_numpy(_read_around(source, step * rows, (step + 1) * rows))
        return data.pin_memory() if device.type == "cuda" else data

    jobs = ((step, lambda step=step: read(step)) for step in range(start, stop))
    for _, batch in read_ahead(jobs):
        yield batch.to(device, non_blocking=True)
