"""The headers of safetensors files: which tensors they hold, and where the bytes of each are.

A header gives the names, types and shapes in a file of any size without reading its tensors. That
is enough to find a truncated file, to compare two checkpoints, and to rename tensors.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ontogeny.files import InputError, one_line

START = 8  # bytes before the header, which hold its length


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file: its type, such as F32, its shape, and where its bytes begin and end."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int


def names(path: Path) -> set[str]:
    """Names of the tensors of a file; InputError unless the header is valid and fits the size."""
    from safetensors import SafetensorError, safe_open

    try:
        # The reader for NumPy suffices for names and does not load torch.
        with safe_open(path, framework="np") as file:
            return set(file.keys())
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path}: damaged safetensors ({one_line(error, 160)}); get it again, or save it again"
        ) from None


def tensors(paths: Iterable[Path]) -> dict[str, Tensor]:
    """The tensors of some files by name, ascending; InputError as for `names`."""
    found: dict[str, Tensor] = {}
    for path in paths:
        names(path)
        header, data = _read(path)
        for name, about in header.items():
            if name != "__metadata__":
                first, end = about["data_offsets"]
                shape = tuple(about["shape"])
                found[name] = Tensor(about["dtype"], shape, path, data + first, data + end)
    return dict(sorted(found.items()))


def renamed(source: Path, target: Path, new: Mapping[str, str]) -> None:
    """Write a copy of a file in which tensors have other names; their bytes are not changed.

    Parameters
    ----------
    new : name of each tensor in the copy by its name in `source`.
    """
    header, data = _read(source)
    changed = {new.get(name, name): about for name, about in header.items()}
    body = json.dumps(changed, separators=(",", ":")).encode()
    body += b" " * (-len(body) % 8)  # tensors begin at a multiple of eight bytes
    with source.open("rb") as read, target.open("wb") as written:
        written.write(len(body).to_bytes(START, "little") + body)
        read.seek(data)
        shutil.copyfileobj(read, written, 1 << 24)


def _read(path: Path) -> tuple[dict[str, Any], int]:
    """The header of an intact file, and where its tensors begin."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(START), "little")
        return json.loads(file.read(length)), START + length
