"""The basis stage: the directions of the stacked activations that hold most of their variance.

The stacked activations ã ∈ R^{N·D} of one token are highly redundant across snapshots. With U an
orthonormal basis of the leading R principal directions, y = Uᵀ(ã − μ) has ‖ã − â‖² = ‖y − ŷ‖² +
the constant part left out, so training on y is training on ã with decoders in the subspace.
A random rotation inside the subspace makes no coordinate special: Adam is not rotation-invariant.

`make` finds the directions from the first `basis.rows` training rows; subspace.py projects.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ontogeny import devices
from ontogeny.activations import feed
from ontogeny.activations.basis_file import FORMAT, Kept
from ontogeny.activations.rows import Cached, RowPaths, Rows, SiteRows, pieces
from ontogeny.activations.sites import expand
from ontogeny.activations.sizes import most_dimensions, piece_rows
from ontogeny.activations.store import check_varies
from ontogeny.files import InputError, whole_hdf5
from ontogeny.peers import Peers
from ontogeny.progress import bar
from ontogeny.settings import Basis, Settings

BLOCK = 4096  # rows of a large matrix that are changed at a time


@dataclass
class Spectrum:
    """Principal directions of the normalised training rows, largest variance first.

    Attributes
    ----------
    mean : (N·D,). values : (M,) variances. vectors : (N·D, M) orthonormal columns.
    per_site : (N,) the total variance of each site, inside and outside the M directions.
    """

    mean: Tensor
    values: Tensor
    vectors: Tensor
    per_site: Tensor


def _shift(rows: Rows, limit: int, device: torch.device) -> Tensor:
    """(N·D,): the mean of the first piece; sums about it lose fewer digits."""
    first = min(piece_rows(math.prod(rows.shape)), limit)
    return torch.from_numpy(rows.read(0, first)).flatten(1).to(device).mean(0)


def _shifted(rows: Rows, limit: int, shift: Tensor, label: str) -> Iterator[Tensor]:
    """The first `limit` training rows minus a shift, as pieces (≤ P, N·D) float32 on its device."""
    with bar(label, limit, "rows") as progress:
        for _, piece in pieces(rows, piece_rows(len(shift)), stop=limit):
            yield torch.from_numpy(piece).flatten(1).to(shift.device) - shift
            progress.update(len(piece))


def moments(rows: Rows, limit: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean (N·D,) and covariance (N·D, N·D) of the first normalised training rows, float64.

    It takes one pass. Each piece's products are in float32 about the first piece's mean; sums are
    in float64.
    """
    size = math.prod(rows.shape)
    total = torch.zeros(size, dtype=torch.float64, device=device)
    second = torch.zeros(size, size, dtype=torch.float64, device=device)
    shift = _shift(rows, limit, device)
    for x in _shifted(rows, limit, shift, "basis: covariance"):
        total += x.sum(0)
        second += x.T @ x
    mean = total / limit
    second /= limit
    second -= torch.outer(mean, mean)
    return mean + shift, second


