"""An experiment's sizes, from its map: the model, the rows, the dictionaries.

Letters: N sites, D width, F features, R dimensions of a subspace, I and O columns that a crosscoder
reads and writes in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ontogeny.activations import order
from ontogeny.activations.sizes import (
    FORWARD_TOKENS,
    FULL_TABLE,
    LARGEST_TABLE,
    STREAMED_ROWS,
    most_dimensions,
)
from ontogeny.corpus.build import Tokens
from ontogeny.corpus.wheels import most_tokens
from ontogeny.cost.machines import Machine
from ontogeny.experiment import Experiment
from ontogeny.files import BROKEN, InputError, open_hdf5
from ontogeny.settings import Crosscoder, Settings, Sites
from ontogeny.snapshots import sources
from ontogeny.snapshots.shape import Shape

COUNTED_TOKENS = 1 << 24  # a smaller corpus is read to count its rows exactly
JUMPRELU_ACTIVE = 0.05  # assumed share of all pairs that are active with jumprelu
RELU_ACTIVE = 0.1  # assumed share of features that are active on a token with relu; measured 0.04


@dataclass(frozen=True)
class Dictionary:
    """A crosscoder's sizes.

    Attributes
    ----------
    inputs, outputs : numbers of sites. snapshots : number of different ones among them.
    dimensions : R, or None for all N·D dimensions. known : whether R is exact, not a bound.
    n_in, n_out : columns of its inputs and outputs in all dimensions, N·D.
    I, O : columns that it reads and writes in training. principal : whether both are R.
    columns : of a batch, including both inputs and outputs if they differ.
    gates : per feature: one, or one per site. active : features per token, wanted or assumed.
    aux : most dead features that AuxK looks at. full : bytes of the decoder in all dimensions.
    weights : bytes of encoder, decoder, biases and thresholds, and of their gradients.
    table : most bytes of its token table in use. tensors : bytes of its file: weights, silent
        rows, scales, means, directions, and the table at half its bytes.
    """

    crosscoder: Crosscoder
    inputs: int
    outputs: int
    width: int
    dimensions: int | None
    snapshots: int
    known: bool = True
    table: int = 0

    @property
    def F(self) -> int:
        return self.crosscoder.features

    @property
    def n_in(self) -> int:
        return self.inputs * self.width

    @property
    def n_out(self) -> int:
        return self.outputs * self.width

    @property
    def I(self) -> int:  # noqa: E743
        return self.dimensions or self.n_in

    @property
    def O(self) -> int:  # noqa: E743
        return self.I if self.principal else self.n_out

    @property
    def principal(self) -> bool:
        return self.crosscoder.basis == "principal"

    @property
    def columns(self) -> int:
        if self.crosscoder.basis == "hybrid":
            return self.I + self.O
        same = self.crosscoder.outputs in (None, self.crosscoder.inputs)
        return self.I if same else self.I + self.O

    @property
    def gates(self) -> int:
        return self.outputs if self.crosscoder.gate == "snapshot" else 1

    @property
    def active(self) -> float:
        kind, start = self.crosscoder.activation, self.crosscoder.start_active
        if kind == "jumprelu" and start is not None:
            return min(start, self.F)
        shares = {"jumprelu": JUMPRELU_ACTIVE, "relu": RELU_ACTIVE}
        return shares[kind] * self.F if kind in shares else self.crosscoder.k

    @property
    def aux(self) -> int:
        return self.crosscoder.aux

    @property
    def full(self) -> int:
        return 4 * self.F * self.n_out

    @property
    def weights(self) -> int:
        return 4 * (self.F * (self.I + self.O + 2) + self.O)

    @property
    def tensors(self) -> int:
        size = self.weights + 8 * self.F + 4 * (self.inputs + self.outputs) * (1 + self.width)
        return size + 4 * self.n_in * (self.dimensions or 0) + self.table // 2


@dataclass(frozen=True)
class Sizes:
    """An experiment's sizes, when its model is known.

    Attributes
    ----------
    gpu : whether there is a device other than the host.
    file_bytes, run_bytes : of a weight in the snapshots' files, and when the model is run.
    text_blocks : of the tokens. shards : windows of each shard of training rows. shard_rows,
        held_out_rows : rows. text_exact, exact : whether blocks and rows are exact, not bounds.
    item : bytes of a stored activation. rows : all training rows. places : layers times streams.
    positions : of the training split, including left-out ones. window : of the largest window.
    batch : positions of one forward pass, in whole blocks. last : the last wanted layer.
    truncated : bytes of a snapshot truncated after it. token_flops : of a token up to it.
    """

    settings: Settings
    model: Shape
    gpu: bool
    file_bytes: int
    run_bytes: int
    text_blocks: int
    text_exact: bool
    shards: Sequence[range] = ()
    shard_rows: Sequence[int] = ()
    held_out_rows: int = 0
    exact: bool = False

    @property
    def item(self) -> int:
        return 2 if self.settings.activations.dtype == "float16" else 4

    @property
    def rows(self) -> int:
        return sum(self.shard_rows)

    @property
    def context(self) -> int:
        return self.settings.corpus.context

    @property
    def positions(self) -> int:
        return self.settings.corpus.train_blocks * self.context

    @property
    def places(self) -> int:
        return len(self.settings.activations.layers) * len(self.settings.activations.streams)

    @property
    def snapshots(self) -> int:
        return len(self.settings.snapshots.chosen)

    @property
    def windows(self) -> int:
        blocks, window = self.settings.corpus.train_blocks, self.settings.activations.window
        return order.number_of_windows(blocks, self.context, window)

    @property
    def window(self) -> int:
        return -(-self.settings.corpus.train_blocks // self.windows) * self.context

    @property
    def streamed(self) -> bool:
        return self.settings.activations.mode == "streamed"

    @property
    def batch(self) -> int:
        return self.pass_of(FORWARD_TOKENS)

    def pass_of(self, tokens: int) -> int:
        """Positions of a forward pass of about `tokens` tokens, in whole blocks."""
        return max(1, tokens // self.context) * self.context

    @property
    def last(self) -> int:
        return max(self.settings.activations.layers)

    @property
    def truncated(self) -> float:
        return self.run_bytes * self.model.parameters_to(self.last)

    @property
    def token_flops(self) -> float:
        return self.model.flops_per_token(self.context, self.last)

    @property
    def shard_blocks(self) -> list[int]:
        """Blocks of each shard; NumPy's array_split gives the first windows one more."""
        least, more = divmod(self.settings.corpus.train_blocks, self.windows)
        return [
            len(shard) * least + max(0, min(shard.stop, more) - min(shard.start, more))
            for shard in self.shards
        ]

    @property
    def table_rows(self) -> int:
        """Number of rows from which the token tables are computed."""
        return min(self.rows, STREAMED_ROWS) if self.streamed else self.shard_rows[0]

    @property
    def table(self) -> int:
        """Most bytes of the token table of one layer and stream."""
        size = 4 * self.snapshots * self.model.width * (self.model.vocabulary + 1)
        return size if size <= FULL_TABLE else min(size, LARGEST_TABLE)

    def forward_memory(self, tokens: int, item: int) -> float:
        """Bytes of a forward pass's values at its largest block, with `item` bytes each."""
        of_matrices = 1.25 * self.model.block_matrix_parameters / self.model.width
        return tokens * item * (of_matrices + 5 * self.model.width)


