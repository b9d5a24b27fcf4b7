"""What every file of an experiment held when it was written: its size and its XXH3 digest.

`results/NAME/digests/` has a small JSON file for each file or folder that was written whole, under
the same name, so that jobs side by side never write the same one. XXH3 is read at the speed of
memory: it detects a flipped bit, but does not protect against forgery.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

FOLDER, MARK, PLACE = "digests", "README", "place"
SAME_TIME = 2_000_000_000  # ns: some file systems store no finer times
PIECE = 1 << 22  # bytes that are read at a time


class Digest(NamedTuple):
    """A file's size in bytes, the hexadecimal XXH3 (128 bits) of its content, and its time, ns."""

    size: int
    xxh3: str
    time: int


def of(path: Path) -> Digest:
    """Digest of a file's present content."""
    digest, size = xxhash.xxh3_128(), 0
    with open(path, "rb", buffering=0) as file:
        time = os.fstat(file.fileno()).st_mtime_ns
        while piece := file.read(PIECE):
            digest.update(piece)
            size += len(piece)
    return Digest(size, digest.hexdigest(), time)


def of_all(path: Path) -> dict[str, Digest]:
    """Digests of a folder's files, by their names in it; for a single file, under ''."""
    if not path.is_dir():
        return {"": of(path)}
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return {str(p.relative_to(path)): of(p) for p in files}


def begin(experiment: Path) -> None:
    """Record digests of what is written in an experiment's folder from now on."""
    (experiment / FOLDER).mkdir(exist_ok=True)
    (experiment / FOLDER / MARK).write_text(__doc__ or "", encoding="utf-8")
    (experiment / FOLDER / PLACE).write_text(_place(experiment), encoding="utf-8")


def _place(experiment: Path) -> str:
    about = (experiment / FOLDER).stat()
    return f"{about.st_dev} {about.st_ino}"


def copied_without_times(experiment: Path) -> bool:
    """Whether a folder is a copy whose files have the times of copying, in the order of copying.

    Snakemake then considers results older than their inputs. `cp -a` and `rsync -a` preserve the
    times.
    """
    try:
        if (experiment / FOLDER / PLACE).read_text(encoding="utf-8") == _place(experiment):
            return False
    except OSError:
        return False
    files = [(path, digest.time) for path, (digest, _) in known(experiment).items()]
    there = [(path.stat().st_mtime_ns, time) for path, time in files if path.exists()]
    return sum(abs(now - then) > SAME_TIME for now, then in there) > len(there) / 2


def home(path: Path) -> Path | None:
    """The experiment's folder that contains a path, if digests are kept there; None for a draft."""
    if any(part.endswith(".part") for part in path.parts):
        return None
    for parent in path.parents:
        if (parent / FOLDER / MARK).is_file():
            return parent
    return None


def _record(path: Path) -> Path | None:
    """Path of the record with a file's or folder's digests."""
    folder = home(path)
    return None if folder is None else folder / FOLDER / f"{path.relative_to(folder)}.json"


def forget(path: Path) -> None:
    """Remove the record of a file or folder that is about to be replaced or removed.

    Drafts of the record that killed processes left are removed too.
    """
    record = _record(path)
    if record is not None:
        for draft in record.parent.glob(f".{glob.escape(record.name)}.*.part"):
            draft.unlink(missing_ok=True)
        record.unlink(missing_ok=True)
        shutil.rmtree(record.with_suffix(""), ignore_errors=True)


def keep(path: Path, digests: dict[str, Digest]) -> None:
    """Record the digests of a file or folder that is in its final place."""
    record = _record(path)
    if record is None:
        return
    record.parent.mkdir(parents=True, exist_ok=True)
    draft = record.with_name(f".{record.name}.{os.getpid()}.part")
    draft.write_text(json.dumps({name: digest._asdict() for name, digest in digests.items()}))
    draft.replace(record)


def _read(record: Path) -> dict[str, Digest]:
    """The digests of a record; none if it is damaged."""
    try:
        kept: Any = json.loads(record.read_text(encoding="utf-8"))
        return {
            name: Digest(int(d["size"]), str(d["xxh3"]), int(d["time"])) for name, d in kept.items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def unreadable(experiment: Path) -> Iterator[tuple[Path, Path]]:
    """Records that are damaged, each with the file or folder that it is about."""
    for record in sorted((experiment / FOLDER).rglob("*.json")):
        if not _read(record):
            yield record, experiment / record.relative_to(experiment / FOLDER).with_suffix("")


def known(experiment: Path) -> dict[Path, tuple[Digest, Path]]:
    """All files with a digest, by path: the digest, and the file or folder that was written."""
    found: dict[Path, tuple[Digest, Path]] = {}
    records = sorted((experiment / FOLDER).rglob("*.json"), key=lambda p: len(p.parts))
    for record in records:  # a file's own record takes precedence over that of its folder
        whole = experiment / record.relative_to(experiment / FOLDER).with_suffix("")
        found |= {whole / name: (digest, whole) for name, digest in _read(record).items()}
    return found


def _kept(path: Path) -> Iterator[tuple[Path, Digest]]:
    """The recorded digests of a file, or of all files of a folder that was written as one."""
    folder = home(path)
    if folder is None:
        return
    record = _record(path)
    if record is not None and record.exists():
        yield from ((path / name, digest) for name, digest in _read(record).items())
        return
    for parent in path.parents:
        if parent == folder:
            return
        record = _record(parent)
        if record is not None and record.exists():
            own = _read(record).get(str(path.relative_to(parent)))
            if own is not None:
                yield path, own
            return


def fault(path: Path, digest: Digest, most: int | None = None) -> str:
    """What is wrong with a file: missing, truncated, changed; '' if it is as it was written.

    Parameters
    ----------
    most : above this number of bytes, only the size is compared.
    """
    try:
        size = path.stat().st_size
        if size != digest.size:
            return f"has {size:,} of the {digest.size:,} bytes that were written"
        if (most is None or size <= most) and of(path).xxh3 != digest.xxh3:
            return "its content has changed since it was written"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return ""


def faults(path: Path, most: int | None = None) -> Iterator[tuple[Path, str]]:
    """Files of a folder, or the file, that are not as they were written, with what is wrong.

    Files without a digest are not reported.
    """
    for file, digest in _kept(path):
        wrong = fault(file, digest, most)
        if wrong:
            yield file, wrong
