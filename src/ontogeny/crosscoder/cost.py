"""What training a crosscoder costs: operations of a step, memory, on one device or several."""

from __future__ import annotations

import math
from dataclasses import replace

from ontogeny.activations import cost as of_rows
from ontogeny.cost.sizes import JUMPRELU_ACTIVE, Dictionary, Sizes
from ontogeny.cost.terms import Job, Terms, Work, base, job
from ontogeny.crosscoder.sizes import LOG_EVERY, NORM_GRID


def pairs_of(dictionary: Dictionary, gpu: bool) -> float:
    """P, the pairs of a batch that are multiplied one by one; 0 where all are, densely."""
    chosen, gates = dictionary.crosscoder, dictionary.gates
    every = chosen.batch_rows * chosen.features * gates
    if chosen.activation == "batch_topk":
        return min(every, chosen.k * chosen.batch_rows * gates)
    if chosen.activation == "jumprelu" and not (gpu and gates == 1):
        return JUMPRELU_ACTIVE * every
    return 0


def moments(dictionary: Dictionary) -> int:
    """Bytes of Adam's moments of what is trained."""
    chosen, F = dictionary.crosscoder, dictionary.F
    columns = [dictionary.I, dictionary.O] if chosen.train_decoder else [dictionary.I]
    vectors = F + dictionary.O + (F if chosen.activation == "jumprelu" else 0)
    if chosen.moments == "float32":
        return 8 * (F * sum(columns) + vectors)
    return sum(2 * F * width + 4 * F for width in columns) + 8 * vectors


def state(dictionary: Dictionary) -> int:
    """Bytes of an unfinished training: weights, moments, silent rows, threshold."""
    return dictionary.weights + moments(dictionary) + 8 * dictionary.F + 4


def step_flops(
    dictionary: Dictionary, gpu: bool, aux: int, pairs: float | None = None
) -> tuple[float, float]:
    """Operations of one training step: (of dense products, over pairs).

    Parameters
    ----------
    aux : dead features that AuxK looks at. pairs : P, if known; else what is wanted or assumed.
    """
    chosen, F = dictionary.crosscoder, dictionary.F
    encoded, decoded = 2.0 * dictionary.I, 2.0 * dictionary.O  # a row and feature, or a pair
    P = pairs_of(dictionary, gpu) if pairs is None else pairs
    dense = chosen.batch_rows * F * encoded
    if not P:
        dense += chosen.batch_rows * F * (3 * decoded + encoded)
    if chosen.activation == "batch_topk":
        dense += chosen.batch_rows * aux * (3 * decoded + encoded)
    if chosen.activation == "jumprelu":  # thresholds learn from a sample of the rows
        dense += max(1, round(chosen.batch_rows * chosen.threshold_share)) * F * decoded
    return dense, P * (3 * decoded / dictionary.gates + encoded)


