"""Sizes of the tokens file, shared by the stage that writes it and the formulas of its cost."""

from __future__ import annotations

CHUNK_BYTES = 1 << 18  # most bytes of an HDF5 chunk


def chunk_blocks(context: int, item: int) -> int:
    """Blocks per chunk, for blocks of `context` tokens of `item` bytes each."""
    return max(1, min(64, CHUNK_BYTES // (context * item)))
