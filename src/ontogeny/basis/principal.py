"""The basis stage: the directions of the stacked activations that hold their variance.

The stacked activations ã ∈ R^{N·D} of one token are highly redundant across snapshots. With U an
orthonormal basis of the leading R principal directions, y = Uᵀ(ã − μ) has ‖ã − â‖² = ‖y − ŷ‖² +
the constant part left out, so training on y is training on ã with decoders in the subspace.
A random rotation inside the subspace leaves no coordinate special: Adam is not rotation-invariant.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch

from ontogeny import devices
from ontogeny.activations import store
from ontogeny.files import InputError, whole
from ontogeny.progress import bar
from ontogeny.settings import Basis

PIECE_ROWS = 4096
FORMAT = "ontogeny-basis-1"


@dataclass
class Spectrum:
    """Principal directions of the normalised training rows, largest variance first.

    Attributes
    ----------
    mean : (N·D,). values : (M,) variances. vectors : (N·D, M) orthonormal columns.
    per_site : (N,) the whole variance of each site, inside and outside of the M directions.
    """

    mean: torch.Tensor
    values: torch.Tensor
    vectors: torch.Tensor
    per_site: torch.Tensor


def _pieces(
    stacks: store.Stacks, device: torch.device, label: str
) -> Iterator[tuple[int, torch.Tensor]]:
    """All training rows as (first row, (≤ PIECE_ROWS, N·D) float32 on the device)."""
    with bar(label, stacks.rows, "rows") as progress:
        for start, piece in stacks.pieces(PIECE_ROWS):
            yield start, torch.from_numpy(piece).flatten(1).to(device)
            progress.update(len(piece))


def moments(stacks: store.Stacks, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (N·D,) and covariance (N·D, N·D) of the normalised training rows, float64.

    One pass; products in float32 by piece, about the first piece's mean, sums in float64.
    """
    size = len(stacks.sites) * stacks.width
    total = torch.zeros(size, dtype=torch.float64, device=device)
    second = torch.zeros(size, size, dtype=torch.float64, device=device)
    shift = torch.zeros(size, device=device)
    for start, x in _pieces(stacks, device, "basis: covariance"):
        if start == 0:
            shift = x.mean(0)
        x -= shift
        total += x.sum(0)
        second += x.T @ x
    mean = total / stacks.rows
    second /= stacks.rows
    second -= torch.outer(mean, mean)
    return mean + shift, second


def exact(stacks: store.Stacks, device: torch.device) -> Spectrum:
    """All N·D directions, from the covariance's eigenvectors."""
    mean, covariance = moments(stacks, device)
    per_site = covariance.diagonal().unflatten(0, (len(stacks.sites), -1)).sum(1)
    values, vectors = torch.linalg.eigh(covariance.to(torch.float32))
    return Spectrum(mean, values.flip(0).double(), vectors.flip(1), per_site)


