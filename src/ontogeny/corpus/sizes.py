"""Sizes of the tokens file that cost formulas share with the stage that writes it."""

from __future__ import annotations

CHUNK_BYTES = 1 << 18  # of an HDF5 chunk, at most


def chunk_blocks(context: int, item: int) -> int:
    """Blocks of a chunk, for blocks of `context` tokens of `item` bytes each."""
    return max(1, min(64, CHUNK_BYTES // (context * item)))
