"""Training rows without files: all snapshots stay on the device and compute rows on demand.

    Stream      snapshots, text and order: computes a window of rows for all its readers at once
    Streamed    one reader: the rows of a window in the form that some dictionaries need

A window is computed in passes. Every snapshot runs on the same tokens, and each reader keeps what
it needs of their streams: principal coordinates or all dimensions. Windows stay on the device,
where batches are gathered from them. The host waits for the device once per window, to learn
whether every value is finite. Readers that go through the rows together (crosscoder/stream.py)
share these passes.

Several processes may share a stream (peers.py). Each then runs a part of the snapshots and computes
its part of the rows. Principal coordinates are summed, y = Σ_g Σ_{θ∈g} (ã^θ − μ^θ) U_θ over the
snapshots θ of all processes g; full dimensions are joined. Each process then holds whole rows.

The rows, their order and, on a CPU, their rounding are the same as those that `extract` writes, so
a training on streamed rows agrees with one on rows from disk.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ontogeny import devices
from ontogeny.activations import order
from ontogeny.activations.extract import Snapshot, check_finite
from ontogeny.activations.rows import RowPaths, across, parts_of
from ontogeny.activations.sites import Site
from ontogeny.activations.sizes import FORWARD_TOKENS, STREAMED_WINDOWS, streamed_tokens
from ontogeny.activations.store import Stacks
from ontogeny.activations.subspace import Subspace
from ontogeny.activations.table import Table
from ontogeny.corpus.build import Tokens
from ontogeny.files import InputError
from ontogeny.peers import PeerLost, Peers
from ontogeny.progress import bar
from ontogeny.settings import Settings


@dataclass
class Window:
    """A window's positions on the device, and which of them are its rows.

    Attributes
    ----------
    slots : (R,) the rows in order, as indices into the positions.
    held : (W·context, ...) what readers keep of each position, by their `keeps`.
    """

    slots: Tensor
    held: dict[Hashable, Tensor] = field(default_factory=dict)


class Stream:
    """The snapshots of N sites on the device, which run on each window of text for all readers.

    Parameters
    ----------
    settings : activations is used. sites : N sites in the order wanted.
    paths : snapshots and tokens; also norms, if their norm is bounded.
    peers : this process among those that share the stream.

    Attributes
    ----------
    own : which of the N sites this process runs. order : of the rows.
    readers : those for which a window is computed; any other reader is served separately.
    windows : number of windows held at a time.

    Raises
    ------
    InputError : a snapshot is missing or damaged.
    """

    def __init__(
        self,
        settings: Settings,
        sites: Sequence[Site],
        paths: RowPaths,
        device: torch.device,
        peers: Peers | None = None,
    ) -> None:
        assert paths.snapshots is not None, "streamed rows need --snapshots"
        assert paths.tokens is not None, "streamed rows need --tokens"
        self.section, self.device, self.sites = settings.activations, device, list(sites)
        self.peers = peers or Peers()
        self.text = Tokens(paths.tokens)
        over = order.above_bound(settings, paths.norms, self.text)
        self.order = order.Order(self.text, "train", self.section, over)
        self.readers: list[Streamed] = []
        self.windows = 1
        self.models = []
        every = list(dict.fromkeys(site.snapshot for site in sites))
        parts = [set(every[part]) for part in self.peers.parts(len(every))]
        shared = [[i for i, site in enumerate(sites) if site.snapshot in part] for part in parts]
        self.own = shared[self.peers.rank]
        self._columns = [len(part) for part in shared]
        # Index of each of the N sites among the joined sites of all processes.
        self._side_by_side = torch.tensor([i for part in shared for i in part]).argsort().to(device)
        steps = every[self.peers.parts(len(every))[self.peers.rank]]
        label = "snapshots onto the device"
        with bar(label, len(steps), "snapshots") as progress:
            for step in steps:
                folder = paths.snapshots / f"step{step}"
                self.models.append(Snapshot(settings, folder, step, device))
                progress.update()
        self.width = Stacks(paths.activations, self.sites).width
        self.stored = getattr(torch, self.section.dtype)
        columns = len(self.sites) * self.width
        self._tokens = streamed_tokens(device.type == "cuda", columns, self.stored.itemsize)
        self._held: dict[int, Window] = {}

    def window(self, number: int, reader: Streamed) -> Window:
        """A window with this reader's part, computed unless it is in memory."""
        if number not in self._held or reader.keeps not in self._held[number].held:
            self._held.pop(number, None)
            while len(self._held) >= self.windows:
                del self._held[next(iter(self._held))]
            readers = self.readers if reader in self.readers else [reader]
            self._held[number] = self._computed(number, readers)
        return self._held[number]

    def _computed(self, number: int, readers: Sequence[Streamed]) -> Window:
        """Run all passes of a window. Raises InputError for a value that its type cannot hold."""
        blocks, context = self.order.windows[number], self.text.context
        by_part = {reader.keeps: reader for reader in readers}
        positions = len(blocks) * context
        window = Window(devices.sent(self.order.slots(number), self.device))
        fine = torch.ones(len(by_part), positions, dtype=torch.bool, device=self.device)
        for keeps, reader in by_part.items():
            shape = positions, *reader.kept_shape
            window.held[keeps] = torch.empty(shape, dtype=reader.kept_type, device=self.device)
        piece = max(1, FORWARD_TOKENS // context) * context  # what readers process at a time
        first = 0
        for numbers in order.batches(blocks, context, self._tokens):
            ids = self.text.take(numbers)
            x, flat = self._run(ids), ids.ravel()
            for start in range(0, len(x), piece):
                rows = slice(first + start, first + min(start + piece, len(x)))
                part = slice(start, start + piece)
                for n, (keeps, reader) in enumerate(by_part.items()):
                    values = reader.kept_of(x[part], flat[part])
                    window.held[keeps][rows] = values
                    fine[n, rows] = torch.isfinite(values).flatten(1).all(1)
            first += len(x)
        fine = fine[:, window.slots]  # positions without a row may have values that no type holds
        if not fine.all():
            self._explain(number, int((~fine).nonzero()[0, 1]))
        return window

    def whole(self, x: Tensor) -> Tensor:
        """(P, N, D) for all sites, from this process's (P, n, D)."""
        if self.peers.size == 1:
            return x
        return self.peers.joined(x, self._columns)[:, self._side_by_side]

    def _run(self, ids: np.ndarray) -> Tensor:
        """(B·T, n, D) on the device as stored: this process's sites, for (B, T) token ids."""
        shape = (ids.size, len(self.own), self.width)
        x = torch.empty(shape, dtype=self.stored, device=self.device)
        on_device = devices.sent(ids.astype(np.int64), self.device)
        for model in self.models:
            values = model.read(ids, on_device)
            for i, number in enumerate(self.own):
                if (site := self.sites[number]).snapshot == model.step:
                    x[:, i] = values[site.layer, site.stream]
        return x

    def _explain(self, window: int, row: int) -> None:
        """Raise InputError that names the site whose value the stored type cannot hold.

        If there are several processes, the one that runs its snapshot raises it; the others raise
        PeerLost.
        """
        number, at = divmod(int(self.order.slots(window)[row]), self.text.context)
        block = self.order.windows[window][number]
        first = int(self.order.starts[window]) + row
        fault = None
        try:
            for model in self.models:
                for key, values in model.read(self.text.take(np.array([block]))).items():
                    check_finite(values[at : at + 1], key, model.step, self.section.dtype, first)
        except InputError as error:
            fault = error
        fine = self.peers.agree(fault is None, self.device)
        if fault is not None:
            raise fault
        if not fine:
            raise PeerLost("another process names the site whose value its type cannot hold")
        raise InputError(
            f"activations: training row {first} has a principal coordinate that is too large for "
            "float16; look for an outlier there, or set basis: full"
        )


class Streamed(Stacks):
    """Training rows of some sites times their scales, or their principal coordinates.

    Parameters
    ----------
    settings : activations is used. sites : N sites in the order wanted.
    paths : activations (for the scales), snapshots and tokens.
    subspace : onto which rows are projected, or None.
    table : subtracted from the rows; its scales then replace theirs.
    stream : of these sites, which other readers may share; None creates one.
    peers : processes that share a stream created here.

    Attributes
    ----------
    keeps : names the part of a window that this reader uses: the stored rows, or the principal
        coordinates, which are the same for all readers of a stream that project.
    kept_shape, kept_type : of a position in that part.

    Raises
    ------
    InputError : the activations were made from other tokens; `read` and `take` raise it for a
        value that its type cannot hold.
    """

    def __init__(
        self,
        settings: Settings,
        sites: list[Site],
        paths: RowPaths,
        device: torch.device,
        subspace: Subspace | None = None,
        table: Table | None = None,
        stream: Stream | None = None,
        peers: Peers | None = None,
    ) -> None:
        super().__init__(paths.activations, sites, None if table is None else table.scales)
        self.stream = stream or Stream(settings, sites, paths, device, peers)
        if self.stream.text.digest != self.tokens:
            raise InputError(
                f"{paths.activations}: made from other tokens than {paths.tokens}; delete these "
                "activations to make them again"
            )
        self.order = self.stream.order
        self.rows = self.order.rows
        self.shape: tuple[int, ...] = (len(sites), self.width)
        self.keeps: Hashable = "stored"
        self.kept_shape: tuple[int, ...] = self.shape
        self.kept_type = self.stream.stored
        self._device, self._table = device, table
        # The sites that this reader scales: all, or if it projects, those of this process.
        self._sites = list(range(len(sites))) if subspace is None else self.stream.own
        self._scale: tuple[np.ndarray, Tensor] = self.scales, self._by_site(self.scales)
        if table is not None:
            values = torch.from_numpy(table.values[self._sites])
            self._values = values.to(device, torch.float16)
        self._tokens: tuple[int, np.ndarray] = -1, np.zeros(0)  # of one window, for the next call
        self._entry: tuple[int, Tensor] = -1, torch.zeros(0)
        self._project = None
        if subspace is not None:
            self.keeps = "principal"
            self._project = subspace.partial(self.stream.own, device)
            self.shape = self.kept_shape = (subspace.dimensions,)
            self.kept_type = torch.float16
            if stream is None:
                self.stream.windows = STREAMED_WINDOWS

    def _by_site(self, scales: np.ndarray) -> Tensor:
        return torch.from_numpy(scales[self._sites]).to(self._device)[:, None]

    @property
    def _scales(self) -> Tensor:
        """(n, 1) on the device, from `scales`, which may be replaced."""
        if self._scale[0] is not self.scales:
            self._scale = self.scales, self._by_site(self.scales)
        return self._scale[1]

    def kept_of(self, x: Tensor, ids: np.ndarray) -> Tensor:
        """(P, *kept_shape) on the device, for rows and their (P,) token ids.

        Parameters
        ----------
        x : (P, n, D) as stored, of this process's sites.
        """
        if self._project is None:
            return self.stream.whole(x)
        x = x.float() * self._scales
        if self._table is not None:
            self._take_off(x, devices.sent(self._table.entry(ids), self._device))
        return self.stream.peers.total(self._project(x)).to(self.kept_type)

    def take(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop), (stop − start, *shape) float32 on the device."""
        parts = [self._take(*part) for part in parts_of(self.order.starts, start, stop)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop), (stop − start, *shape) float32, in the host's memory."""
        rows: np.ndarray = self.take(start, stop).cpu().numpy()
        return rows

    def tokens_at(self, start: int, stop: int) -> np.ndarray:
        """Previous and current token of rows [start, stop), (stop − start, 2); −1 means none."""
        return across(self.order.starts, start, stop, self._read_tokens)

    def _read_tokens(self, window: int, start: int, stop: int) -> np.ndarray:
        if self._tokens[0] != window:
            self._tokens = window, self.order.token(window)
        return self._tokens[1][start:stop]

    def _take(self, number: int, start: int, stop: int) -> Tensor:
        window = self.stream.window(number, self)
        rows = window.held[self.keeps][window.slots[start:stop]].float()
        if self._project is not None:
            return rows
        rows *= self._scales
        if self._table is not None:
            if self._entry[0] != number:
                entry = self._table.entry(self.order.token(number)[:, 1])
                self._entry = number, devices.sent(entry, self._device)
            self._take_off(rows, self._entry[1][start:stop])
        return rows

    def _take_off(self, rows: Tensor, entry: Tensor) -> None:
        """Subtract the table's entries of the tokens from normalised rows (P, n, D), in place."""
        rows -= self._values[:, entry].transpose(0, 1)
