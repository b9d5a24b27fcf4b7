"""The cost of training a crosscoder: operations per step and memory, on one or several devices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ontogeny.activations import cost as of_rows
from ontogeny.activations.sizes import STREAMED_WINDOWS
from ontogeny.cost.sizes import Dictionary, Sizes
from ontogeny.cost.terms import Job, Terms, Work, base, job, launcher
from ontogeny.crosscoder.sizes import (
    JUDGED_ROWS,
    LOG_EVERY,
    NORM_GRID,
    ROOM,
    SPREAD,
    measured_batches,
)


def pairs_of(dictionary: Dictionary, gpu: bool) -> tuple[float, float]:
    """Active pairs of a batch, over all gates, and candidates; (0, 0) if the step is dense.

    On a GPU a candidate's closed gates cost as much as its open ones.
    """
    chosen, gates = dictionary.crosscoder, dictionary.gates
    if chosen.activation == "relu":
        return 0.0, 0.0
    every = chosen.batch_rows * chosen.features
    active = min(every, dictionary.active * chosen.batch_rows)
    if gpu:
        known = chosen.activation == "batch_topk" and gates == 1
        candidates = min(every, active * (1 if known else ROOM))
        return candidates * gates, candidates
    return active * gates, min(every, active * (SPREAD if gates > 1 else 1))


def native(dictionary: Dictionary, gpu: bool) -> bool:
    """Whether the C++ core (native.py) computes the training's pairs."""
    chosen = dictionary.crosscoder
    sparse = chosen.activation == "jumprelu" or (
        chosen.activation == "batch_topk" and not dictionary.aux
    )
    return sparse and not gpu and not dictionary.principal and chosen.devices == 1


def moments(dictionary: Dictionary) -> int:
    """Bytes of Adam's moments of the trained weights."""
    chosen, F = dictionary.crosscoder, dictionary.F
    columns = [dictionary.I, dictionary.O] if chosen.train_decoder else [dictionary.I]
    vectors = F + dictionary.O + (F if chosen.activation == "jumprelu" else 0)
    if chosen.moments == "float32":
        return 8 * (F * sum(columns) + vectors)
    blocks = 1 if dictionary.principal or not chosen.train_decoder else dictionary.outputs
    rows = F * (1 + blocks * chosen.train_decoder)  # each row has one second moment
    return sum(2 * F * width for width in columns) + 4 * rows + 8 * vectors


def state(dictionary: Dictionary) -> int:
    """Bytes of a saved state: weights, moments, silent rows, threshold, pressure, L0."""
    return dictionary.weights + moments(dictionary) + 8 * dictionary.F + 12


def step_flops(
    dictionary: Dictionary, gpu: bool, aux: int, pairs: tuple[float, float] | None = None
) -> tuple[float, float]:
    """Operations of one training step: (in dense products, over pairs).

    Parameters
    ----------
    aux : number of dead features that AuxK looks at.
    pairs : numbers of active pairs and candidates, if known; otherwise they are estimated from the
        wanted L0, or assumed.
    """
    chosen, F = dictionary.crosscoder, dictionary.F
    encoded, decoded = 2.0 * dictionary.I, 2.0 * dictionary.O  # per row and feature, or per pair
    active, candidates = pairs_of(dictionary, gpu) if pairs is None else pairs
    dense = chosen.batch_rows * F * encoded
    if not candidates:
        dense += chosen.batch_rows * F * (3 * decoded + encoded)
    if chosen.activation == "batch_topk":
        dense += chosen.batch_rows * aux * (3 * decoded + encoded)
    if chosen.activation == "jumprelu":  # the thresholds' gradient comes from a sample of the rows
        dense += max(1, round(chosen.batch_rows * chosen.threshold_share)) * F * decoded
    return dense, active * 3 * decoded / dictionary.gates + candidates * encoded


