"""Text that is tokenised already: memory-mapped arrays of token ids, checked when they are read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ontogeny.files import InputError, one_line
from ontogeny.settings import TokenArray

MOST_IDS = 1 << 24  # for any tokenizer
PIECE = 1 << 20  # tokens that are read at a time
NPY = b"\x93NUMPY"
# The type of the integers after a header of llm.c (dev/data/data_common.py), by magic number and
# version. The header is 256 int32, of which the third is the number of ids that follow.
HEADERS = {(20240520, 1): "uint16", (20240801, 7): "uint32"}
HEADER_BYTES = 1024
LEAST_JUDGED = 256  # integers needed to judge their type by their values
MOST_HIGH = 8  # largest upper half of an id in any vocabulary


def opened(tokens: TokenArray, context: int) -> np.ndarray:
    """The array, memory-mapped but not read: (tokens,) or (blocks, context), integers.

    Raises InputError if there is no such file, or its ending, size, type or shape is wrong.
    """
    path = Path(tokens.path)
    key = "corpus.tokens.path"
    if not path.is_file():
        raise InputError(f"{key}: {tokens.path}: no such file; correct the path")
    if path.suffix == ".bin":
        return _integers(tokens, path)
    if path.suffix != ".npy":
        raise InputError(f"{key}: {path}: unknown format; name a .npy or a .bin file")
    with path.open("rb") as file:
        foreign = file.read(len(NPY)) != NPY
    if foreign and path.stat().st_size and tokens.dtype is not None:  # plain integers, as OLMo has
        return _integers(tokens, path)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"{key}: {path}: not a complete .npy array ({one_line(error)}); restore it"
        ) from None
    if array.dtype.kind not in "iu":
        raise InputError(f"{key}: {path} holds {array.dtype}, not integers; write token ids there")
    if array.ndim not in (1, 2):
        raise InputError(
            f"{key}: {path} has shape {array.shape}; write (tokens,) or (blocks, context) there"
        )
    if array.ndim == 2 and array.shape[1] != context:
        raise InputError(
            f"{key}: {path} has blocks of {array.shape[1]} tokens, but corpus.context is "
            f"{context}; set it to their length"
        )
    return array


def _integers(tokens: TokenArray, path: Path) -> np.ndarray:
    """A file of plain integers, (tokens,), after llm.c's header if there is one."""
    known, start, count = _header(path)
    source = "its header"
    if known is None:
        known, source = _beside(path)
    if known and tokens.dtype and known != tokens.dtype:
        raise InputError(
            f"corpus.tokens.dtype: {tokens.dtype} is set, but {source} of {path} says {known}; "
            "remove the key"
        )
    dtype = tokens.dtype or known or "uint16"
    item, size = np.dtype(dtype).newbyteorder("<"), path.stat().st_size - start
    if size <= 0 or size % item.itemsize:
        raise InputError(
            f"corpus.tokens.path: {path} has {path.stat().st_size:,} bytes, which is not a whole "
            f"number of {dtype} integers; restore it or correct corpus.tokens.dtype"
        )
    if count is not None and size != count * item.itemsize:
        raise InputError(
            f"corpus.tokens.path: {path} holds {size // item.itemsize:,} integers, but its header "
            f"says {count:,}; restore it"
        )
    array: np.ndarray = np.memmap(path, item, "r", offset=start)
    wider = _wider(array[:PIECE]) if item.itemsize == 2 else None
    if wider:
        raise InputError(
            f"corpus.tokens.dtype: {path} read as {dtype} is nearly zero in every second place, "
            f"as {wider} integers would be; set {wider}"
        )
    return array


def _header(path: Path) -> tuple[str | None, int, int | None]:
    """The fields of llm.c's header: type, bytes before the ids, number of ids; None without one."""
    with path.open("rb") as file:
        head = np.frombuffer(file.read(HEADER_BYTES), "<i4")[:3].tolist()
    if len(head) < 3 or head[0] not in {magic for magic, _ in HEADERS}:
        return None, 0, None
    if (head[0], head[1]) not in HEADERS:
        raise InputError(
            f"corpus.tokens.path: {path} has an llm.c header of version {head[1]}, which is not "
            "supported; save the ids as .npy"
        )
    return HEADERS[head[0], head[1]], HEADER_BYTES, head[2]


def _beside(path: Path) -> tuple[str | None, str]:
    """The type that a JSON file in the same folder gives, and that file's name."""
    for other in (path.with_name(f"{path.name}.json"), path.with_suffix(".json"),
                  path.with_name("meta.json")):  # fmt: skip
        try:
            given = json.loads(other.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        named = [given.get(key) for key in ("dtype", "token_dtype")] if type(given) is dict else []
        for name in named:
            if name in ("uint16", "uint32", "int32", "int64"):
                return str(name), other.name
    return None, ""


def _wider(array: np.ndarray) -> str | None:
    """The type whose halves an array of uint16 seems to hold; None if it seems to be uint16."""
    if len(array) < LEAST_JUDGED or len(array) % 2:
        return None
    low, high = array[::2], array[1::2]
    if low.max() <= MOST_HIGH or high.max() > MOST_HIGH:
        return None
    return "int64" if len(low) % 2 == 0 and not low[1::2].any() else "uint32"


def beyond(tokens: TokenArray, context: int, blocks: int, embedding: int) -> str | None:
    """A line with the first id, in the given number of blocks, that a model's embedding lacks.

    Raises InputError as `opened`.
    """
    array = opened(tokens, context)
    needed = blocks * context if array.ndim == 1 else blocks
    rows = PIECE if array.ndim == 1 else max(1, PIECE // context)
    for start in range(0, min(needed, len(array)), rows):
        piece = np.asarray(array[start : min(start + rows, needed)])
        wrong = _first_outside(piece, embedding)
        if wrong is not None:
            wrong[0] += start
            return (
                f"corpus.tokens.path: {tokens.path} holds {array[tuple(wrong)]} at "
                f"{wrong.tolist()}, but the model's embedding has only ids below {embedding}; use "
                "the ids of the model's own tokenizer, or correct corpus.tokens.dtype"
            )
    return None


def _first_outside(piece: np.ndarray, vocabulary: int) -> np.ndarray | None:
    """Index of the first id that is not in the vocabulary."""
    if piece.min() >= 0 and piece.max() < vocabulary:
        return None
    return np.argwhere((piece < 0) | (piece >= vocabulary))[0]


def pieces(tokens: TokenArray, context: int, vocabulary: int) -> Iterator[np.ndarray]:
    """The array's ids in order, in pieces of about a million, each (tokens,).

    Raises InputError as `opened`, or for an id that the vocabulary lacks.
    """
    array = opened(tokens, context)
    rows = PIECE if array.ndim == 1 else max(1, PIECE // context)
    for start in range(0, len(array), rows):
        piece = np.asarray(array[start : start + rows])
        index = _first_outside(piece, vocabulary)
        if index is not None:
            value = piece[tuple(index)]
            index[0] += start
            raise InputError(
                f"corpus.tokens.path: {tokens.path} holds {value} at {index.tolist()}, but the "
                f"tokenizer has only ids below {vocabulary}; use the ids of the model's own "
                "tokenizer, or correct corpus.tokens.dtype"
            )
        yield piece.ravel()
