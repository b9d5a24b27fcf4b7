"""The activations' contract on disk: layout, writing, stacking, checking, reading.

    {stream}.{layer}/step{S}.train.h5
        activations           (rows, d)     training rows, in one shuffled order for all files
    {stream}.{layer}/step{S}.h5
        activations                         the same, by a link to that file
        position              (rows, 2)     (block, offset) of each
        held_out/activations  (rows', d)    held-out rows, in text order
        held_out/position     (rows', 2)
    {stream}.{layer}/stack.h5
        activations, held_out/activations   virtual, (n, rows, d): all snapshots, no copy

Reading straight through the rows is reading shuffled training data. The files of training rows are
most of an experiment's disk; with `activations.keep: false` they go once nothing needs them, and
all else, positions and scales included, stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import h5py
import numpy as np

from ontogeny import __version__
from ontogeny.files import InputError, whole
from ontogeny.settings import Sites

FORMAT = "ontogeny-activations-1"
CHUNK_BYTES = 1 << 18


@dataclass(frozen=True)
class Site:
    """One place whose activations a crosscoder reads or writes."""

    snapshot: int
    """Training step of the snapshot."""
    layer: int
    stream: str


def expand(sites: Sites, steps: list[int]) -> list[Site]:
    """All sites of a settings' section, layer by layer, each layer's snapshots in order."""
    chosen = steps if sites.snapshots == "all" else sorted(sites.snapshots)
    return [
        Site(step, layer, stream)
        for layer in sites.layers
        for stream in sites.streams
        for step in chosen
    ]


def folder_name(layer: int, stream: str) -> str:
    """Name of the folder that holds a (layer, stream)'s files."""
    return f"{stream}.{layer}"


def train_path(path: str | Path) -> Path:
    """The file of training rows that belongs to a snapshot's file."""
    return Path(path).with_suffix(".train.h5")


