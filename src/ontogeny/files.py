"""Whole-or-nothing writing, and digests: a killed job leaves no file that looks finished."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


class InputError(ValueError):
    """Input that a stage cannot work with. One line: the file or key, and the mend."""


def one_line(error: BaseException, longest: int | None = None) -> str:
    """An error's message, or its kind, as a part of one line of at most `longest` characters."""
    return " ".join(str(error).split())[:longest] or type(error).__name__


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, renamed to it when the block ends without error.

    Works for a file or a folder; a folder that is already there is replaced. Drafts of the same
    path that killed processes left are removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        if not _runs(stale.name.split(".")[-2]):
            _remove(stale)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield draft
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(draft, path)
    finally:
        _remove(draft)


def _runs(process: str) -> bool:
    """Whether a process of this machine has the id."""
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` whole or not at all."""
    with whole(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_table(path: str | Path, table: pd.DataFrame) -> None:
    """Write a tidy table as Parquet or CSV, by the path's ending, whole or not at all."""
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
    """Short digest of a JSON-like value, the same for the same content in any key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
