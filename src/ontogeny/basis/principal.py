"""The basis stage: the directions of the stacked activations that hold their variance.

The stacked activations ã ∈ R^{N·D} of one token are highly redundant across snapshots. With U an
orthonormal basis of the leading R principal directions, y = Uᵀ(ã − μ) has ‖ã − â‖² = ‖y − ŷ‖² +
the constant part left out, so training on y is training on ã with decoders in the subspace.
A random rotation inside the subspace leaves no coordinate special: Adam is not rotation-invariant.
"""

from __future__ import annotations

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


def moments(stacks: store.Stacks, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (N·D,) and covariance (N·D, N·D) of the normalised training rows, float64.

    One pass; products in float32 by piece, about the first piece's mean, sums in float64.
    """
    size = len(stacks.sites) * stacks.width
    total = torch.zeros(size, dtype=torch.float64, device=device)
    second = torch.zeros(size, size, dtype=torch.float64, device=device)
    shift: torch.Tensor | None = None
    with bar("basis: covariance", stacks.rows, "rows") as progress:
        for _, piece in stacks.pieces(PIECE_ROWS):
            x = torch.from_numpy(piece).flatten(1).to(device)
            if shift is None:
                shift = x.mean(0)
            x -= shift
            total += x.sum(0)
            second += x.T @ x
            progress.update(len(x))
    if shift is None:
        raise InputError("activations: no training rows; raise corpus.train_blocks")
    mean = total / stacks.rows
    second /= stacks.rows
    second -= torch.outer(mean, mean)
    return mean + shift, second


def choose(values: torch.Tensor, vectors: torch.Tensor, sites: int, lost: float) -> int:
    """Smallest R with which no site loses more than `lost` of its variance.

    Parameters
    ----------
    values : (N·D,) eigenvalues, largest first. vectors : (N·D, N·D), the columns in their order.
    """
    share = vectors.square().unflatten(0, (sites, -1)).sum(1) * values.clamp(min=0)  # (N, N·D)
    kept = share.cumsum(1) / share.sum(1, keepdim=True)
    return int((kept < 1 - lost).sum(1).max()) + 1


def build(
    b: Basis, activations: str | Path, sites: list[store.Site], output: str | Path, device: str
) -> None:
    """Find the subspace and write it with all training rows in it.

    Writes HDF5: `projected` (rows, R) float16; `basis` (N·D, R), `mean` (N·D,), `eigenvalues`
    (N·D,), `kept` (N,) share of each site's variance inside; attributes: tokens, sites.

    Raises
    ------
    InputError : damaged activations, or a coordinate that float16 cannot hold.
    """
    where = devices.choose(device)
    stacks = store.Stacks(activations, sites)
    mean, covariance = moments(stacks, where)
    values, vectors = torch.linalg.eigh(covariance.to(torch.float32))
    values, vectors = values.flip(0).double(), vectors.flip(1)
    r = choose(values, vectors.double(), len(sites), b.max_variance_lost)
    generator = torch.Generator().manual_seed(b.seed)
    turn, upper = torch.linalg.qr(torch.randn(r, r, generator=generator, dtype=torch.float64))
    turn = (turn * upper.diagonal().sign()).to(where, torch.float32)
    U = vectors[:, :r].to(torch.float32) @ turn
    U, _ = torch.linalg.qr(U)
    per_site = covariance.diagonal().unflatten(0, (len(sites), -1)).sum(1)
    blocks = U.double().unflatten(0, (len(sites), -1))
    within = covariance.float() @ U
    kept = (blocks * within.double().unflatten(0, (len(sites), -1))).sum((1, 2)) / per_site

    with whole(output) as draft, h5py.File(draft, "w") as file:
        out = store.create(file, "projected", stacks.rows, r, "float16")
        m = mean.float()
        with bar(f"basis: project onto {r} dimensions", stacks.rows, "rows") as progress:
            for start, piece in stacks.pieces(PIECE_ROWS):
                y = (torch.from_numpy(piece).flatten(1).to(where) - m) @ U
                half = y.to(torch.float16)
                if not torch.isfinite(half).all():
                    raise InputError(
                        "activations: a principal coordinate overflows float16; look for an "
                        "outlier in the activations, or set basis: full"
                    )
                out[start : start + len(half)] = half.cpu().numpy()
                progress.update(len(half))
        file["basis"] = U.cpu().numpy()
        file["mean"] = m.cpu().numpy()
        file["eigenvalues"] = values.cpu().numpy()
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
