"""How fast a feature's contexts are read, one at a time, in no order: ms a feature.

    python -m benchmarks.contexts [FILE]               (after `make figures`; 2 minutes)

Reads features of FILE (the default experiment's contexts.h5) and of a synthetic file of 100,000
features of the default sizes, and writes benchmarks/results/contexts.json. Paths, in turn within
each repeat, over the same features in the same order:

    plain       as many bytes from the same place of the same file, os.pread: the bound
    record      the record through HDF5, its checksum verified
    feature     the record and all that `Store` makes of it: contexts, texts, lens
    parquet     the same record's columns from Parquet, a row group for each record of a chunk
    gzip        the record where chunks are compressed as well (shuffle, level 1)

The file is in the system's cache for all of them: from disk each waits for one place to be read.
Beside wall time stands processor time, which other jobs of the machine do not change.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np
import pyarrow as pa
from pyarrow import parquet

from ontogeny.features import contexts
from ontogeny.files import write_json

WORK = Path("results/benchmarks/contexts")
OUTPUT = Path(__file__).parent / "results" / "contexts.json"
FEATURES = 100_000
ASKED = 300
REPEATS = 7


def synthetic(source: Path, features: int) -> Path:
    """A file of so many features: the source's records, again and again, in another order."""
    path = WORK / f"{features}.h5"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    draft = path.with_suffix(".part")
    with h5py.File(source) as old, h5py.File(draft, "w") as new:
        for name, value in old.attrs.items():
            new.attrs[name] = value
        new.attrs["features"] = features
        for name in ("edges", "vocabulary", "vocabulary_stop", "sites"):
            old.copy(name, new)
        new["feature"] = np.arange(features, dtype=np.uint32)
        records, kept = old["features"][:], old["features"].chunks
        stored = new.create_dataset("features", (features,), records.dtype, chunks=kept,
                                    fletcher32=True)  # fmt: skip
        for low in range(0, features, len(records)):
            part = rng.permutation(records)[: features - low]
            part["feature"] = np.arange(low, low + len(part))
            stored[low : low + len(part)] = part
    draft.rename(path)
    return path


def as_parquet(path: Path) -> Path:
    """The same records as Parquet, every field flat, in row groups of a chunk's records."""
    out = WORK / f"{path.stem}.parquet"
    if out.exists():
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path) as file:
        records, rows = file["features"][:], file["features"].chunks[0]
    columns: dict[str, pa.Array] = {}
    for name in records.dtype.names:
        values = records[name]
        if values.ndim == 1:
            columns[name] = pa.array(values)
        else:
            flat = values.reshape(len(values), -1)
            columns[name] = pa.FixedSizeListArray.from_arrays(flat.ravel(), flat.shape[1])
    parquet.write_table(pa.table(columns), out, row_group_size=rows, compression="none")
    return out


def as_gzip(path: Path) -> Path:
    """The same records in compressed chunks."""
    out = WORK / f"{path.stem}.gzip.h5"
    if not out.exists():
        with h5py.File(path) as old, h5py.File(out, "w") as new:
            data = old["features"]
            new.create_dataset("features", data=data[:], chunks=data.chunks, fletcher32=True,
                               shuffle=True, compression="gzip", compression_opts=1)  # fmt: skip
    return out


def paths_of(path: Path) -> tuple[dict[str, Callable[[int], Any]], contexts.Store, dict[str, int]]:
    """The ways to read the feature at a place, by name; the store; and each file's bytes."""
    store = contexts.Store(path)
    flat, packed = as_parquet(path), as_gzip(path)
    data, zipped = h5py.File(path)["features"], h5py.File(packed)["features"]
    rows, size = data.chunks[0], data.dtype.itemsize
    place: dict[int, int] = {}
    data.id.chunk_iter(lambda c: place.__setitem__(c.chunk_offset[0] // rows, c.byte_offset))
    plain = os.open(path, os.O_RDONLY)
    groups = parquet.ParquetFile(flat)
    ways: dict[str, Callable[[int], Any]] = {
        "plain": lambda i: os.pread(plain, size, place[i // rows] + i % rows * size),
        "record": lambda i: store.record(int(store.features[i])),
        "feature": lambda i: store.feature(int(store.features[i])),
        "parquet": lambda i: groups.read_row_group(i // rows).slice(i % rows, 1),
        "gzip": lambda i: zipped[i],
    }
    sizes = {name: p.stat().st_size for name, p in zip(
        ("record", "parquet", "gzip"), (path, flat, packed), strict=True)}  # fmt: skip
    return ways, store, sizes


def measure(path: Path) -> list[dict[str, Any]]:
    """A row a path: median and quartiles over repeats of the mean over features."""
    ways, store, sizes = paths_of(path)
    rng = np.random.default_rng(1)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    busy: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS + 1):  # the first warms up
        asked = rng.integers(0, len(store), ASKED)
        for name, read in ways.items():
            start, working = time.perf_counter(), time.process_time()
            for i in asked:
                read(int(i))
            seconds[name].append((time.perf_counter() - start) / ASKED)
            busy[name].append((time.process_time() - working) / ASKED)
    bound = float(np.median(seconds["plain"][1:]))
    found = []
    for name, each in seconds.items():
        low, middle, high = np.quantile(each[1:], [0.25, 0.5, 0.75])
        found.append(
            {
                "features": len(store),
                "path": name,
                "milliseconds": middle * 1e3,
                "milliseconds_low": low * 1e3,
                "milliseconds_high": high * 1e3,
                "processor_milliseconds": float(np.median(busy[name][1:])) * 1e3,
                "over_plain": middle / bound,
                "record_bytes": store.record(int(store.features[0])).nbytes,
                "file_bytes": sizes.get(name, sizes["record"]),
                "processor": platform.processor() or platform.machine(),
            }
        )
    return found


def opening(path: Path) -> float:
    """Seconds to open a file and read its first feature, the median of some times."""
    each = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        store = contexts.Store(path)
        store.feature(int(store.features[0]))
        each.append(time.perf_counter() - start)
    return float(np.median(each))


@click.command()
@click.argument(
    "source",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default="results/default/features/batchtopk/contexts.h5",
)
@click.option("--features", default=FEATURES, help="Of the synthetic file.")
@click.option("--output", type=click.Path(path_type=Path), default=OUTPUT)
def main(source: Path, features: int, output: Path) -> None:
    """Measure the file's features, and a synthetic file's."""
    rows = []
    for path in (source, synthetic(source, features)):
        found = measure(path)
        first = opening(path)
        rows += [row | {"open_seconds": first} for row in found]
    write_json(output, rows)
    for row in rows:
        click.echo(
            f"{row['features']:>7,} features, {row['path']:<8} {row['milliseconds']:.3f} ms "
            f"({row['milliseconds_low']:.3f} to {row['milliseconds_high']:.3f}), of the "
            f"processor {row['processor_milliseconds']:.3f}, "
            f"{row['over_plain']:.0f} times plain; file {row['file_bytes'] / 1e6:.0f} MB"
        )
    click.echo(f"opening: {rows[0]['open_seconds']:.3f} s, {rows[-1]['open_seconds']:.3f} s")


if __name__ == "__main__":
    main()
