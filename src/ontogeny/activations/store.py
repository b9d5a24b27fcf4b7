"""The format of activations on disk: layout, writing, stacking, checking, reading.

    {stream}.{layer}/step{S}.rows{K}.h5
        activations           (rows, d)     training rows of shard K, in their order (order.py)
        position              (rows, 2)     (block, offset) of each row
        token                 (rows, 2)     (previous, current) token; −1 where a block begins
    {stream}.{layer}/step{S}.h5
        held_out/activations  (rows', d)    held-out rows, in text order
        held_out/position     (rows', 2)
        held_out/token        (rows', 2)
        attributes of the first window of training rows: mean_norm, centred_norm (extract.norms),
                              norm_by_offset (context,), outliers (JSON, outliers.find)
    {stream}.{layer}/stack.h5
        held_out/activations  virtual, (n, rows', d): all snapshots, without a copy
        activations           the same for training rows, if they are in one kept shard
        attribute scales      (n,) √d over the norm that activations.scale names; 0 if the
                              stream is constant at a snapshot

Every dataset of rows has Fletcher-32 checksums, which any reader of HDF5 checks, and a dataset
`{name}_xxh3` with a digest of each chunk. With the digests our reader bypasses HDF5 and reads
chunks directly from the file, many times faster, and still notices a flipped bit. Files of training
rows are most of an experiment's disk use. With `activations.keep: false` or a budget they are
removed when no job needs them any more; everything else, including scales, stays.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash

from ontogeny.activations.sites import STACK, Site, folder_name, rows_path
from ontogeny.activations.sizes import CHUNK_BYTES, FLETCHER_BYTES
from ontogeny.files import InputError, read_hdf5, whole_hdf5
from ontogeny.version import VERSION

FORMAT = "ontogeny-activations-4"
CONSTANT = 1e-6  # centred norm over norm, up to which rows differ only by rounding
NORMS = {"centred": "centred_norm", "mean_norm": "mean_norm"}  # by activations.scale


class Writer:
    """A checksummed dataset (rows, width), filled from its first row to its last.

    Parameters
    ----------
    name : of the dataset; the digests of its chunks go into `{name}_xxh3`.
    """

    def __init__(self, file: h5py.File, name: str, rows: int, width: int, dtype: str) -> None:
        chunk = max(1, min(rows, CHUNK_BYTES // (width * np.dtype(dtype).itemsize)))
        self._data = file.create_dataset(
            name, (rows, width), dtype, chunks=(chunk, width), fletcher32=True
        )
        self._digests = file.create_dataset(f"{name}_xxh3", (-(-rows // chunk),), np.uint64)
        self._chunk = np.zeros((chunk, width), dtype)  # the chunk being filled
        self._found: list[int] = []
        self._row = 0
        self._check: Callable[[], None] = getattr(file, "check", lambda: None)

    def write(self, values: np.ndarray) -> None:
        """Append rows (P, width)."""
        rows, chunk = len(self._data), len(self._chunk)
        while len(values):
            inside = self._row % chunk
            part = values[: chunk - inside]
            self._chunk[inside : inside + len(part)] = part
            self._row += len(part)
            values = values[len(part) :]
            if self._row % chunk == 0 or self._row == rows:
                filled = self._row - len(self._found) * chunk
                self._chunk[filled:] = 0  # HDF5 fills the last chunk up with zeros
                self._data[self._row - filled : self._row] = self._chunk[:filled]
                self._check()
                self._found.append(xxhash.xxh3_64_intdigest(self._chunk.data))
                if self._row == rows:
                    self._digests[:] = np.array(self._found, np.uint64)


class Reader:
    """Rows of a dataset written by `Writer`, read by chunk directly from the file.

    Attributes
    ----------
    shape : (rows, width).

    Raises
    ------
    InputError : from `read`, if a chunk is not as it was written.
    """

    def __init__(self, path: str | Path, name: str) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        with read_hdf5(path, "a file of rows") as file:
            data = file[name]
            self.shape: tuple[int, int] = data.shape
            self._digests = [int(digest) for digest in file[f"{name}_xxh3"][:]]
            self._chunk = np.empty(data.chunks, data.dtype)
            rows, size = len(self._chunk), self._chunk.nbytes + FLETCHER_BYTES
            self._places = [-1] * len(self._digests)  # offset of each chunk in bytes

            def find(chunk: Any) -> None:
                if chunk.size == size and chunk.filter_mask == 0:
                    self._places[chunk.chunk_offset[0] // rows] = chunk.byte_offset

            data.id.chunk_iter(find)
        self._held = -1  # number of the chunk in memory

    def _load(self, number: int, into: np.ndarray) -> None:
        """Read a chunk into an array (chunk, width)."""
        if (place := self._places[number]) >= 0:
            view = into.data.cast("B")
            complete = os.preadv(self._file, [view], place) == len(view)
            if complete and xxhash.xxh3_64_intdigest(view) == self._digests[number]:
                return
        raise InputError(
            f"{self.path}: damaged (a checksum does not match); delete it to make it again"
        )

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop), (stop − start, width) in the stored type."""
        chunk = len(self._chunk)
        out = np.empty((stop - start, self.shape[1]), self._chunk.dtype)
        for number in range(start // chunk, -(-stop // chunk)):
            low, high = max(start, number * chunk), min(stop, (number + 1) * chunk)
            wanted = out[low - start : high - start]
            if high - low == chunk:
                self._load(number, wanted)
                continue
            if number != self._held:
                self._held = -1
                self._load(number, self._chunk)
                self._held = number
            wanted[:] = self._chunk[low - number * chunk :][: high - low]
        return out


@contextmanager
def open_checked(path: str | Path, **expected: Any) -> Iterator[h5py.File]:
    """Open an activations file while its contents are read.

    Raises
    ------
    InputError : the file is damaged or foreign, or one of its attributes is not as `expected`.
    """
    with read_hdf5(path, "an activations file") as file:
        if file.attrs.get("format") != FORMAT:
            raise InputError(f"{path}: not an activations file of this version; delete it")
        for name, value in expected.items():
            if not np.array_equal(file.attrs.get(name), value):
                raise InputError(
                    f"{path}: {name} is {file.attrs.get(name)}, but {value} was expected; delete "
                    "the file to make it again"
                )
        yield file


def describe(file: h5py.File, attributes: dict[str, Any]) -> None:
    """Write a file's attributes, with the versions of the software."""
    versions = {"format": FORMAT, "ontogeny": VERSION, "h5py": h5py.version.version}
    file.attrs.update(versions | attributes)


def stack(
    paths: list[Path],
    steps: list[int],
    output: str | Path,
    cached: bool = True,
    scale: str = "centred",
) -> None:
    """Write the virtual file that presents all snapshots of a (layer, stream) as (n, rows, d).

    Parameters
    ----------
    paths : the snapshots' files, step{S}.h5.
    cached : whether training rows are on disk; they are included if they are in one shard.
    scale : as activations.scale; which of each file's norms becomes √d.

    Raises
    ------
    InputError : a file is damaged, or holds rows other than the first file's.
    """
    shared: dict[str, Any] = {}
    scales, held_out, width = [], 0, 0
    for path, step in zip(paths, steps, strict=True):
        with open_checked(path, step=step, **shared) as file:
            if not shared:
                keys = ("layer", "stream", "dtype", "tokens", "seed", "shard_rows")
                shared = {key: file.attrs[key] for key in keys}
                held_out, width = file["held_out/activations"].shape
            norm, centred = file.attrs[NORMS[scale]], file.attrs["centred_norm"]
            varies = centred > CONSTANT * file.attrs["mean_norm"]
            scales.append(float(np.sqrt(width) / norm) if varies else 0.0)
    shown = {"held_out/activations": (held_out, width)}
    if len(shared["shard_rows"]) == 1 and cached:
        shown["activations"] = (int(shared["shard_rows"][0]), width)
        for path, step in zip(paths, steps, strict=True):
            with open_checked(rows_path(path, 0), step=step, **shared):
                pass
    with whole_hdf5(output, libver="latest") as file:
        for name, shape in shown.items():
            layout = h5py.VirtualLayout((len(paths), *shape), shared["dtype"])
            for i, path in enumerate(paths):
                held = rows_path(path, 0) if name == "activations" else path
                source = held.name if path.parent == Path(output).parent else held.resolve()
                layout[i] = h5py.VirtualSource(str(source), name, shape)
            file.create_virtual_dataset(name, layout)
        names = ("held_out/position", "held_out/token")
        with open_checked(paths[0]) as first:
            same = [first[name][:] for name in names]
        for name, values in zip(names, same, strict=True):
            file[name] = values
        facts = {"steps": steps, "scale": scale, "scales": scales, "width": width}
        describe(file, shared | facts)


def check_varies(sites: Sequence[Site], scales: np.ndarray) -> None:
    """Raise InputError if none of the sites varies, by their scales."""
    if not np.any(scales):
        named = ", ".join(site.name for site in sites[:3]) + (", …" if len(sites) > 3 else "")
        raise InputError(
            f"activations: all rows of {named} are equal, so there is nothing to learn; read "
            "other activations.layers, activations.streams or snapshots.steps"
        )


class Stacks:
    """The contents of the stacks of some sites, except the activations.

    Parameters
    ----------
    folder : the experiment's activations folder. sites : N sites in the order wanted.
    scales : (N,) constants that replace the stacks' own.

    Attributes
    ----------
    scales : (N,) √D over the mean norm of the first window of training rows, centred or not
        (activations.scale), by site; 0 if these rows are all equal; or those that were given.
    width : D. tokens : digest of the tokens that the models read.
    shard_rows : training rows by shard, whether or not they are still on disk.
    position : (rows', 2) block and offset of each held-out row.
    token : (rows', 2) previous and current token of each held-out row; −1 at the start of a block.
    paths : of each site's file.

    Raises
    ------
    InputError : a file is damaged, or a stack lacks a snapshot.
    """

    def __init__(
        self, folder: str | Path, sites: list[Site], scales: np.ndarray | None = None
    ) -> None:
        self.sites = sites
        own: dict[Site, float] = {}
        for layer, stream in dict.fromkeys((site.layer, site.stream) for site in sites):
            path = Path(folder) / folder_name(layer, stream) / STACK
            with open_checked(path) as file:
                for step, scale in zip(file.attrs["steps"], file.attrs["scales"], strict=True):
                    own[Site(int(step), layer, stream)] = float(scale)
                for site in sites:
                    if (site.layer, site.stream) == (layer, stream) and site not in own:
                        raise InputError(
                            f"{path}: has no snapshot of step {site.snapshot}; make it again"
                        )
                self.width = int(file.attrs["width"])
                self.shard_rows = [int(rows) for rows in file.attrs["shard_rows"]]
                self.tokens = str(file.attrs["tokens"])
                self.position: np.ndarray = file["held_out/position"][:]
                self.token: np.ndarray = file["held_out/token"][:]
        if scales is None:
            scales = np.array([own[site] for site in sites], np.float32)
        self.scales = scales
        self.paths = [Path(folder) / f"{site.name}.h5" for site in sites]
        for path in self.paths:
            with open_checked(path):
                pass
