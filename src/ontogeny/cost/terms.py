"""What formulas of cost are made of: work, memory in named terms, an experiment's sizes.

The formulas stand beside what they describe: snapshots/cost.py, activations/cost.py,
crosscoder/cost.py. None of these modules imports torch or looks at the machine.

Memory is a sum of named terms, so that a bill that does not fit can say which setting weighs most.
Letters: B tokens of a batch, N sites, D width, F features, R dimensions of a subspace, I and O
columns that a crosscoder reads and writes, P pairs at which a feature is active.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ontogeny.activations import order
from ontogeny.activations.sizes import CHUNK_BYTES, FLETCHER_BYTES, FORWARD_TOKENS, POSITION_BYTES
from ontogeny.settings import Crosscoder, Settings
from ontogeny.snapshots.shape import Shape

Terms = dict[str, float]
"""Bytes by what they are for."""

JUMPRELU_ACTIVE = 0.05  # assumed: share of all pairs at which a jumprelu is active
RELU_ACTIVE = 0.25  # assumed: share of features that a relu has active on a token

# What files hold beside their data, at most: headers, attributes, the index of chunks.
HDF5_FILE, HDF5_CHUNK = 14_000, 82
SAFETENSORS_TENSOR = 130


@dataclass(frozen=True)
class Work:
    """What a job does, by the rate that it runs at.

    Attributes
    ----------
    forward : floating point operations of the language model in its own precision.
    forward32 : the same in float32. products : of dense products of the crosscoder, in its
        precision. products32 : of dense products in float32.
    pairs : of products over the pairs at which features are active.
    moved, host_moved : bytes through the device's memory, and through the host's.
    read, written, fetched : bytes from disk, to disk, from the network.
    compiled : graphs that the compiler makes. starts : of processes; half a one without
        transformers. ranks : processes that share it, a device each.
    """

    forward: float = 0
    forward32: float = 0
    products: float = 0
    products32: float = 0
    pairs: float = 0
    moved: float = 0
    host_moved: float = 0
    read: float = 0
    written: float = 0
    fetched: float = 0
    compiled: float = 0
    starts: float = 1
    ranks: int = 1

    @property
    def flops(self) -> float:
        """All floating point operations."""
        return self.forward + self.forward32 + self.products + self.products32 + self.pairs


@dataclass(frozen=True)
class Job:
    """One process, or several that share its work: that work, and the terms of peak memory.

    `host` is of all of them, `device` of each one's. Where there is no GPU, what the devices would
    hold is in the host's memory too, and `device` is of all of them.
    """

    work: Work = Work()
    host: Terms = field(default_factory=dict)
    device: Terms = field(default_factory=dict)


@dataclass(frozen=True)
class Sizes:
    """An experiment's sizes, once its model is known.

    Attributes
    ----------
    file_bytes : of a weight in the snapshots' files. run_bytes : of one when the model is run.
    gpu : whether there is a device beside the host.
    shards : windows of each shard of training rows. shard_rows : rows of each.
    held_out_rows : of the held-out split. text_blocks : all blocks of the tokens.
    exact, text_exact : whether rows, and blocks of the tokens, are known, not bounds.
    """

    settings: Settings
    model: Shape
    file_bytes: int
    run_bytes: int
    gpu: bool
    shards: tuple[range, ...]
    shard_rows: tuple[int, ...]
    held_out_rows: int
    text_blocks: int
    exact: bool = False
    text_exact: bool = True

    @property
    def item(self) -> int:
        """Bytes of a stored activation."""
        return 2 if self.settings.activations.dtype == "float16" else 4

    @property
    def rows(self) -> int:
        """Training rows."""
        return sum(self.shard_rows)

    @property
    def context(self) -> int:
        """Tokens of a block."""
        return self.settings.corpus.context

    @property
    def positions(self) -> int:
        """Positions of the training split, left-out ones included."""
        return self.settings.corpus.train_blocks * self.context

    @property
    def places(self) -> int:
        """Layers times streams: sites of a snapshot."""
        return len(self.settings.activations.layers) * len(self.settings.activations.streams)

    @property
    def snapshots(self) -> int:
        """Snapshots of the experiment, n."""
        return len(self.settings.snapshots.chosen)

    @property
    def last(self) -> int:
        """The last layer that is wanted."""
        return max(self.settings.activations.layers)

    @property
    def windows(self) -> int:
        """Windows of the training rows."""
        corpus, activations = self.settings.corpus, self.settings.activations
        return order.number_of_windows(corpus.train_blocks, self.context, activations.window)

    @property
    def window(self) -> int:
        """Positions of the largest window."""
        return -(-self.settings.corpus.train_blocks // self.windows) * self.context

    @property
    def streamed(self) -> bool:
        """Whether training rows are computed when wanted."""
        return self.settings.activations.mode == "streamed"

    @property
    def batch(self) -> int:
        """Positions of one forward pass: some whole blocks."""
        return max(1, FORWARD_TOKENS // self.context) * self.context

    @property
    def truncated(self) -> float:
        """Bytes of a snapshot that is cut off after the last wanted layer."""
        return self.run_bytes * self.model.parameters_to(self.last)

    @property
    def token_flops(self) -> float:
        """Operations of a token's forward pass to the last wanted layer."""
        return self.model.flops_per_token(self.context, self.last)