def on_device(sizes: Sizes, dictionary: Dictionary) -> Terms:
    """What a training holds on its device, snapshots of streamed rows left out."""
    chosen, gates, read, written = (
        dictionary.crosscoder, dictionary.gates, dictionary.I, dictionary.O,
    )  # fmt: skip
    B, F = chosen.batch_rows, dictionary.F
    P, A = pairs_of(dictionary, sizes.gpu), dictionary.aux
    batch = dictionary.columns * (2 if dictionary.dimensions is None else 1) + 4 * written
    if dictionary.dimensions is not None:  # explained variance by site, in all dimensions
        batch += 3 * dictionary.n_out
    if chosen.activation == "relu" or (chosen.activation == "jumprelu" and not P):
        copies = 5.0
    elif not sizes.gpu:  # candidates of selection; with a gate per site, twice as large
        copies = 1.25 if gates == 1 else 3
    else:
        copies = 2 if gates == 1 else 9
    activations = B * F * copies
    if chosen.activation == "jumprelu":
        sample = max(1, round(B * chosen.threshold_share))
        activations += sample * F * (1 + 4 * min(gates, B // sample))
    fused = P * max(read, written) if sizes.gpu and gates == 1 else 0.0  # were the compiler not to
    terms: Terms = {
        "weights": dictionary.weights,
        "gradients": dictionary.weights,
        "moments": moments(dictionary),
        "silent rows": 8.0 * F,
        "directions": 4.0 * dictionary.n_in * (dictionary.dimensions or 1),
        "batch": 4.0 * B * batch,
        "pre-activations": 4.0 * activations,
        "pairs": 100.0 * P + 4.0 * fused,
    }
    if A:
        terms["AuxK"] = 4.0 * (4 * B * A + 2 * A * (read + written) + 3 * B * written)
    return terms


def streamed_positions(sizes: Sizes, dictionary: Dictionary) -> float:
    """Positions that a streamed training sends through every snapshot.

    A window is computed at each visit, unless it is still held: two of a subspace's rows are, one
    of all dimensions' rows. There the mean row costs a pass of its own.
    """
    total, reduced, chosen = sizes.positions, dictionary.dimensions, dictionary.crosscoder
    if sizes.windows <= (2 if reduced else 1):
        return total
    visits = math.ceil(chosen.steps * chosen.batch_rows / max(1, sizes.rows) * sizes.windows)
    return visits * total / sizes.windows + (total if reduced is None and chosen.center else 0)


def train(sizes: Sizes, dictionary: Dictionary) -> Job:
    """One training, of one seed, on as many devices as it has."""
    ranks = dictionary.crosscoder.devices
    whole = _train(sizes, dictionary)
    if ranks == 1:
        return whole
    share = {"features": dictionary.F // ranks}
    chosen = dictionary.crosscoder.model_copy(update=share)
    one = _train(sizes, replace(dictionary, crosscoder=chosen))
    # Rank 0 alone saves the whole; what all of them begin with is the whole together.
    once = {"weights as they begin", "full decoders, to save"}
    host = {name: ranks * size for name, size in one.host.items() if name not in once}
    host |= {name: size for name, size in whole.host.items() if name in once}
    host["launcher"] = base(False)[0]["Python and torch"]
    device = one.device | {"messages": _messages(dictionary)}
    if not sizes.gpu:
        device = {name: ranks * size for name, size in device.items()}
    # All read the same rows, and the disk once: the system keeps them for the others.
    return Job(replace(whole.work, ranks=ranks, starts=2), host, device)


def _messages(dictionary: Dictionary) -> float:
    """Bytes of a step's messages at their largest: what is sent, received, and made of it."""
    chosen, F, gates = dictionary.crosscoder, dictionary.F, dictionary.gates
    B, aux = chosen.batch_rows, dictionary.aux
    scores = 0.0
    if chosen.activation == "batch_topk":
        count = B * gates * min(chosen.k, F) + B * min(chosen.aux_k, chosen.aux_features)
        scores = 4.0 * chosen.devices * count
    return 3 * (4.0 * ((2 if aux else 1) * B * dictionary.O + F) + scores)


def _train(sizes: Sizes, dictionary: Dictionary) -> Job:
    """The same on one device."""
    chosen, F, R = dictionary.crosscoder, dictionary.F, dictionary.dimensions
    B, A, columns = chosen.batch_rows, dictionary.aux, dictionary.columns
    dense, over = step_flops(dictionary, sizes.gpu, A)
    steps = chosen.steps + len(NORM_GRID)
    # A step's elementwise parts: norms, gradients' zeros, Adam, selection.
    moved = 6 * dictionary.weights + 2 * moments(dictionary) + 12.0 * B * F * dictionary.gates**0.5
    logged = 4.0 * B * (R or 0) * dictionary.n_out * chosen.steps / LOG_EVERY
    host: Terms = {"batches read ahead": of_rows.AHEAD * 4.0 * B * columns, "compiler": 0.5e9}
    begins = 6.0 * F * (dictionary.I + dictionary.O) * (1 if sizes.gpu else 0.5)
    ends = float(dictionary.full if R else 0) + dictionary.tensors * (1 + sizes.gpu)
    host["weights as they begin" if begins > ends else "full decoders, to save"] = max(begins, ends)
    device = on_device(sizes, dictionary)
    rows = float(chosen.steps) * B * columns * (2 if R else sizes.item)
    mean = 0.0 if R or not chosen.center else sizes.rows * dictionary.I * sizes.item
    work = Work(
        products=steps * dense + logged,
        pairs=steps * over,
        moved=steps * moved,
        written=dictionary.tensors + state(dictionary),
        compiled=2 + (A > 0),
        host_moved=2 * rows,
        read=rows + mean,
    )
    if not sizes.streamed:
        return job(sizes.gpu, work, host, device)
    n = dictionary.n_in if columns == dictionary.I else dictionary.n_in + dictionary.n_out
    positions = streamed_positions(sizes, dictionary)
    work = replace(
        work,
        forward=of_rows.streamed_flops(sizes, positions, dictionary.snapshots),
        products=work.products + of_rows.project_flops(positions, n, R or 0),
        read=dictionary.snapshots * sizes.model.parameters * sizes.file_bytes,
    )
    if R is None:
        host |= of_rows.window_buffers(sizes.window * n, sizes.item, 0)
    else:
        host |= of_rows.window_buffers(sizes.window * R, 2, min(sizes.windows, 2) - 1)
        if sizes.gpu:  # the data has the directions, and the projection has its own
            device["directions"] *= 2
            host["directions"] = 4.0 * dictionary.n_in * R
    host |= of_rows.loading(sizes)
    device |= of_rows.streams_memory(sizes, n, dictionary.snapshots, R)
    return job(sizes.gpu, work, host, device)
