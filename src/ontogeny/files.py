"""Atomic writing, and digests: a killed job leaves no file that looks finished.

System errors, such as a full disk or a folder without write permission, become one line.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ontogeny import digests

if TYPE_CHECKING:
    import h5py
    import pandas as pd


class InputError(ValueError):
    """Input that a stage cannot work with. Its message is one line: the file or key, and the
    correction."""


def one_line(error: BaseException, longest: int | None = None) -> str:
    """An error's message, or its type, as part of a line, with at most `longest` characters."""
    return " ".join(str(error).split())[:longest] or type(error).__name__


REASONS = {
    errno.ENOSPC: "no space is left on this disk; free some, or reduce what `ontogeny plan` lists",
    errno.EDQUOT: "your quota on this disk is used up; free some of it, or have it raised",
    errno.EFBIG: "the file exceeds what this system allows (`ulimit -f`); have the limit raised",
    errno.EROFS: "this file system cannot be written to; work in a folder that can",
    errno.EACCES: "it may not be written or read here; see who owns it (`ls -l`)",
    errno.EPERM: "it may not be written or read here; see who owns it (`ls -l`)",
    errno.EIO: "the disk failed to read or write; see the system's log (`dmesg`)",
    errno.ESTALE: "the network's file system has lost it; run the same command again",
    errno.EMFILE: "too many files are open; raise the limit (`ulimit -n`)",
    errno.ENFILE: "too many files are open on this machine; run the same command again later",
    errno.ENOMEM: "no memory is left; end what else runs, or lower what `ontogeny plan` lists",
    errno.ENOLCK: "this file system has no locks; set HDF5_USE_FILE_LOCKING=FALSE",
}


def explained(error: OSError) -> str:
    """A system error as one line: the file, what is wrong, and how to correct it."""
    reason = REASONS.get(error.errno or 0) or (error.strerror or one_line(error))
    return f"{error.filename}: {reason}" if error.filename else reason


def failure(error: BaseException) -> OSError | None:
    """The system error that caused an error of a library such as HDF5, Arrow or safetensors."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None:
        said = re.search(r"(?:errno = |os error |Errno )(\d+)", str(error))
        number = int(said[1]) if said else None
    if number not in REASONS:
        return None
    name = error.filename if isinstance(error, OSError) else None
    return OSError(number, os.strerror(number), name)


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`, and rename it if the block ends without error.

    It works for files and folders; an existing folder is replaced. Drafts of the same path that
    killed processes left are removed. If the path is in an experiment's folder, the digests of
    what was written are recorded.

    Raises
    ------
    InputError : the system cannot write, for example because the disk is full.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
            if not _runs(stale.name.split(".")[-2]):
                _remove(stale)
        yield draft
        written = digests.of_all(draft) if digests.home(path) else {}
        digests.forget(path)
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(draft, path)
        if written:
            digests.keep(path, written)
    except Exception as error:
        system = failure(error)
        if system is None:
            raise
        if system.filename is None or str(draft) in str(system.filename):
            system.filename = str(path)
        raise InputError(explained(system)) from None
    finally:
        with suppress(OSError):  # if nothing can be written, nothing can be removed either
            _remove(draft)


class _Draft(io.FileIO):
    """A file for HDF5 to write to, which records the first system error and hides it from HDF5.

    If HDF5 cannot write, as on a full disk, it crashes the process, at once or when it ends.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self.failed: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        try:
            while done < len(view) and self.failed is None:
                done += super().write(view[done:]) or 0
        except OSError as error:
            self.failed = error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        try:
            if self.failed is None:
                return super().truncate(size)
        except OSError as error:
            self.failed = error
        return size or 0

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        done = super().readinto(view) or 0
        if self.failed is not None and done < len(view):
            view[done:] = bytes(len(view) - done)
        return len(view) if self.failed is not None else done

    def check(self) -> None:
        """Raise the error of a failed write, if any."""
        if self.failed is not None:
            raise self.failed


@contextmanager
def whole_hdf5(path: str | Path, **options: Any) -> Iterator[h5py.File]:
    """Yield a new HDF5 file, which is moved into place if the block ends without error.

    Its attribute `check` is a function that raises the error of a failed write; until it is
    called, further data are discarded silently.

    Parameters
    ----------
    options : of h5py.File.
    """
    import h5py

    with whole(path) as draft, _Draft(draft) as raw:
        try:
            with h5py.File(raw, "w", **options) as file:
                file.check = raw.check
                yield file
        except Exception:
            raw.check()  # any other error is a consequence of this one
            raise
        raw.check()


