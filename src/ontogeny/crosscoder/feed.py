"""Batches for training: shuffled rows straight from HDF5, read and converted ahead by a thread."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from ontogeny.activations.store import Site, Stacks, read_ahead
from ontogeny.basis.principal import Projected


class Source(Protocol):
    """Rows of training data: (rows, I) float32, already shuffled."""

    rows: int

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop)."""


class FullSource:
    """All dimensions: rows of the input sites, then, where they differ, of the output sites."""

    def __init__(self, activations: str | Path, sites: list[Site]) -> None:
        self.stacks = Stacks(activations, sites)
        self.rows = self.stacks.rows

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop), (rows, N·D)."""
        return self.stacks.read(start, stop).reshape(stop - start, -1)


class PrincipalSource:
    """The principal subspace: rows of the projected file."""

    def __init__(self, projected: str | Path) -> None:
        self.file = Projected(projected)
        self.rows = self.file.rows

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop), (rows, R)."""
        return self.file.read(start, stop)


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
