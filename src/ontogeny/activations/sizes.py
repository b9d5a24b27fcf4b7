"""Sizes that the stages of activations and the formulas of their cost share; nothing imports torch.

Costs are then computed from the same numbers that the stage uses.
"""

CHUNK_BYTES = 1 << 18  # of a checksummed chunk of rows on disk, at most
FLETCHER_BYTES = 4  # that HDF5 adds to a chunk for its checksum
PLACE_BYTES = 16  # of a row's (block, offset) and (previous, current) token, 4 bytes each
FORWARD_TOKENS = 4096  # positions that a language model runs on at a time, about
MOST_FORWARD_TOKENS = 65_536  # the same of streamed rows on a GPU, at most
PASS_BYTES = 1 << 31  # of the rows that one such pass leaves, at most
STREAMED_WINDOWS = 2  # of rows in a subspace, or of several trainings: a batch may lie in two
PIECE_ROWS = 4096  # rows that the basis and the projection take at a time, at most
PIECE_VALUES = 1 << 27  # values of these rows, about: 512 MB as float32
LEAST_PIECE = 256  # rows that are taken all the same
LEAST_LARGEST = 2048  # dimensions that a basis may have however narrow the model
LARGEST_WIDTHS = 5  # and how many times the model's width, where basis.largest is left out
LEAST_COUNT = 20  # rows of a token whose mean is known well
COMPARED_TOKENS = 4096  # whose means are held against each other, at most
FULL_TABLE = 300_000_000  # bytes up to which a token table has an entry for every token seen
LARGEST_TABLE = 2_000_000_000  # bytes that one has at most
STREAMED_ROWS = 2_000_000  # rows that the token tables come from, where rows are streamed
READ_AHEAD = 2  # pieces or batches that are ready before they are used


def piece_rows(columns: int) -> int:
    """Rows of so many values that the basis and the projection take at a time."""
    return max(LEAST_PIECE, min(PIECE_ROWS, PIECE_VALUES // columns))


def most_dimensions(largest: int | None, dimensions: int | None, width: int) -> int:
    """Most dimensions of a basis: `basis.largest`, or what stands for it where it is left out."""
    if largest is not None:
        return largest
    return max(LEAST_LARGEST, LARGEST_WIDTHS * width, dimensions or 0)


def streamed_tokens(gpu: bool, columns: int, item: int) -> int:
    """Positions that every snapshot runs on at a time where rows are streamed, about.

    On a CPU as many as elsewhere, so that rows have the bits that `extract` would write. A GPU
    wants more work at a time: as much as PASS_BYTES hold, whatever is free just now.

    Parameters
    ----------
    columns : N·D of the sites. item : bytes of a stored activation.
    """
    tokens = FORWARD_TOKENS
    while gpu and tokens < MOST_FORWARD_TOKENS and 2 * tokens * columns * item <= PASS_BYTES:
        tokens *= 2
    return tokens
