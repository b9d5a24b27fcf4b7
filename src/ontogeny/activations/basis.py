"""The basis stage: the directions of the stacked activations that hold their variance.

The stacked activations ã ∈ R^{N·D} of one token are highly redundant across snapshots. With U an
orthonormal basis of the leading R principal directions, y = Uᵀ(ã − μ) has ‖ã − â‖² = ‖y − ŷ‖² +
the constant part left out, so training on y is training on ã with decoders in the subspace.
A random rotation inside the subspace makes no coordinate special: Adam is not rotation-invariant.

`build` finds the directions, from the first `basis.rows` training rows; subspace.py projects.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ontogeny.activations.rows import Cached, Rows, SiteRows, pieces
from ontogeny.activations.sizes import PIECE_ROWS
from ontogeny.activations.store import check_varies
from ontogeny.activations.subspace import FORMAT
from ontogeny.files import InputError, whole_hdf5
from ontogeny.progress import bar
from ontogeny.settings import Basis


@dataclass
class Spectrum:
    """Principal directions of the normalised training rows, largest variance first.

    Attributes
    ----------
    mean : (N·D,). values : (M,) variances. vectors : (N·D, M) orthonormal columns.
    per_site : (N,) the whole variance of each site, inside and outside of the M directions.
    """

    mean: Tensor
    values: Tensor
    vectors: Tensor
    per_site: Tensor


def _shift(rows: Rows, limit: int, device: torch.device) -> Tensor:
    """(N·D,): the mean of the first piece, about which sums lose fewer digits."""
    return torch.from_numpy(rows.read(0, min(PIECE_ROWS, limit))).flatten(1).to(device).mean(0)


def _shifted(rows: Rows, limit: int, shift: Tensor, label: str) -> Iterator[Tensor]:
    """The first `limit` training rows less a shift, (≤ P, N·D) float32 on its device at a time."""
    with bar(label, limit, "rows") as progress:
        for _, piece in pieces(rows, PIECE_ROWS, stop=limit):
            yield torch.from_numpy(piece).flatten(1).to(shift.device) - shift
            progress.update(len(piece))


def moments(rows: Rows, limit: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean (N·D,) and covariance (N·D, N·D) of the first normalised training rows, float64.

    One pass; products in float32 by piece, about the first piece's mean, sums in float64.
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
    if not varies.all():  # a constant site is in no direction
        covariance = covariance[varies][:, varies]
    values, found = torch.linalg.eigh(covariance.to(torch.float32))
    vectors = found.new_zeros(len(varies), found.shape[1])
    vectors[varies] = found.flip(1)
    return Spectrum(mean, values.flip(0).double(), vectors, per_site)


def randomised(
    rows: SiteRows, limit: int, device: torch.device, largest: int, seed: int
) -> Spectrum:
    """About the `largest` leading directions, without an (N·D, N·D) matrix.

    A randomised range finder with one power iteration and a Rayleigh-Ritz step (Halko, Martinsson
    and Tropp 2011, algorithms 4.4 and 5.3), each product with the covariance one pass over the
    rows. A tenth of the directions searched are spare and left out at the end.
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
        product = product / limit - torch.outer(mean, mean @ Q)
        if number < 2:
            Q = torch.linalg.qr(product).Q
    values, turn = torch.linalg.eigh(Q.T @ product)
    kept = min(largest, width)
    variance = squares / limit - mean.double().square()
    return Spectrum(
        mean.double() + shift,
        values.flip(0)[:kept].double(),
        Q @ turn.flip(1)[:, :kept],
        variance.unflatten(0, rows.shape).sum(1),
    )


def shares(spectrum: Spectrum) -> Tensor:
    """(N, M): the share of each site's variance inside the first 1 … M directions, about.

    Exact for eigenvectors: then a direction's part of a site's variance is its value times the
    square of its coordinates there. A constant site loses nothing: 1.
    """
    shape = (len(spectrum.per_site), -1)
    part = spectrum.vectors.double().square().unflatten(0, shape).sum(1)
    inside = (part * spectrum.values.clamp(min=0)).cumsum(1) / spectrum.per_site[:, None]
    return torch.where(spectrum.per_site[:, None] > 0, inside, 1.0)


def choose(b: Basis, spectrum: Spectrum) -> int:
    """How many directions to keep: `dimensions`, or the fewest that lose no site too much.

    Raises
    ------
    InputError : the directions found, or `largest`, do not suffice.
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
    kept = shares(spectrum)
    missing = int((kept < 1 - b.max_variance_lost).sum(1).max())
    wanted = min(missing + 1, searched)
    if missing < searched or searched == every:  # what all miss is rounding
        if wanted <= b.largest:
            return wanted
        raise InputError(
            f"basis.largest: {wanted} directions are needed to lose at most "
            f"{b.max_variance_lost:g} of any site's variance; raise it to that, or raise "
            "basis.max_variance_lost"
        )
    raise InputError(
        f"basis.max_variance_lost: {searched} directions lose "
        f"{float(1 - kept[:, -1].min()):.1e} of a site's variance; raise basis.largest or "
        "basis.exact_limit, or allow more to be lost"
    )


def build(b: Basis, rows: SiteRows, output: str | Path, device: torch.device) -> None:
    """Find the subspace of the first `basis.rows` rows.

    Writes HDF5: `basis` (N·D, R), `turn` (R, R): basis · turnᵀ are the principal directions in
    order; `mean` (N·D,), `eigenvalues` (M,), `kept` (N,) share of each site's variance inside;
    attributes: tokens, sites, rows.

    Raises
    ------
    InputError : damaged activations, or too few rows.
    """
    size = math.prod(rows.shape)
    check_varies(rows.sites, rows.scales)
    # Of several shards the first alone is there.
    limit = min(b.rows, rows.starts[1] if isinstance(rows, Cached) else rows.rows)
    if limit <= (b.dimensions or 1):
        raise InputError(
            f"basis.dimensions: {limit} training rows span fewer than {b.dimensions or 1} "
            "dimensions; raise corpus.train_blocks and basis.rows"
        )
    if size <= b.exact_limit:
        spectrum = exact(rows, limit, device)
    else:
        spectrum = randomised(rows, limit, device, b.largest, b.seed)
    r = choose(b, spectrum)
    kept = shares(spectrum)[:, r - 1]
    generator = torch.Generator().manual_seed(b.seed)
    turn, upper = torch.linalg.qr(torch.randn(r, r, generator=generator, dtype=torch.float64))
    turn = (turn * upper.diagonal().sign()).to(device, torch.float32)
    leading = spectrum.vectors[:, :r].to(torch.float32)
    U, _ = torch.linalg.qr(leading @ turn)
    U[~_varying(spectrum.per_site, rows).to(U.device)] = 0
    with whole_hdf5(output) as file:
        file["basis"] = U.cpu().numpy()
        file["turn"] = (leading.T @ U).cpu().numpy()
        file["mean"] = spectrum.mean.float().cpu().numpy()
        file["eigenvalues"] = spectrum.values.cpu().numpy()
        file["kept"] = kept.cpu().numpy()
        file.attrs["format"] = FORMAT
        file.attrs["tokens"] = rows.tokens
        file.attrs["sites"] = [site.name for site in rows.sites]
        file.attrs["rows"] = limit
