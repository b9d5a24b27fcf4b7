"""Sizes that the stages of activations and the formulas of their cost share; nothing imports torch.

A cost is then reckoned with the very numbers that the stage uses.
"""

CHUNK_BYTES = 1 << 18  # of a checksummed chunk of rows on disk, at most
FLETCHER_BYTES = 4  # that HDF5 adds to a chunk for its checksum
POSITION_BYTES = 8  # of a row's (block, offset), uint32 each
FORWARD_TOKENS = 4096  # positions that a language model runs on at a time, about
PIECE_ROWS = 4096  # rows that the basis and the projection take at a time
READ_AHEAD = 2  # pieces or batches that are ready before they are used