def _varying(per_site: Tensor, rows: Rows) -> Tensor:
    """(N·D,) bool: columns of the sites that are not constant."""
    return (per_site > 0).repeat_interleave(math.prod(rows.shape) // len(per_site))


def exact(rows: Rows, limit: int, device: torch.device) -> Spectrum:
    """All N·D directions, from the covariance's eigenvectors."""
    mean, covariance = moments(rows, limit, device)
    per_site = covariance.diagonal().unflatten(0, rows.shape).sum(1)
    varies = _varying(per_site, rows)
    if not varies.all():  # no direction contains a constant site
        covariance = covariance[varies][:, varies]
    values, found = torch.linalg.eigh(covariance.to(torch.float32))
    vectors = found.new_zeros(len(varies), found.shape[1])
    vectors[varies] = found.flip(1)
    return Spectrum(mean, values.flip(0).double(), vectors, per_site)


def _apply(matrix: Tensor, turn: Tensor) -> None:
    """Multiply a matrix (M, W) by `turn` (W, ≤ W) in place, some rows at a time."""
    for some in matrix.split(BLOCK):
        some[:, : turn.shape[1]] = (some.to(turn.dtype) @ turn).to(matrix.dtype)


def orthonormalise(matrix: Tensor) -> None:
    """Make the columns of a matrix, (M, W) float32, orthonormal in place, with the same span.

    This is shifted Cholesky QR in three rounds (Fukaya et al. 2020, arXiv 1809.11085). It needs no
    second matrix of that size, only two of (W, W) and a block of rows, in float64. It would lose
    linearly dependent columns, so a matrix that has any gets the Q of an ordinary QR.
    """
    width = matrix.shape[1]
    for number in range(3):
        gram = torch.zeros(width, width, dtype=torch.float64, device=matrix.device)
        for some in matrix.split(BLOCK):
            part = some.double()
            gram.addmm_(part.T, part)
        diagonal = gram.diagonal()
        if number == 2 and not (diagonal > 0.5).all():
            matrix.copy_(torch.linalg.qr(matrix).Q)
            return
        shift = diagonal.sum() * 1e-15 + torch.finfo(gram.dtype).tiny
        lower, failed = torch.linalg.cholesky_ex(gram)
        while failed and shift.isfinite():
            diagonal += shift
            lower, failed = torch.linalg.cholesky_ex(gram)
            shift = shift * 100
        for some in matrix.split(BLOCK):
            part = torch.linalg.solve_triangular(lower.T, some.double(), upper=True, left=False)
            some.copy_(part)


def randomised(
    rows: SiteRows, limit: int, device: torch.device, largest: int, seed: int
) -> Spectrum:
    """About the `largest` leading directions, without an (N·D, N·D) matrix.

    It is a randomised range finder with one power iteration and a Rayleigh-Ritz step (Halko,
    Martinsson and Tropp 2011, algorithms 4.4 and 5.3). Each product with the covariance is one pass
    over the rows. A tenth of the directions searched are spare and dropped at the end. At most two
    matrices of (N·D, directions searched) exist at a time.
    """
    size = math.prod(rows.shape)
    varying = size // len(rows.scales) * int((rows.scales > 0).sum())
    width = min(largest + largest // 10 + 8, varying, limit - 1)
    generator = torch.Generator().manual_seed(seed)
    Q = torch.randn(size, width, generator=generator).to(device)
    total, squares = (torch.zeros(size, dtype=torch.float64, device=device) for _ in range(2))
    shift = _shift(rows, limit, device)
    for number in range(3):
        product = torch.zeros(size, width, device=device)
        label = f"basis: directions, pass {number + 1} of 3"
        for x in _shifted(rows, limit, shift, label):
            if number == 0:
                total += x.sum(0)
                squares += x.square().sum(0)
            product.addmm_(x.T, x @ Q)
        mean = (total / limit).float()
        product /= limit
        product.addr_(mean, mean @ Q, alpha=-1)
        if number < 2:
            Q = product
            orthonormalise(Q)
    values, turn = torch.linalg.eigh(Q.T @ product)
    del product
    kept = min(largest, width)
    _apply(Q, turn.flip(1)[:, :kept])
    variance = squares / limit - mean.double().square()
    return Spectrum(
        mean.double() + shift,
        values.flip(0)[:kept].double(),
        Q[:, :kept],
        variance.unflatten(0, rows.shape).sum(1),
    )


def shares(spectrum: Spectrum) -> Tensor:
    """(N, M): the approximate share of each site's variance in the first 1 … M directions.

    It is exact for eigenvectors, where a direction's part of a site's variance is its eigenvalue
    times the square of its coordinates there. A constant site has 1, since it loses nothing.
    """
    sites = spectrum.vectors.chunk(len(spectrum.per_site))
    part = torch.stack([of_site.double().square().sum(0) for of_site in sites])
    inside = (part * spectrum.values.clamp(min=0)).cumsum(1) / spectrum.per_site[:, None]
    return torch.where(spectrum.per_site[:, None] > 0, inside, 1.0)


def choose(b: Basis, kept: Tensor, spectrum: Spectrum) -> int:
    """How many directions to keep: `dimensions`, or the fewest that lose no site too much.

    If all directions found are too few, it is as many as `largest` allows, and Kept.check decides
    from each site's share whether training may use them.

    Parameters
    ----------
    kept : from `shares`.

    Raises
    ------
    InputError : fewer than `dimensions` directions were found.
    """
    searched = spectrum.vectors.shape[1]
    sites, varying = len(spectrum.per_site), int((spectrum.per_site > 0).sum())
    every = len(spectrum.mean) * varying // sites
    if b.dimensions is not None:
        if varying < sites and b.dimensions > every:
            return min(every, searched)
        if b.dimensions > searched:
            raise InputError(
                f"basis.dimensions: {b.dimensions} exceeds the {searched} directions that these "
                "rows and basis.largest allow; lower it, or raise corpus.train_blocks or "
                "basis.largest"
            )
        return b.dimensions
    missing = int((kept < 1 - b.max_variance_lost).sum(1).max())
    most = most_dimensions(b.largest, b.dimensions, len(spectrum.mean) // sites)
    return min(missing + 1, searched, most)


def _rotated(spectrum: Spectrum, turn: Tensor, exactly: bool) -> tuple[Tensor, Tensor]:
    """The leading directions after a rotation within their span: U (N·D, R), and its (R, R).

    Parameters
    ----------
    exactly : whether to make U orthonormal again, which takes memory of four times its size.
    """
    leading = spectrum.vectors[:, : len(turn)]
    if not exactly:
        _apply(leading, turn)
        return leading, turn
    leading = leading.to(torch.float32)
    U, _ = torch.linalg.qr(leading @ turn)
    return U, leading.T @ U


def make(
    settings: Settings, crosscoder: str, paths: RowPaths, output: Path, peers: Peers | None = None
) -> None:
    """Find the subspace of a crosscoder's input sites, and write it as described in `build`.

    Parameters
    ----------
    paths : of its rows.
    peers : the processes that share streamed rows, each with a part of the snapshots. All find the
        same subspace, and the first writes it.
    """
    c, device = settings.all_crosscoders[crosscoder], devices.choose(settings.device)
    sites = expand(c.inputs, settings.snapshots.chosen)
    table = feed.table_of(c, sites, paths)
    rows = feed.site_rows(settings, sites, paths, device, table, peers=peers)
    build(settings.basis, rows, output if peers is None or peers.rank == 0 else None, device)


def build(b: Basis, rows: SiteRows, output: str | Path | None, device: torch.device) -> None:
    """Find the subspace of the first `basis.rows` rows.

    Writes HDF5: `basis` (N·D, R), `turn` (R, R), where basis · turnᵀ are the principal directions
    in order; `mean` (N·D,), `eigenvalues` (M,), `kept` (N,) share of each site's variance inside;
    attributes: tokens, sites, rows.

    Parameters
    ----------
    output : file to write, or None for none.

    Raises
    ------
    InputError : damaged activations, or too few rows.
    """
    size = math.prod(rows.shape)
    check_varies(rows.sites, rows.scales)
    # If there are several shards, only the first is on disk.
    limit = min(b.rows, rows.starts[1] if isinstance(rows, Cached) else rows.rows)
    if limit <= (b.dimensions or 1):
        raise InputError(
            f"basis.dimensions: {limit} training rows span fewer than {b.dimensions or 1} "
            "dimensions; raise corpus.train_blocks and basis.rows"
        )
    exactly = size <= b.exact_limit
    if exactly:
        spectrum = exact(rows, limit, device)
    else:
        most = most_dimensions(b.largest, b.dimensions, rows.shape[1])
        spectrum = randomised(rows, limit, device, most, b.seed)
    within = shares(spectrum)
    r = choose(b, within, spectrum)
    generator = torch.Generator().manual_seed(b.seed)
    turn, upper = torch.linalg.qr(torch.randn(r, r, generator=generator, dtype=torch.float64))
    turn = (turn * upper.diagonal().sign()).to(device, torch.float32)
    U, turn = _rotated(spectrum, turn, exactly)
    U[~_varying(spectrum.per_site, rows).to(U.device)] = 0
    kept = within[:, r - 1].cpu().numpy()
    names = [site.name for site in rows.sites]
    if output is None:
        return
    with whole_hdf5(output) as file:
        stored = file.create_dataset("basis", U.shape, "float32")
        for start in range(0, size, BLOCK):  # U may be a view of some columns of a larger matrix
            stored[start : start + BLOCK] = U[start : start + BLOCK].cpu().numpy()
        file["turn"] = turn.cpu().numpy()
        file["mean"] = spectrum.mean.float().cpu().numpy()
        file["eigenvalues"] = spectrum.values.cpu().numpy()
        file["kept"] = kept
        file.attrs["format"] = FORMAT
        file.attrs["tokens"] = rows.tokens
        file.attrs["sites"] = names
        file.attrs["rows"] = limit
    print(Kept(names, kept, r, size).told(b.max_variance_lost), flush=True)