BROKEN = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Exceptions that readers of HDF5 raise for a damaged file."""


def open_hdf5(path: str | Path) -> h5py.File:
    """Open an HDF5 file for reading.

    Raises
    ------
    InputError : the system denies access. OSError : it is missing, truncated, or not HDF5.
    """
    import h5py

    try:
        return h5py.File(path, "r")
    except FileNotFoundError:
        raise
    except OSError as error:
        _not_the_files_fault(path, error)
        raise


@contextmanager
def read_hdf5(path: str | Path, what: str) -> Iterator[h5py.File]:
    """Open an HDF5 file that this package wrote while its contents are read.

    Parameters
    ----------
    what : what it holds, such as "a file of tasks".

    Raises
    ------
    InputError : it cannot be opened, or a part is missing or not as it was written.
    """
    try:
        with open_hdf5(path) as file:
            yield file
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: not made yet; run the experiment") from None
    except BROKEN as error:
        _not_the_files_fault(path, error)
        raise InputError(
            f"{path}: truncated or not {what}; delete it to make it again ({one_line(error, 200)})"
        ) from None


def _not_the_files_fault(path: str | Path, error: Exception) -> None:
    """Raise what is wrong if it is the system or the device; the file is intact then."""
    if "out of memory" in str(error):  # of a GPU
        raise error
    system = failure(error)
    if system is not None:
        system.filename = str(path)
        raise InputError(explained(system)) from None


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Name the file in whatever goes wrong while a file that this package wrote is read.

    Raises
    ------
    InputError : it is missing or damaged, or the system denies access.
    """
    try:
        yield
    except (InputError, MemoryError):
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: not made yet; run the experiment") from None
    except Exception as error:  # Arrow, pandas and json raise errors of many classes
        _not_the_files_fault(path, error)
        why = one_line(error, 200)
        raise InputError(f"{path}: damaged; delete it to make it again ({why})") from None


def read_table(path: str | Path, **options: Any) -> pd.DataFrame:
    """A table that `write_table` wrote; raises as `reading`, also if a CSV ends within a line.

    Parameters
    ----------
    options : of the reader in pandas.
    """
    import pandas as pd

    with reading(path):
        if str(path).endswith(".parquet"):
            return pd.read_parquet(path, **options)
        with open(path, "rb") as file:
            file.seek(-1, os.SEEK_END)  # fails if it is empty
            if file.read() != b"\n":
                raise ValueError("the last line is cut short")
        return pd.read_csv(path, **options)


def read_json(path: str | Path) -> Any:
    """A value that `write_json` wrote; raises as `reading`."""
    with reading(path):
        return json.loads(Path(path).read_text(encoding="utf-8"))


def read_job(path: str | Path) -> dict[str, float]:
    """Numbers of one of Snakemake's benchmark files by column, such as "s"; NaN if not measured.

    Raises
    ------
    InputError : it is damaged.
    """
    try:
        names, values = Path(path).read_text(encoding="utf-8").splitlines()[:2]
        row = dict(zip(names.split("\t"), values.split("\t"), strict=True))
        named = {key: row[key] for key in ("s", "max_rss", "cpu_time")}
        return {key: float("nan" if v in ("-", "NA") else v) for key, v in named.items()}
    except (ValueError, KeyError) as error:
        raise InputError(
            f"{path}: damaged; delete it, and it is written again when its job runs "
            f"({one_line(error, 200)})"
        ) from None


def reserve(file: IO[Any], size: int, folder: str | Path) -> None:
    """Allocate the disk space of a file that is then written through a memory map.

    If the disk is full, writing to a memory map kills the process without a message.

    Raises
    ------
    InputError : there are no `size` bytes on the disk of `folder`.
    """
    if hasattr(os, "posix_fallocate") and size:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise InputError(explained(OSError(error.errno, "", str(folder)))) from None


def _runs(process: str) -> bool:
    """Whether a process with this id runs on this machine."""
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove(path: str | Path) -> None:
    """Remove a file or folder that is no longer needed, if it exists, and the record of its
    digests."""
    path = Path(path)
    digests.forget(path)
    _remove(path)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` atomically."""
    with whole(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_table(path: str | Path, table: pd.DataFrame) -> None:
    """Write a tidy table as Parquet or CSV, by the path's ending, atomically."""
    with whole(path) as draft:
        if str(path).endswith(".parquet"):
            table.to_parquet(draft, index=False)
        else:
            table.to_csv(draft, index=False)


def digest_file(path: str | Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_value(value: Any) -> str:
    """Short digest of a JSON-like value; the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
