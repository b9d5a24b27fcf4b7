"""The cost of extraction, of the principal subspace and of streamed rows."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace

from ontogeny.activations.sizes import (
    PIECE_ROWS,
    READ_AHEAD,
    most_dimensions,
    piece_rows,
    streamed_tokens,
)
from ontogeny.cost.sizes import Dictionary, Sizes
from ontogeny.cost.terms import Job, Terms, Work, job, launcher
from ontogeny.snapshots.sizes import loss_blocks

AHEAD = READ_AHEAD + 2  # pieces in memory: those read ahead, one being read, one in use


def loading(sizes: Sizes) -> Terms:
    """Host memory for loading one snapshot: all its weights, from a memory-mapped file."""
    size = sizes.model.parameters * (sizes.run_bytes + sizes.file_bytes)
    return {"a snapshot as it loads": float(size)}


def extract(sizes: Sizes, shard: int) -> Job:
    """One snapshot's rows of a shard; the first shard includes held-out rows and norms.

    If rows are streamed, the norms come from the first window.
    """
    model, settings, context = sizes.model, sizes.settings, sizes.context
    first = shard == 0
    blocks = sizes.window // context if sizes.streamed else sizes.shard_blocks[shard]
    held_out = settings.corpus.held_out_blocks * first
    positions = (blocks + held_out) * context
    window = max(sizes.window, min(held_out * context, settings.activations.window))
    waiting = min(max(1, -(-blocks * context // settings.activations.window)), 3) - 1
    rows = sizes.held_out_rows * first + (0 if sizes.streamed else sizes.shard_rows[shard])
    host = loading(sizes)
    host["a snapshot as it loads"] -= 0 if sizes.gpu else sizes.truncated
    host["windows"] = window * model.width * sizes.item * sizes.places * (waiting + 2.0)
    norms = 16.0 * min(window, PIECE_ROWS) * model.width * first
    host["check of a window"] = window * model.width * (sizes.item + 2.0) + norms
    host["order of the rows"] = 16.0 * blocks * context + 40.0 * window
    values = sizes.batch * model.width * sizes.places * (sizes.run_bytes + sizes.item)
    device: Terms = {
        "snapshots on the device": sizes.truncated,
        "forward pass": sizes.forward_memory(sizes.batch, sizes.run_bytes) + values,
    }
    looks = first * loss_blocks(settings.corpus.held_out_blocks, context) * context
    if first:
        # Before the model is truncated and any row exists: the whole model, and the logits of a
        # block.
        logits = 14.0 * context * model.vocabulary
        later = device["forward pass"]
        if sizes.gpu:
            later -= model.parameters * sizes.run_bytes - sizes.truncated
        else:
            later += sum(size for term, size in host.items() if "loads" not in term)
        device["logits"] = max(0.0, logits - later)
    work = Work(
        forward=positions * sizes.token_flops + looks * model.flops_per_token(context),
        read=model.parameters * sizes.file_bytes,
        written=rows * (model.width * sizes.item + 8) * sizes.places,
        host_moved=4.0 * positions * model.width * sizes.item * sizes.places,
    )
    return job(sizes.gpu, work, host, device)


# Streamed rows


def streamed_flops(sizes: Sizes, positions: float, snapshots: int) -> float:
    """Operations of running all snapshots on the given number of positions."""
    return positions * snapshots * sizes.token_flops


def streams_memory(
    sizes: Sizes,
    columns: int,
    snapshots: int,
    kept: Collection[int | None],
    windows: int,
    share: float = 1,
) -> Terms:
    """What streaming keeps on a device, for readers that share it.

    Parameters
    ----------
    columns : N·D of the sites. kept : what readers keep: R for coordinates in the subspace, None
        for all dimensions. windows : number held at a time.
    share : share of the sites that the device runs.
    """
    tokens = streamed_tokens(sizes.gpu, columns, sizes.item)
    batch, piece, own = sizes.pass_of(tokens), sizes.batch, share * columns
    reduced = [dimensions for dimensions in kept if dimensions is not None]
    # A piece's centred and scaled copies and its coordinates, or else only booleans.
    made = own * 12 + max(reduced) * 6 if reduced else columns * 2
    entries = sum(2.0 * dimensions for dimensions in reduced)
    if len(reduced) < len(kept):
        entries += columns * sizes.item
        made += 2 * columns * sizes.item * (share < 1)  # the sites of all devices, joined
    return {
        "snapshots on the device": snapshots * sizes.truncated,
        "forward pass": sizes.forward_memory(batch, sizes.run_bytes),
        "rows of a forward pass": float(batch * own * sizes.item + piece * made),
        "windows": min(sizes.windows, windows) * sizes.window * (entries + 8),
    }


def table(dictionary: Dictionary) -> Terms:
    """A token table that is subtracted from rows, and the crosscoder's copy of it."""
    return {"token table": 1.6 * dictionary.table} if dictionary.table else {}


# The principal subspace


