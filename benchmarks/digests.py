"""What an experiment holds, as digests: what a change of the code has to leave equal.

    python -m benchmarks.digests results/NAME [--write FILE] [--against FILE]

A record maps each file, by its path in the experiment's folder, to digests of its parts: columns
of a table, tensors, datasets and attributes, keys of a JSON object. Equal means equal to the bit,
which needs one kind of processor and the same numbers of threads. Nothing of the package is
imported: the same script makes the records of different versions.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet

Parts = dict[str, str]

# Files that hold times, versions, dates, settings or checkpoints of trainings, and copies of the
# snapshots, whose folder is named by a digest of code.
LEFT_OUT = re.compile(
    r"^(benchmarks/|logs/|state/|pretrain/archive|atlas/(?!data/))"
    r"|\.(pdf|png)$|(^|/)(\.|provenance\.json$|config\.yaml$)"
)
# Beginnings of names of columns, keys and attributes: what differs from run to run; versions.
NOT_HELD = ("rows_per_second", "wall_seconds", "peak_memory", "disk_bytes", "ontogeny", "h5py")


def digest(content: str | bytes, about: str = "") -> str:
    """First 16 digits of the SHA-256 of values and what they are, such as their type."""
    sha = hashlib.sha256(f"{about}\n".encode())
    sha.update(content.encode() if isinstance(content, str) else content)
    return sha.hexdigest()[:16]


def csv_parts(path: Path) -> Parts:
    """Digests of the columns' text."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if "quantity" in table:  # replicates/numbers.csv: a row for each number of summary.json
        table = table[~table["quantity"].str.startswith(NOT_HELD)]
    return {n: digest("\n".join(table[n])) for n in table if not n.startswith(NOT_HELD)}


def parquet_parts(path: Path) -> Parts:
    """Digests of the columns' types and values."""
    table = pyarrow.parquet.read_table(path)
    return {n: digest(repr(table[n].to_pylist()), str(table[n].type)) for n in table.column_names}


def json_parts(path: Path) -> Parts:
    """Digests of an object's values by their keys; anything else is one part."""
    value = json.loads(path.read_text(encoding="utf-8"))
    values = value if isinstance(value, dict) else {"all": value}
    keys = sorted(key for key in values if not key.startswith(NOT_HELD))
    return {key: digest(json.dumps(values[key], sort_keys=True)) for key in keys}


def safetensors_parts(path: Path) -> Parts:
    """Digests of the tensors' types, shapes and bytes, and of the metadata."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    parts = {"metadata": digest(json.dumps(header.pop("__metadata__", {}), sort_keys=True))}
    for name, about in sorted(header.items()):
        first, last = (start + offset for offset in about["data_offsets"])
        parts[name] = digest(content[first:last], f"{about['dtype']} {about['shape']}")
    return parts


def hdf5_parts(path: Path) -> Parts:
    """Digests of the datasets' types, shapes and values, and of the attributes, named with an @."""
    parts: Parts = {}

    def visit(name: str, node: h5py.Group | h5py.Dataset) -> None:
        if isinstance(node, h5py.Dataset):
            parts[name] = digest(_content(node), f"{node.dtype} {node.shape}")
        for key in sorted(key for key in node.attrs if not key.startswith(NOT_HELD)):
            value = np.asarray(node.attrs[key])
            parts[f"{name}@{key}"] = digest(repr(value.tolist()), value.dtype.kind)

    with h5py.File(path) as file:
        visit("", file)
        file.visititems(visit)
    return parts


def _content(dataset: h5py.Dataset) -> str | bytes:
    """A dataset's values; of a virtual one, the names of the files that have them."""
    if dataset.is_virtual:
        return repr([(source.file_name, source.dset_name) for source in dataset.virtual_sources()])
    values = np.asarray(dataset[()])
    return repr(values.tolist()) if values.dtype.hasobject else values.tobytes()


PARTS: dict[str, Callable[[Path], Parts]] = {
    ".csv": csv_parts,
    ".parquet": parquet_parts,
    ".json": json_parts,
    ".safetensors": safetensors_parts,
    ".h5": hdf5_parts,
}


def record(folder: Path) -> dict[str, Parts]:
    """Digests of the files of an experiment's folder, by relative path."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not LEFT_OUT.search(name):
            parts = PARTS.get(path.suffix)
            digests[name] = parts(path) if parts else {"bytes": digest(path.read_bytes())}
    return digests


def differences(before: dict[str, Parts], after: dict[str, Parts]) -> Iterator[str]:
    """One line per file that differs, with the first part that differs, is missing or is new."""
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old is None or new is None:
            yield f"{name}: {'new' if old is None else 'missing'}"
        elif part := next((p for p in old | new if old.get(p) != new.get(p)), None):
            what = "is new" if part not in old else "differs" if part in new else "is missing"
            yield f"{name}: {part} {what}"


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--against", type=click.Path(exists=True, path_type=Path), help="Record to hold to.")
@click.option("--write", type=click.Path(path_type=Path), help="File for the record.")
def main(folder: Path, against: Path | None, write: Path | None) -> None:
    """Write the digests of an experiment, or print what differs from earlier ones."""
    after = record(folder)
    if write is not None:
        write.write_text(json.dumps(after, indent=1) + "\n", encoding="utf-8")
    if against is not None:
        lines = list(differences(json.loads(against.read_text(encoding="utf-8")), after))
        click.echo("\n".join(lines) or f"all {len(after)} files are as in {against}")
        raise SystemExit(bool(lines))


if __name__ == "__main__":
    main()
