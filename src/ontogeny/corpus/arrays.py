"""Text that is tokenised already: arrays of token ids, memory-mapped, checked as they are read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ontogeny.files import InputError, one_line
from ontogeny.settings import TokenArray

MOST_IDS = 1 << 24  # of any tokenizer
PIECE = 1 << 20  # tokens that are read at a time


def opened(tokens: TokenArray, context: int) -> np.ndarray:
    """The array, mapped into memory and not read: (tokens,) or (blocks, context), integers.

    InputError where there is no such file, or its ending, size, type or shape is wrong.
    """
    path = Path(tokens.path).expanduser()
    key = "corpus.tokens.path"
    if not path.is_file():
        raise InputError(f"{key}: {tokens.path}: no such file; correct the path")
    if path.suffix == ".bin":
        item = np.dtype(tokens.dtype).newbyteorder("<")
        size = path.stat().st_size
        if size == 0 or size % item.itemsize:
            raise InputError(
                f"{key}: {path} has {size:,} bytes, which are no {tokens.dtype} integers; restore "
                "it or correct corpus.tokens.dtype"
            )
        return np.memmap(path, item, "r")
    if path.suffix != ".npy":
        raise InputError(f"{key}: {path}: unknown format; name a .npy or a .bin file")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"{key}: {path}: not a whole .npy array ({one_line(error)}); restore it"
        ) from None
    if array.dtype.kind not in "iu":
        raise InputError(f"{key}: {path} holds {array.dtype}, not integers; write token ids there")
    if array.ndim not in (1, 2):
        raise InputError(
            f"{key}: {path} has shape {array.shape}; write (tokens,) or (blocks, context) there"
        )
    if array.ndim == 2 and array.shape[1] != context:
        raise InputError(
            f"{key}: {path} has blocks of {array.shape[1]} tokens, corpus.context is {context}; "
            "set it to theirs"
        )
    return array


def pieces(tokens: TokenArray, context: int, vocabulary: int) -> Iterator[np.ndarray]:
    """The array's ids in order, in pieces of about a million, each (tokens,).

    InputError as for `opened`, or of an id that the vocabulary lacks.
    """
    array = opened(tokens, context)
    rows = PIECE if array.ndim == 1 else max(1, PIECE // context)
    for start in range(0, len(array), rows):
        piece = np.asarray(array[start : start + rows])
        if piece.min() < 0 or piece.max() >= vocabulary:
            index = np.argwhere((piece < 0) | (piece >= vocabulary))[0]
            value = piece[tuple(index)]
            index[0] += start
            raise InputError(
                f"corpus.tokens.path: {tokens.path} holds {value} at {index.tolist()}, the "
                f"tokenizer has ids below {vocabulary}; give the model's own tokenizer's ids, or "
                "correct corpus.tokens.dtype"
            )
        yield piece.ravel()