def create(file: h5py.File, name: str, rows: int, width: int, dtype: str) -> h5py.Dataset:
    """A checksummed dataset (rows, width), chunked for reading runs of rows."""
    chunk = max(1, min(rows, CHUNK_BYTES // (width * np.dtype(dtype).itemsize)))
    return file.create_dataset(name, (rows, width), dtype, chunks=(chunk, width), fletcher32=True)


def open_checked(path: str | Path, **expected: Any) -> h5py.File:
    """Open an activations file for reading.

    Raises
    ------
    InputError : the file is truncated, foreign, or differs from `expected` in an attribute.
    """
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        why = str(error).split("(")[-1].rstrip(")")
        raise InputError(
            f"{path}: truncated or not HDF5; delete it to make it again ({why})"
        ) from None
    if file.attrs.get("format") != FORMAT:
        raise InputError(f"{path}: not an activations file of this version; delete it")
    for name, value in expected.items():
        if file.attrs.get(name) != value:
            raise InputError(
                f"{path}: {name} is {file.attrs.get(name)}, {value} was expected; delete the file "
                "to make it again"
            )
    return file


def describe(file: h5py.File, attributes: dict[str, Any]) -> None:
    """Write a file's attributes, software versions included."""
    file.attrs["format"] = FORMAT
    file.attrs["ontogeny"] = __version__
    file.attrs["h5py"] = h5py.version.version
    for name, value in attributes.items():
        file.attrs[name] = value


def stack(paths: list[Path], steps: list[int], output: str | Path) -> None:
    """Write the virtual file that shows all snapshots of a (layer, stream) as (n, rows, d).

    Raises
    ------
    InputError : a file is damaged, or holds other rows than the first.
    """
    shared: dict[str, Any] = {}
    scales = []
    shapes: dict[str, tuple[int, int]] = {}
    names = ("activations", "held_out/activations")
    for path, step in zip(paths, steps, strict=True):
        with (
            open_checked(path, step=step, **shared) as file,
            open_checked(train_path(path), step=step, **shared),
        ):
            if not shared:
                keys = ("layer", "stream", "dtype", "tokens", "seed")
                shared = {key: file.attrs[key] for key in keys}
                shapes = {name: file[name].shape for name in names}
            scales.append(float(file.attrs["scale"]))
    with whole(output) as draft, h5py.File(draft, "w", libver="latest") as file:
        for name in names:
            layout = h5py.VirtualLayout((len(paths), *shapes[name]), shared["dtype"])
            for i, path in enumerate(paths):
                held = train_path(path) if name == "activations" else path
                source = held.name if path.parent == Path(output).parent else held.resolve()
                layout[i] = h5py.VirtualSource(str(source), name, shapes[name])
            file.create_virtual_dataset(name, layout)
        with h5py.File(paths[0]) as first:
            for name in ("position", "held_out/position"):
                file[name] = first[name][:]
        describe(file, shared | {"steps": steps, "scales": scales})


def _check_sources(stacked: h5py.Dataset) -> None:
    """Open every file behind a stack: HDF5 shows zeros in place of one missing or damaged."""
    folder = Path(stacked.file.filename).parent
    for source in stacked.virtual_sources():
        path = folder / source.file_name
        if not path.exists():
            raise InputError(
                f"{path}: these training rows are gone; make them again, with activations.keep: "
                "true to keep them"
            )
        open_checked(path).close()


class Stacks:
    """Activations of a list of sites, read from the stack files, normalised.

    Parameters
    ----------
    folder : the experiment's activations folder.
    sites : N sites in the order wanted.

    Attributes
    ----------
    scales : (N,) √d / mean‖a‖ over the training rows, by site; reading multiplies by it.
    width : d. rows, held_out_rows : rows of either split.
    """

    def __init__(self, folder: str | Path, sites: list[Site]) -> None:
        self.sites = sites
        self._parts: list[tuple[h5py.File, list[int]]] = []
        scales: list[float] = []
        for key in dict.fromkeys((s.layer, s.stream) for s in sites):
            path = Path(folder) / folder_name(*key) / "stack.h5"
            file = open_checked(path)
            _check_sources(file["held_out/activations"])
            steps = [int(step) for step in file.attrs["steps"]]
            absent = [
                s.snapshot for s in sites if (s.layer, s.stream) == key and s.snapshot not in steps
            ]
            if absent:
                raise InputError(f"{path}: holds no snapshot of step {absent[0]}; make it again")
            index = [steps.index(s.snapshot) for s in sites if (s.layer, s.stream) == key]
            scales += [float(file.attrs["scales"][i]) for i in index]
            self._parts.append((file, index))
        first = self._parts[0][0]
        self.scales = np.array(scales, np.float32)
        self.rows, self.width = map(int, first["activations"].shape[1:])
        self.held_out_rows = int(first["held_out/activations"].shape[1])
        self.tokens = str(first.attrs["tokens"])
        self._checked = {"held_out"}

    def position(self, split: str = "train") -> np.ndarray:
        """(rows, 2): block and offset of each row."""
        name = "position" if split == "train" else "held_out/position"
        return self._parts[0][0][name][:]

    def read(self, start: int, stop: int, split: str = "train") -> np.ndarray:
        """Rows [start, stop) as (rows, N, d) float32, each site times its scale."""
        name = "activations" if split == "train" else "held_out/activations"
        if split not in self._checked:
            for file, _ in self._parts:
                _check_sources(file[name])
            self._checked.add(split)
        out = np.empty((stop - start, len(self.sites), self.width), np.float32)
        place = 0
        for file, index in self._parts:
            data = file[name]
            for i in index:
                try:
                    values = data[i, start:stop]
                except OSError:
                    damaged = Path(file.filename).with_name(f"step{file.attrs['steps'][i]}.h5")
                    damaged = train_path(damaged) if split == "train" else damaged
                    raise InputError(
                        f"{damaged}: a checksum fails; delete it to make it again"
                    ) from None
                np.multiply(values, self.scales[place], out=out[:, place], dtype="f4")
                place += 1
        return out

    def pieces(self, rows: int, split: str = "train") -> Iterator[tuple[int, np.ndarray]]:
        """All rows in order, as (first row, (≤ rows, N, d)), read ahead by a thread."""
        total = self.rows if split == "train" else self.held_out_rows
        starts = list(range(0, total, rows))
        return read_ahead(
            (start, lambda start=start: self.read(start, min(start + rows, total), split))
            for start in starts
        )


def read_ahead(jobs: Iterator[tuple[int, Any]], depth: int = 2) -> Iterator[tuple[int, Any]]:
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