def randomised(stacks: store.Stacks, device: torch.device, largest: int, seed: int) -> Spectrum:
    """About the `largest` leading directions, without an (N·D, N·D) matrix.

    A randomised range finder with one power iteration and a Rayleigh-Ritz step (Halko, Martinsson
    and Tropp 2011, algorithms 4.4 and 5.3), each product with the covariance one pass over the
    rows. A tenth of the directions searched are spare and left out at the end.
    """
    size = len(stacks.sites) * stacks.width
    width = min(largest + largest // 10 + 8, size, stacks.rows - 1)
    generator = torch.Generator().manual_seed(seed)
    Q = torch.randn(size, width, generator=generator).to(device)
    total = torch.zeros(size, dtype=torch.float64, device=device)
    squares = torch.zeros(size, dtype=torch.float64, device=device)
    shift, product = torch.zeros(size, device=device), Q
    for number in range(3):
        product = torch.zeros(size, width, device=device)
        for start, x in _pieces(stacks, device, f"basis: directions, pass {number + 1} of 3"):
            if number == 0 and start == 0:
                shift = x.mean(0)
            x -= shift
            if number == 0:
                total += x.sum(0)
                squares += x.square().sum(0)
            product.addmm_(x.T, x @ Q)
        mean = (total / stacks.rows).float()
        product = product / stacks.rows - torch.outer(mean, mean @ Q)
        if number < 2:
            Q = torch.linalg.qr(product).Q
    values, turn = torch.linalg.eigh(Q.T @ product)
    kept = min(largest, width)
    variance = squares / stacks.rows - mean.double().square()
    return Spectrum(
        mean.double() + shift,
        values.flip(0)[:kept].double(),
        Q @ turn.flip(1)[:, :kept],
        variance.unflatten(0, (len(stacks.sites), -1)).sum(1),
    )


def shares(spectrum: Spectrum) -> torch.Tensor:
    """(N, M): the share of each site's variance inside the first 1 … M directions, about.

    Exact for eigenvectors: then a direction's part of a site's variance is its value times the
    square of its coordinates there.
    """
    sites = len(spectrum.per_site)
    part = spectrum.vectors.double().square().unflatten(0, (sites, -1)).sum(1)
    return (part * spectrum.values.clamp(min=0)).cumsum(1) / spectrum.per_site[:, None]


def choose(b: Basis, spectrum: Spectrum) -> int:
    """How many directions to keep: `dimensions`, or the fewest that lose no site too much.

    Raises
    ------
    InputError : the directions found do not suffice.
    """
    found = spectrum.vectors.shape[1]
    if b.dimensions is not None:
        if b.dimensions > found:
            raise InputError(
                f"basis.dimensions: {b.dimensions} exceeds the {found} directions that these rows "
                "and basis.largest allow; lower it, or raise corpus.train_blocks or basis.largest"
            )
        return b.dimensions
    kept = shares(spectrum)
    missing = int((kept < 1 - b.max_variance_lost).sum(1).max())
    if missing < found:
        return missing + 1
    if found == len(spectrum.mean):  # all there are: what is missing is rounding
        return found
    raise InputError(
        f"basis.max_variance_lost: {found} directions lose {float(1 - kept[:, -1].min()):.1e} of a "
        "site's variance; raise basis.largest or basis.exact_limit, or allow more to be lost"
    )


def build(
    b: Basis, activations: str | Path, sites: list[store.Site], output: str | Path, device: str
) -> None:
    """Find the subspace and write it with all training rows in it.

    Writes HDF5: `projected` (rows, R) float16; `basis` (N·D, R), `mean` (N·D,), `eigenvalues`
    (M,), `kept` (N,) share of each site's variance inside; attributes: tokens, sites.

    Raises
    ------
    InputError : damaged activations, too few rows, or a coordinate that float16 cannot hold.
    """
    where = devices.choose(device)
    stacks = store.Stacks(activations, sites)
    size = len(sites) * stacks.width
    if stacks.rows <= (b.dimensions or 1):
        raise InputError(
            f"basis.dimensions: {stacks.rows} training rows span fewer than {b.dimensions or 1} "
            "dimensions; raise corpus.train_blocks"
        )
    if size <= b.exact_limit:
        spectrum = exact(stacks, where)
    else:
        spectrum = randomised(stacks, where, b.largest, b.seed)
    r = choose(b, spectrum)
    kept = shares(spectrum)[:, r - 1]
    generator = torch.Generator().manual_seed(b.seed)
    turn, upper = torch.linalg.qr(torch.randn(r, r, generator=generator, dtype=torch.float64))
    turn = (turn * upper.diagonal().sign()).to(where, torch.float32)
    U, _ = torch.linalg.qr(spectrum.vectors[:, :r].to(torch.float32) @ turn)
    m = spectrum.mean.float()

    with whole(output) as draft, h5py.File(draft, "w") as file:
        out = store.create(file, "projected", stacks.rows, r, "float16")
        for start, x in _pieces(stacks, where, f"basis: project onto {r} dimensions"):
            half = ((x - m) @ U).to(torch.float16)
            wrong = (~torch.isfinite(half)).any(1).nonzero()
            if len(wrong):
                raise InputError(
                    f"activations: row {start + int(wrong[0])} has a principal coordinate that "
                    "float16 cannot hold; look for an outlier there, or set basis: full"
                )
            out[start : start + len(half)] = half.cpu().numpy()
        file["basis"] = U.cpu().numpy()
        file["mean"] = m.cpu().numpy()
        file["eigenvalues"] = spectrum.values.cpu().numpy()
        file["kept"] = kept.cpu().numpy()
        file.attrs["format"] = FORMAT
        file.attrs["tokens"] = stacks.tokens
        file.attrs["sites"] = [f"{s.stream}.{s.layer}/step{s.snapshot}" for s in sites]


class Projected:
    """A basis file, opened for reading.

    Attributes
    ----------
    rows, dimensions : of the projected rows. basis : (N·D, R). mean : (N·D,). kept : (N,).

    Raises
    ------
    InputError : truncated or foreign.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            self._file = h5py.File(path, "r")
        except OSError:
            raise InputError(f"{path}: truncated or not HDF5; delete it to make it again") from None
        if self._file.attrs.get("format") != FORMAT:
            raise InputError(f"{path}: not a basis file of this version; delete it")
        self.rows, self.dimensions = map(int, self._file["projected"].shape)
        self.basis: np.ndarray = self._file["basis"][:]
        self.mean: np.ndarray = self._file["mean"][:]
        self.kept: np.ndarray = self._file["kept"][:]
        self.eigenvalues: np.ndarray = self._file["eigenvalues"][:]
        self.sites = list(self._file.attrs["sites"])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Projected rows [start, stop), (rows, R) float32."""
        return self._file["projected"][start:stop].astype(np.float32)
