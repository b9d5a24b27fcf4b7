"""Training rows without files: all snapshots stay on the device, and run when rows are wanted.

The rows, their order and their rounding are those that `extract` would have written, so a training
that streams them agrees with one that reads them.
"""

from __future__ import annotations

import numpy as np
import torch

from ontogeny.activations import order
from ontogeny.activations.extract import Snapshot, check_finite
from ontogeny.activations.rows import RowPaths, across
from ontogeny.activations.sites import Site
from ontogeny.activations.store import Stacks
from ontogeny.activations.subspace import Subspace
from ontogeny.activations.table import Table
from ontogeny.corpus.build import Tokens
from ontogeny.files import InputError
from ontogeny.progress import bar
from ontogeny.settings import Settings


class Streamed(Stacks):
    """Training rows of some sites, each site times its scale, or their principal coordinates.

    Parameters
    ----------
    settings : activations is used. sites : N sites in the order wanted.
    paths : activations (for the scales), snapshots and tokens.
    subspace : rows are projected onto it, if it is given.
    table : taken off the rows, whose scale is then the table's.

    Raises
    ------
    InputError : tokens that the activations are not of; from `read`, a value that its type cannot
        hold.
    """

    def __init__(
        self,
        settings: Settings,
        sites: list[Site],
        paths: RowPaths,
        device: torch.device,
        subspace: Subspace | None = None,
        table: Table | None = None,
    ) -> None:
        assert paths.snapshots is not None, "streamed rows need --snapshots"
        assert paths.tokens is not None, "streamed rows need --tokens"
        super().__init__(paths.activations, sites, None if table is None else table.scales)
        self._section, self._device, self._text = settings.activations, device, Tokens(paths.tokens)
        if self._text.digest != self.tokens:
            raise InputError(
                f"{paths.activations}: made from other tokens than {paths.tokens}; delete these "
                "activations to make them again"
            )
        over = order.above_bound(settings, paths.norms, self._text)
        self.order = order.Order(self._text, "train", settings.activations, over)
        self.rows = self.order.rows
        self.shape: tuple[int, ...] = (len(sites), self.width)
        self._stored = self._dtype = getattr(torch, settings.activations.dtype)
        self._windows: dict[int, torch.Tensor] = {}
        self._most = 1  # windows in memory
        self._tokens: tuple[int, np.ndarray] = -1, np.zeros(0)  # of one window
        self._table = table
        self._project = None
        if subspace is not None:
            self.shape, self._dtype = (subspace.dimensions,), torch.float16
            self._most = 2  # a batch may lie in two
            self._project = subspace.projection(device)
            self._scales = torch.from_numpy(self.scales).to(device)[:, None]
            if table is not None:
                self._values = torch.from_numpy(table.values).to(device, torch.float16)
        steps = list(dict.fromkeys(site.snapshot for site in sites))
        self._models = []
        with bar("snapshots onto the device", len(steps), "snapshots") as progress:
            for step in steps:
                folder = paths.snapshots / f"step{step}"
                self._models.append(Snapshot(settings, folder, step, device))
                progress.update()

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop), (stop − start, *shape) float32."""
        rows = across(self.order.starts, start, stop, self._read)
        if self._table is None or self._project is not None:
            return rows
        return self._table.off(rows, self.tokens_at(start, stop)[:, 1])

    def tokens_at(self, start: int, stop: int) -> np.ndarray:
        """Previous and current token of rows [start, stop), (stop − start, 2); −1 is none."""
        return across(self.order.starts, start, stop, self._read_tokens)

    def _read_tokens(self, window: int, start: int, stop: int) -> np.ndarray:
        if self._tokens[0] != window:
            self._tokens = window, self.order.token(window)
        return self._tokens[1][start:stop]

    def _read(self, window: int, start: int, stop: int) -> np.ndarray:
        if window not in self._windows:
            while len(self._windows) >= self._most:
                del self._windows[next(iter(self._windows))]
            self._windows[window] = self._computed(window)
        stored = self._windows[window][start:stop].numpy()
        if self._project is not None:
            return np.asarray(stored, np.float32)
        return np.multiply(stored, self.scales[:, None], dtype=np.float32)

    def _computed(self, window: int) -> torch.Tensor:
        """A window's rows in order, (R, *shape) on the CPU, as they would be stored."""
        numbers, context = self.order.windows[window], self._text.context
        held = torch.empty(len(numbers) * context, *self.shape, dtype=self._dtype)
        first = 0
        for blocks in order.batches(numbers, context):
            ids = self._text.take(blocks)
            x = self._run(ids)
            if self._project is not None:
                x = x.float() * self._scales
                if self._table is not None:
                    entry = torch.from_numpy(self._table.entry(ids.ravel())).to(self._device)
                    x -= self._values[:, entry].transpose(0, 1)
                x = self._project(x)
            held[first : first + len(x)] = x
            first += len(x)
        rows = held[torch.from_numpy(self.order.slots(window))]
        fine = torch.isfinite(rows).flatten(1).all(1)
        if not fine.all():
            self._explain(window, int((~fine).nonzero()[0]))
        return rows

    def _run(self, ids: np.ndarray) -> torch.Tensor:
        """(B·T, N, D) on the device as stored, of (B, T) token ids."""
        shape = (ids.size, len(self.sites), self.width)
        x = torch.empty(shape, dtype=self._stored, device=self._device)
        for model in self._models:
            values = model.read(ids)
            for i, site in enumerate(self.sites):
                if site.snapshot == model.step:
                    x[:, i] = values[site.layer, site.stream]
        return x

    def _explain(self, window: int, row: int) -> None:
        """Raise InputError that names the site whose value the stored type cannot hold."""
        number, at = divmod(int(self.order.slots(window)[row]), self._text.context)
        block = self.order.windows[window][number]
        first = int(self.order.starts[window]) + row
        for model in self._models:
            for key, values in model.read(self._text.take(np.array([block]))).items():
                check_finite(values[at : at + 1], key, model.step, self._section.dtype, first)
        raise InputError(
            f"activations: training row {first} has a principal coordinate that is too large for "
            "float16; look for an outlier there, or set basis: full"
        )
