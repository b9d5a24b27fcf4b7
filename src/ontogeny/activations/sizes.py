"""Sizes shared by the activation stages and the formulas of their cost; nothing imports torch.

So costs are computed from the same numbers that the stages use.
"""

CHUNK_BYTES = 1 << 18  # most bytes of a checksummed chunk of rows on disk
FLETCHER_BYTES = 4  # bytes that HDF5 adds to a chunk for its checksum
PLACE_BYTES = 16  # (block, offset) and (previous, current) token of a row, 4 bytes each
FORWARD_TOKENS = 4096  # approximate number of positions on which a language model runs at a time
MOST_FORWARD_TOKENS = 65_536  # the most for streamed rows on a GPU
PASS_BYTES = 1 << 31  # most bytes of the rows from one such pass
STREAMED_WINDOWS = 2  # for rows in a subspace, or several trainings: a batch may span two
PIECE_ROWS = 4096  # most rows that the basis and the projection take at a time
PIECE_VALUES = 1 << 27  # approximate number of values in these rows: 512 MB as float32
LEAST_PIECE = 256  # rows that are always taken
LEAST_LARGEST = 2048  # dimensions that a basis may have for a model of any width
LARGEST_WIDTHS = 5  # the same in units of the model's width, if basis.largest is not given
LEAST_COUNT = 20  # rows of a token that make its mean reliable
COMPARED_TOKENS = 4096  # most tokens whose means are compared with each other
FULL_TABLE = 300_000_000  # bytes up to which a token table has an entry for every token seen
LARGEST_TABLE = 2_000_000_000  # most bytes of a token table
STREAMED_ROWS = 2_000_000  # rows from which the token tables are computed, if rows are streamed
READ_AHEAD = 2  # pieces or batches that are read before they are needed


def piece_rows(columns: int) -> int:
    """Rows with the given number of values that the basis and the projection take at a time."""
    return max(LEAST_PIECE, min(PIECE_ROWS, PIECE_VALUES // columns))


def most_dimensions(largest: int | None, dimensions: int | None, width: int) -> int:
    """Most dimensions of a basis: `basis.largest`, or its default if it is not given."""
    if largest is not None:
        return largest
    return max(LEAST_LARGEST, LARGEST_WIDTHS * width, dimensions or 0)


def streamed_tokens(gpu: bool, columns: int, item: int) -> int:
    """Approximate number of positions on which every snapshot runs at a time to stream rows.

    On a CPU it is the usual number, so that rows have the same bits that `extract` would write. A
    GPU needs more work at a time: as much as fits PASS_BYTES, whatever memory is free at present.

    Parameters
    ----------
    columns : N·D of the sites. item : bytes of a stored activation.
    """
    tokens = FORWARD_TOKENS
    while gpu and tokens < MOST_FORWARD_TOKENS and 2 * tokens * columns * item <= PASS_BYTES:
        tokens *= 2
    return tokens