def on_device(sizes: Sizes, dictionary: Dictionary) -> Terms:
    """Memory of a training on its device, without the snapshots that stream rows."""
    chosen, gates, read, written = (
        dictionary.crosscoder, dictionary.gates, dictionary.I, dictionary.O,
    )  # fmt: skip
    B, F = chosen.batch_rows, dictionary.F
    C, A = pairs_of(dictionary, sizes.gpu)[1], dictionary.aux
    batch = dictionary.columns * (1 if dictionary.principal else 2) + 4 * written
    if dictionary.principal:  # explained variance by site needs all dimensions
        batch += 3 * dictionary.n_out
    copies = 5.0
    if C:
        copies = 2 if sizes.gpu else 1.25
    activations = B * F * copies
    sample = max(1, round(B * chosen.threshold_share))
    core = native(dictionary, sizes.gpu)
    if chosen.activation == "jumprelu":
        activations += sample * F * (1 if core else 1 + 4 * min(gates, B // sample))
    blocks = dictionary.O // dictionary.width if not dictionary.principal else 1
    if core:
        pairs = C * (44.0 + 4 * blocks)
    else:
        pairs = 60.0 * C + 44.0 * C * gates + 8.0 * C * blocks
    gradients = dictionary.weights - (4 * F * written if core else 0)
    terms: Terms = {
        "weights": dictionary.weights,
        "gradients": gradients,
        "moments": moments(dictionary),
        "silent rows": 8.0 * F,
        "directions": 4.0 * dictionary.n_in * (dictionary.dimensions or 1),
        "batch": 4.0 * B * batch,
        "pre-activations": 4.0 * activations,
        "pairs": pairs,
    }
    if A:
        terms["AuxK"] = 4.0 * (4 * B * A + 2 * A * (read + written) + 3 * B * written)
    return terms


def streamed_positions(sizes: Sizes, dictionary: Dictionary) -> float:
    """Positions on which a streamed training runs every snapshot.

    A window is computed at each visit, unless it is still in memory. The mean row of all dimensions
    needs an additional pass, unless all windows stay in memory.
    """
    total, chosen = float(sizes.positions), dictionary.crosscoder
    if sizes.windows <= STREAMED_WINDOWS:
        return total
    batches = chosen.steps + measured_batches(chosen.activation, chosen.steps)
    visits = math.ceil(batches * chosen.batch_rows / max(1, sizes.rows) * sizes.windows)
    return visits * total / sizes.windows + _mean_positions(sizes, dictionary)


def _mean_positions(sizes: Sizes, dictionary: Dictionary) -> float:
    """Positions on which a streamed training runs every snapshot for the mean row alone."""
    chosen = dictionary.crosscoder
    alone = chosen.basis == "full" and chosen.center and sizes.windows > STREAMED_WINDOWS
    return float(sizes.positions * alone)


def train(sizes: Sizes, dictionary: Dictionary) -> Job:
    """One training, of one seed, on cached rows, on as many devices as its settings ask for."""
    whole, ranks = _train(sizes, dictionary), dictionary.crosscoder.devices
    if ranks == 1:
        return whole
    return _shared(sizes, whole, _train(sizes, _of_rank(dictionary)), ranks, _messages(dictionary))


def _of_rank(dictionary: Dictionary) -> Dictionary:
    """The part of a dictionary that one of its ranks holds."""
    share = {"features": dictionary.F // dictionary.crosscoder.devices}
    return replace(dictionary, crosscoder=dictionary.crosscoder.model_copy(update=share))


def _shared(sizes: Sizes, whole: Job, one: Job, ranks: int, messages: float) -> Job:
    """A job that ranks share, from its cost on one device and the cost of one rank.

    All ranks read the same rows, but only the first read goes to disk: the system caches them.
    """
    # Only rank 0 saves the whole. The initial weights of all ranks together are also one whole.
    once = {"weights as they begin", "full decoders, to save"}
    host = {name: ranks * size for name, size in one.host.items() if name not in once}
    host |= {name: size for name, size in whole.host.items() if name in once}
    host |= launcher()
    device = one.device | {"messages": messages}
    if not sizes.gpu:
        device = {name: ranks * size for name, size in device.items()}
    return Job(replace(whole.work, ranks=ranks, starts=2), host, device)


def _messages(dictionary: Dictionary) -> float:
    """Largest size in bytes of a step's messages: what is sent and received, and their results."""
    chosen, F, gates = dictionary.crosscoder, dictionary.F, dictionary.gates
    B, aux = chosen.batch_rows, dictionary.aux
    scores = 0.0
    if chosen.activation == "batch_topk":
        count = B * gates * min(chosen.k, F) + B * min(chosen.aux_k, chosen.aux)
        scores = 4.0 * chosen.devices * count
    return 3 * (4.0 * ((2 if aux else 1) * B * dictionary.O + F) + scores)


def _train(sizes: Sizes, dictionary: Dictionary) -> Job:
    """The same on one device; for streamed rows, without the cost of the stream."""
    chosen, F = dictionary.crosscoder, dictionary.F
    B, A, columns = chosen.batch_rows, dictionary.aux, dictionary.columns
    dense, over = step_flops(dictionary, sizes.gpu, A)
    judged = len(NORM_GRID) * JUDGED_ROWS / B  # in steps; each norm is judged on a few rows
    batches = chosen.steps + measured_batches(chosen.activation, chosen.steps)
    steps = batches + judged
    # Elementwise work of a step: norms, zeroing gradients, Adam, selection. The core reads and
    # writes the decoder and its moments only once.
    passes = 3 if native(dictionary, sizes.gpu) else 6
    moved: float = passes * dictionary.weights + 2 * moments(dictionary)
    moved += 12.0 * B * F * (1 if passes == 3 else dictionary.gates**0.5)
    logged = 0.0
    if dictionary.principal:
        logged = 4.0 * B * dictionary.O * dictionary.n_out * chosen.steps / LOG_EVERY
    host: Terms = {"compiler": 0.5e9}
    if not sizes.streamed:
        host["batches read ahead"] = of_rows.AHEAD * 4.0 * B * columns
    begins = 6.0 * F * (dictionary.I + dictionary.O) * (1 if sizes.gpu else 0.5)
    ends = float(dictionary.full) + dictionary.tensors * (1 + sizes.gpu)
    host["weights as they begin" if begins > ends else "full decoders, to save"] = max(begins, ends)
    host["states, to save"] = float(state(dictionary))
    host |= of_rows.table(dictionary)
    if sizes.gpu and dictionary.dimensions:
        host["directions"] = 4.0 * dictionary.n_in * dictionary.dimensions
    device = on_device(sizes, dictionary)
    item = {"principal": 2 * columns, "full": sizes.item * columns}
    rows = (
        float(batches) * B * item.get(chosen.basis, 2 * dictionary.I + sizes.item * dictionary.n_in)
    )
    centred = chosen.basis == "full" and chosen.center
    mean = float(sizes.rows * dictionary.I * sizes.item) if centred else 0.0
    work = Work(
        products=steps * dense + logged,
        pairs=steps * over,
        moved=steps * moved,
        written=dictionary.tensors + state(dictionary),
        compiled=2 + (A > 0),
        host_moved=2 * rows,
        read=rows + mean,
    )
    return job(sizes.gpu, work, host, device)


# Streamed rows


def stream(sizes: Sizes, trainings: Sequence[Dictionary]) -> Job:
    """Trainings that share a stream of rows: every snapshot runs once for all of them.

    If there are several devices, each runs a part of the snapshots for all trainings.

    Parameters
    ----------
    trainings : the dictionary of each training; seeds of one dictionary are the same object.
    """
    whole, ranks = _stream(sizes, trainings), trainings[0].crosscoder.devices
    if ranks == 1:
        return whole
    shares = {id(each): _of_rank(each) for each in trainings}
    snapshots = -(-trainings[0].snapshots // ranks)
    one = _stream(sizes, [shares[id(each)] for each in trainings], snapshots)
    # A step's messages, and those of a piece of a pass: coordinates, or rows of all sites.
    sent = max(4.0 * (of.dimensions or 0) if of.principal else 2.0 * of.columns for of in trainings)
    messages = max(3 * sizes.batch * sent, *map(_messages, trainings))
    return _shared(sizes, whole, one, ranks, messages)


def _stream(sizes: Sizes, trainings: Sequence[Dictionary], snapshots: int | None = None) -> Job:
    """The same on one device, or on one rank, which runs the given number of snapshots."""
    each = [_train(sizes, dictionary) for dictionary in trainings]
    every = {id(dictionary): dictionary for dictionary in trainings}.values()
    first = trainings[0]
    columns = first.n_in + (0 if _same(first) else first.n_out)
    snapshots = first.snapshots if snapshots is None else snapshots
    visits = max(streamed_positions(sizes, of) - _mean_positions(sizes, of) for of in every)
    positions = visits + sum(_mean_positions(sizes, of) for of in every)
    projected = _projected(sizes, trainings, visits)
    work = replace(
        each[0].work,
        forward=of_rows.streamed_flops(sizes, positions, snapshots),
        read=snapshots * sizes.model.parameters * sizes.file_bytes,
        **{
            key: sum(getattr(one.work, key) for one in each)
            for key in ("pairs", "moved", "host_moved", "written", "compiled")
        },
    )
    work = replace(work, products=sum(one.work.products for one in each) + projected)
    # Trainings take turns: the tensors of a step exist once, the state of each training separately.
    host = _together([one.host for one in each], {"states, to save"}) | of_rows.loading(sizes)
    kept = {"weights", "gradients", "moments", "silent rows"}
    device = _together([one.device for one in each], kept)
    kept_dimensions = {of.dimensions if of.principal else None for of in every}
    largest = max(of.crosscoder.batch_rows for of in every)
    windows = STREAMED_WINDOWS + int((largest - 1) * sizes.windows // max(1, sizes.rows))
    device |= of_rows.streams_memory(
        sizes, columns, snapshots, kept_dimensions, windows, snapshots / first.snapshots
    )
    if not sizes.gpu:  # passes and steps take turns; a GPU's allocator may keep the memory of both
        passing = [term for term in device if "forward pass" in term]
        stepping = ["batch", "pre-activations", "pairs", "AuxK"]
        smaller = min(passing, stepping, key=lambda terms: sum(device.get(t, 0) for t in terms))
        device = {term: size for term, size in device.items() if term not in smaller}
    tables = sum(of.table for of in every)
    if tables:
        host["token table"] = 1.6 * tables
        device["token table"] = tables / 2
    return Job(work, host, device)


def _same(dictionary: Dictionary) -> bool:
    return dictionary.crosscoder.outputs in (None, dictionary.crosscoder.inputs)


def _projected(sizes: Sizes, trainings: Sequence[Dictionary], positions: float) -> float:
    """Operations of projecting rows: once for all if in the subspace, per batch for hybrids."""
    rows = positions * any(of.principal for of in trainings)
    for of in trainings:
        chosen = of.crosscoder
        if chosen.basis == "hybrid":
            batches = chosen.steps + measured_batches(chosen.activation, chosen.steps)
            rows += batches * chosen.batch_rows
    first = trainings[0]
    return of_rows.project_flops(rows, first.n_in, first.dimensions or 0)


def _together(terms: Sequence[Terms], added: set[str]) -> Terms:
    """The largest value of each term; for the terms in `added`, the sum over trainings."""
    names = dict.fromkeys(name for each in terms for name in each)
    values = {name: [each.get(name, 0.0) for each in terms] for name in names}
    return {name: sum(v) if name in added else max(v) for name, v in values.items()}


def taken(sizes: Sizes, dictionary: Dictionary) -> Job:
    """The job that moves a result of a stream into place."""
    size = float(dictionary.tensors)
    return Job(Work(read=2 * size, written=size, starts=0.5), base(False)[0])