@dataclass(frozen=True)
class Dictionary:
    """A crosscoder's sizes.

    Attributes
    ----------
    inputs, outputs : numbers of sites. width : D. dimensions : R; None in all N·D dimensions.
    snapshots : different ones among the sites. known : whether the dimensions are no bound.
    """

    crosscoder: Crosscoder
    inputs: int
    outputs: int
    width: int
    dimensions: int | None
    snapshots: int
    known: bool = True

    @property
    def F(self) -> int:
        """Features."""
        return self.crosscoder.features

    @property
    def n_in(self) -> int:
        """Columns of its inputs in all dimensions, N·D."""
        return self.inputs * self.width

    @property
    def n_out(self) -> int:
        """Columns of its outputs in all dimensions."""
        return self.outputs * self.width

    @property
    def I(self) -> int:  # noqa: E743
        """Columns that it reads in training."""
        return self.dimensions or self.n_in

    @property
    def O(self) -> int:  # noqa: E743
        """Columns that it writes in training."""
        return self.dimensions or self.n_out

    @property
    def gates(self) -> int:
        """Gates of a feature: one, or one per site."""
        return self.outputs if self.crosscoder.gate == "snapshot" else 1

    @property
    def full(self) -> int:
        """Bytes of the decoder in all dimensions."""
        return 4 * self.F * self.n_out

    @property
    def same(self) -> bool:
        """Whether it reconstructs what it reads."""
        return self.crosscoder.outputs in (None, self.crosscoder.inputs)

    @property
    def active(self) -> float:
        """Active features of a token and site: wanted, or assumed."""
        kind = self.crosscoder.activation
        if kind == "batch_topk":
            return self.crosscoder.k
        return (JUMPRELU_ACTIVE if kind == "jumprelu" else RELU_ACTIVE) * self.F

    @property
    def weights(self) -> int:
        """Bytes of encoder, decoder, biases and thresholds in float32; of their gradients too."""
        return 4 * (self.F * (self.I + self.O + 2) + self.O)

    @property
    def tensors(self) -> int:
        """Bytes of its file's tensors: weights, silent rows, scales, means, directions."""
        size = self.weights + 8 * self.F + 4 * (self.inputs + self.outputs) * (1 + self.width)
        return size + 4 * self.n_in * (self.dimensions or 0)


# Files


def chunked(rows: int, width: int, item: int, chunk: int) -> int:
    """Bytes of an HDF5 dataset (rows, width) in whole checksummed chunks of `chunk` rows."""
    return -(-rows // chunk) * (chunk * width * item + FLETCHER_BYTES)


def rows_dataset(rows: int, width: int, item: int, positions: bool = False) -> tuple[int, int]:
    """(bytes, chunks) of rows as they are written: whole chunks, a digest of each, positions."""
    chunk = max(1, min(rows, CHUNK_BYTES // (width * item)))
    count = -(-rows // chunk)
    size = chunked(rows, width, item, chunk) + 8 * count
    return size + POSITION_BYTES * rows * positions, count


def hdf5_file(datasets: float, chunks: int = 0) -> float:
    """Bytes of an HDF5 file: its datasets, and what it holds beside them, at most."""
    return datasets + HDF5_FILE + HDF5_CHUNK * chunks


# Memory that several stages share


def base(gpu: bool) -> tuple[Terms, Terms]:
    """What a process with torch and transformers takes before it does anything."""
    return {"Python and torch": 2.5e9 if gpu else 0.65e9}, ({"CUDA": 0.8e9} if gpu else {})


def job(sizes: Sizes, work: Work, host: Terms, device: Terms) -> Job:
    """A job whose process has torch, and CUDA where there is a GPU."""
    of_host, of_device = base(sizes.gpu)
    return Job(work, of_host | host, of_device | device)


def merged(*terms: Terms) -> Terms:
    """Sums of terms of the same name."""
    sums: Terms = {}
    for each in terms:
        for name, size in each.items():
            sums[name] = sums.get(name, 0.0) + size
    return sums


def loading(sizes: Sizes) -> Terms:
    """The host's part of loading one snapshot: all its weights, from a file that is mapped."""
    size = sizes.model.parameters * (sizes.run_bytes + sizes.file_bytes)
    return {"a snapshot as it loads": float(size)}


def forward_memory(sizes: Sizes, tokens: int, run_bytes: int) -> float:
    """Bytes of a forward pass' values at its largest block."""
    model = sizes.model
    return (
        tokens * run_bytes * (1.25 * model.block_matrix_parameters / model.width + 5 * model.width)
    )