def _text_blocks(experiment: Experiment) -> tuple[int, bool]:
    """Blocks of the tokens, and whether that is exact; a text used to its end has only a bound."""
    corpus = experiment.settings.corpus
    known = corpus.train_blocks + corpus.held_out_blocks
    if experiment.settings.snapshots.pretrain is None:
        return known, True
    if corpus.pretrain_blocks is not None:
        return known + corpus.pretrain_blocks, True
    try:
        with open_hdf5(experiment.path("tokens")) as file:
            return int(file["tokens"].shape[0]), True
    except BROKEN:
        pass
    if corpus.wheels is not None:
        return most_tokens(corpus) // corpus.context, False
    from ontogeny.corpus import text

    files = text.files(corpus.files) if corpus.files is not None else []
    return max(known, sum(path.stat().st_size for path in files) // 2 // corpus.context), False


def _rows(experiment: Experiment, sizes: Sizes, count: bool) -> tuple[list[int], int, bool]:
    """Training rows by shard and held-out rows, and whether they are exact.

    They are exact if activations are on disk, or if tokens are and can be counted quickly;
    otherwise it is assumed that only the first position of each block is left out.
    """
    corpus, activations = experiment.settings.corpus, experiment.settings.activations
    for site in experiment.sites:
        try:
            with open_hdf5(experiment.path("stack", site=site)) as file:
                rows = [int(n) for n in file.attrs["shard_rows"]]
                held_out = int(file["held_out/position"].shape[0])
        except BROKEN:
            continue
        if len(rows) == len(sizes.shards) and sum(rows) <= sizes.positions:
            return rows, held_out, True
    wanted = corpus.train_blocks, corpus.held_out_blocks
    if count and sum(wanted) * corpus.context <= COUNTED_TOKENS:
        try:
            tokens = Tokens(experiment.path("tokens"))
            if (tokens.size("train"), tokens.size("held_out")) == wanted:
                starts = order.Order(tokens, "train", activations).starts
                rows = [int(starts[shard.stop] - starts[shard.start]) for shard in sizes.shards]
                return rows, order.Order(tokens, "held_out", activations).rows, True
        except InputError:
            pass
    each = corpus.context - ("first" in activations.leave_out)
    return [blocks * each for blocks in sizes.shard_blocks], corpus.held_out_blocks * each, False


def sizes(experiment: Experiment, here: Machine, count: bool = True) -> Sizes:
    """The sizes of an experiment.

    Parameters
    ----------
    count : whether to read existing tokens to count the rows.

    Raises
    ------
    InputError : the model's shape cannot be determined, or it lacks a layer.
    """
    settings, results = experiment.settings, experiment.results
    gpu, precision = here.device != 0, settings.activations.precision
    if precision == "auto":
        precision = "bfloat16" if gpu and here.half else "float32"
    known = Sizes(
        settings,
        sources.shape_of(settings, results),
        gpu,
        sources.weight_bytes(settings, results),
        4 if precision == "float32" else 2,
        *_text_blocks(experiment),
    )
    shards = [range(known.windows)]
    if not known.streamed:
        shards = order.shards(settings, known.model.width)
    known = replace(known, shards=shards)
    rows, held_out, exact = _rows(experiment, known, count)
    return replace(known, shard_rows=rows, held_out_rows=held_out, exact=exact)


def dictionary(experiment: Experiment, sizes: Sizes, name: str) -> Dictionary:
    """A crosscoder's sizes; before its basis exists, with the most dimensions that it may have."""
    settings, chosen = experiment.settings, experiment.settings.all_crosscoders[name]
    outputs, width = chosen.written, sizes.model.width

    def steps(sites: Sites) -> list[int]:
        return experiment.steps if sites.snapshots == "all" else list(sites.snapshots)

    def count(sites: Sites) -> int:
        return len(sites.layers) * len(sites.streams) * len(steps(sites))

    dimensions, known, basis = None, True, experiment.basis_of(name)
    if basis is not None:
        dimensions = settings.basis.dimensions
    if basis is not None and dimensions is None:
        try:
            with open_hdf5(experiment.path("basis", sites=basis)) as file:
                dimensions = int(file["basis"].shape[1])
        except BROKEN:
            rows, known = min(settings.basis.rows, sizes.rows), False
            most = most_dimensions(settings.basis.largest, None, width)
            dimensions = min(count(chosen.inputs) * width, most, rows)
    snapshots = len({*steps(chosen.inputs), *steps(outputs)})
    inputs = count(chosen.inputs)
    table = inputs * sizes.table // sizes.snapshots if chosen.token_table else 0
    return Dictionary(chosen, inputs, count(outputs), width, dimensions, snapshots, known, table)