def search_width(size: int, largest: int, rows: int) -> int:
    """Number of directions that the randomised range finder searches."""
    return min(largest + largest // 10 + 8, size, rows - 1)


def _most(sizes: Sizes) -> int:
    """Number of directions that the randomised range finder keeps."""
    settings = sizes.settings.basis
    return most_dimensions(settings.largest, settings.dimensions, sizes.model.width)


def orthonormal_flops(size: int, width: int) -> float:
    """Operations of orthonormalising columns by three rounds of Cholesky QR."""
    return 3 * (3.0 * size * width**2 + width**3 / 3)


def eigen_flops(size: int) -> float:
    """Approximate operations of a symmetric eigenproblem (LAPACK's divide and conquer)."""
    return 9.0 * size**3


def qr_flops(size: int, width: int) -> float:
    """Operations of a thin QR with its orthonormal factor (Golub and Van Loan 5.2)."""
    return 4.0 * size * width**2


def project_flops(rows: float, size: int, dimensions: int) -> float:
    """Operations of projecting rows into the subspace."""
    return 2.0 * rows * size * dimensions


def basis_size(sizes: Sizes, dictionary: Dictionary) -> int:
    """Bytes of a basis file: basis, turn and mean in float32, eigenvalues in float64."""
    n, R = dictionary.n_in, dictionary.dimensions or 0
    known = n if n <= sizes.settings.basis.exact_limit else _most(sizes)
    return 4 * (n * R + R**2 + n) + 8 * (known + dictionary.inputs)


def basis(sizes: Sizes, dictionary: Dictionary) -> Job:
    """The principal directions of a crosscoder's input sites, including streaming their rows."""
    settings, n, R = sizes.settings.basis, dictionary.n_in, dictionary.dimensions or 0
    limit = min(settings.rows, sizes.rows)
    taken = piece_rows(n)
    piece, pieces = taken * n * 4.0, -(-limit // taken)
    device: Terms = {"rows of a piece": 2 * piece}
    if n <= settings.exact_limit:
        flops, passes = 2.0 * limit * n * n + eigen_flops(n), 1
        flops += 4.0 * n * R * R + qr_flops(n, R)
        device["covariance"] = 24.0 * n * n
        moved = 12.0 * n * n * pieces
    else:
        width = search_width(n, _most(sizes), limit)
        flops, passes = 3 * 4.0 * limit * n * width, 3  # two products per pass
        flops += 2 * orthonormal_flops(n, width) + 4.0 * width * width * n + eigen_flops(width)
        flops += 2.0 * n * R * R
        device["directions searched"] = 8.0 * n * width + 32.0 * width * width
        moved = 3 * 8.0 * n * width * pieces
    host: Terms = {"pieces read ahead": AHEAD * piece, "directions": 8.0 * (n * R + R * R)}
    host |= table(dictionary)
    written = basis_size(sizes, dictionary)
    work = Work(products32=flops, moved=moved, written=written, starts=0.5)
    if not sizes.streamed:
        return job(sizes.gpu, replace(work, read=passes * limit * n * sizes.item), host, device)
    # A pass ends in the middle of a window; if there is only one window, it is computed once.
    windows = max(1, math.ceil(limit / max(1, sizes.rows) * sizes.windows))
    visits = windows if windows == 1 else passes * windows
    positions = min(visits * sizes.window, passes * sizes.positions)
    # Several devices share the snapshots, but each one computes the directions.
    ranks = dictionary.crosscoder.devices
    forward = streamed_flops(sizes, positions, dictionary.snapshots)
    host |= loading(sizes)
    own = -(-dictionary.snapshots // ranks)
    device |= streams_memory(sizes, n, own, [None], 1, own / dictionary.snapshots)
    one = job(sizes.gpu, replace(work, forward=forward, starts=1.0), host, device)
    if ranks == 1:
        return one
    work = replace(one.work, ranks=ranks, starts=2, products32=ranks * flops, moved=ranks * moved)
    host = {name: ranks * size for name, size in one.host.items()} | launcher()
    if not sizes.gpu:
        device = {name: ranks * size for name, size in one.device.items()}
    return Job(work, host, device)


def project(sizes: Sizes, dictionary: Dictionary, shard: int) -> Job:
    """Projecting a shard of cached rows into the subspace."""
    n, R, rows = dictionary.n_in, dictionary.dimensions or 0, sizes.shard_rows[shard]
    taken = piece_rows(n)
    piece = taken * n * 4.0
    host: Terms = {"pieces read ahead": AHEAD * piece, "directions": 4.0 * n * R * (1 + sizes.gpu)}
    host |= table(dictionary)
    device: Terms = {"rows of a piece": 2 * piece + taken * R * 6.0}
    if sizes.gpu:
        device["directions"] = 4.0 * n * R
    work = Work(
        products32=project_flops(rows, n, R),
        read=rows * n * sizes.item,
        written=2.0 * rows * R,
        host_moved=6.0 * rows * n,
        starts=0.5,
    )
    return job(sizes.gpu, work, host, device)
