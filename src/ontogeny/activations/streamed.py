"""Training rows without files: all snapshots stay on the device, and run when rows are wanted.

The rows, their order and their rounding are those that `extract` would have written, so a training
that streams them agrees with one that reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from ontogeny.activations import order as order_of
from ontogeny.activations import store
from ontogeny.activations.extract import Snapshot, check_finite
from ontogeny.corpus.build import Tokens
from ontogeny.files import InputError
from ontogeny.progress import bar
from ontogeny.settings import Settings


class Streamed:
    """Training rows of a list of sites, normalised, computed from the snapshots.

    Parameters
    ----------
    s : the settings. sites : N sites in the order wanted.
    activations : the experiment's activations folder, for the scales.
    snapshots : folder of step{S} folders. tokens : tokens.h5.

    Attributes
    ----------
    rows, width, scales, sites : as of store.Stacks.
    """

    def __init__(
        self,
        s: Settings,
        sites: list[store.Site],
        activations: str | Path,
        snapshots: str | Path,
        tokens: str | Path,
        device: torch.device,
    ) -> None:
        known = store.Stacks(activations, sites)
        self.sites, self.scales, self.width = known.sites, known.scales, known.width
        self.tokens, self.device = known.tokens, device
        self._a, self._data = s.activations, Tokens(tokens)
        if self._data.digest != known.tokens:
            raise InputError(
                f"{activations}: activations of other tokens than {tokens}; delete them to make "
                "them again"
            )
        self.order = order_of.Order(self._data, "train", s.activations)
        self.rows = self.order.rows
        self._scales = torch.from_numpy(known.scales).to(device)
        self._held = -1  # number of the window that is in memory
        self._rows: torch.Tensor | None = None
        steps = list(dict.fromkeys(site.snapshot for site in sites))
        self._models = []
        with bar("snapshots onto the device", len(steps), "snapshots") as progress:
            for step in steps:
                self._models.append(Snapshot(s, Path(snapshots) / f"step{step}", step, device))
                progress.update()

    def _positions(self, window: int) -> Iterator[tuple[int, torch.Tensor]]:
        """A window's positions in text order: (first, (positions, N, d) as stored)."""
        place = 0
        for chosen in order_of.batches(self.order.windows[window], self._data.context):
            ids = self._data.take(chosen)
            stored = getattr(torch, self._a.dtype)
            x = torch.empty(ids.size, len(self.sites), self.width, dtype=stored, device=self.device)
            for model in self._models:
                found = model.read(ids)
                for i, site in enumerate(self.sites):
                    if site.snapshot == model.step:
                        x[:, i] = found[site.layer, site.stream]
            yield place, x
            place += len(x)

    def _window(
        self, number: int, shape: tuple[int, ...], keep: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """A window's rows in order, each kept as `keep` makes it: (R, *shape) on the CPU."""
        found: torch.Tensor | None = None
        for place, x in self._positions(number):
            part = keep(x)
            if found is None:
                size = len(self.order.windows[number]) * self._data.context
                found = torch.empty(size, *shape, dtype=part.dtype)
            found[place : place + len(part)] = part
        assert found is not None, "a window has a block"
        rows = found[torch.from_numpy(self.order.slots(number))]
        fine = torch.isfinite(rows).flatten(1).all(1)
        if not fine.all():
            self._explain(number, int((~fine).nonzero()[0]))
        return rows

    def projected(
        self, number: int, width: int, project: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """A window's rows in order in a subspace, (R, width) on the CPU.

        Parameters
        ----------
        project : normalised (P, N, d) float32 on the device to (P, width).
        """
        scales = self._scales[:, None]
        return self._window(number, (width,), lambda x: project(x.float() * scales))

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) as (rows, N, d) float32, each site times its scale.

        The window that they lie in is in memory as it would be stored.
        """
        out = np.empty((stop - start, len(self.sites), self.width), np.float32)
        done = 0
        while start + done < stop:
            number = self.order.window_of(start + done)
            if self._held != number:
                self._rows = None
                self._rows = self._window(number, out.shape[1:], lambda x: x)
                self._held = number
            assert self._rows is not None
            first = start + done - int(self.order.starts[number])
            part = self._rows[first : first + stop - start - done].numpy()
            np.multiply(
                part, self.scales[:, None], out=out[done : done + len(part)], dtype=np.float32
            )
            done += len(part)
        return out

    def pieces(self, rows: int, stop: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """Rows [0, stop) in order, as (first row, (≤ rows, N, d)), computed ahead by a thread."""
        last = self.rows if stop is None else min(stop, self.rows)
        return store.read_ahead(
            (at, lambda at=at: self.read(at, min(at + rows, last))) for at in range(0, last, rows)
        )

    def _explain(self, window: int, row: int) -> None:
        """Raise InputError that names the site whose value the stored type cannot hold."""
        slot = int(self.order.slots(window)[row])
        block = self.order.windows[window][slot // self._data.context]
        at = slot % self._data.context
        first = int(self.order.starts[window]) + row
        for model in self._models:
            for key, values in model.read(self._data.take(np.array([block]))).items():
                check_finite(values[at : at + 1], key, model.step, self._a.dtype, first)
        raise InputError(
            f"activations: training row {first} has a principal coordinate that float16 cannot "
            "hold; look for an outlier there, or set basis: full"
        )
