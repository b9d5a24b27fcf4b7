"""The principal subspace of some sites in use, and rows in it (method.md 9).

With U an orthonormal basis of the leading R principal directions of the stacked activations
ã ∈ R^{N·D}, a token's row is y = (ã − μ)U. basis.py finds the directions, and
basis_file.py says how much they keep.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ontogeny.activations.basis_file import FORMAT, open_basis
from ontogeny.activations.projection import projected
from ontogeny.activations.rows import Cached, across, pieces, starts_of
from ontogeny.activations.sites import Site
from ontogeny.activations.sizes import piece_rows
from ontogeny.activations.store import Reader, Writer
from ontogeny.files import InputError, read_hdf5, whole_hdf5
from ontogeny.progress import bar

ONE = 1.01  # with room for rounding


class Subspace:
    """A basis file.

    Attributes
    ----------
    U : (N·D, R). mean : (N·D,). kept : (N,). eigenvalues : (M,). dimensions : R.
    sites : name of each site. tokens : digest of the tokens that it was computed from.

    Raises
    ------
    InputError : the file is truncated or foreign.
    """

    def __init__(self, path: str | Path) -> None:
        with open_basis(path) as file:
            self.path = path
            self.U: np.ndarray = file["basis"][:]
            self.mean: np.ndarray = file["mean"][:]
            self.kept: np.ndarray = file["kept"][:]
            self.eigenvalues: np.ndarray = file["eigenvalues"][:]
            self._turn: np.ndarray = file["turn"][:]
            self.sites = list(file.attrs["sites"])
            self.tokens = str(file.attrs["tokens"])
        # No entry of orthonormal directions exceeds 1, and comparisons with NaN are false.
        bounded = self.U.min(initial=0) > -ONE and self.U.max(initial=0) < ONE
        if not (bounded and np.isfinite(self.mean).all()):
            raise InputError(
                f"{path}: damaged: the directions are not of unit length; delete it to make it "
                "again"
            )
        self.dimensions = self.U.shape[1]
        self._on: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    def on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """U and mean on a device, which all users there share."""
        if device not in self._on:
            both = torch.from_numpy(self.U), torch.from_numpy(self.mean)
            self._on[device] = both[0].to(device), both[1].to(device)
        return self._on[device]

    def only(self, sites: Sequence[Site]) -> Subspace:
        """The part of it for some of its sites; at the other sites U and mean have to be 0."""
        names = [site.name for site in sites]
        if names == self.sites:
            return self
        part = copy.copy(self)
        kept = [self.sites.index(name) for name in names]
        part.U = self.U.reshape(len(self.sites), -1, self.dimensions)[kept]
        part.U = part.U.reshape(-1, self.dimensions)
        part.mean = self.mean.reshape(len(self.sites), -1)[kept].ravel()
        part.sites, part.kept = names, self.kept[kept]
        part._on = {}
        return part

    def leading(self, count: int) -> np.ndarray:
        """(N·D, count): the principal directions of largest variance, in order."""
        return self.U @ self._turn[:count].T

    def check_sites(self, sites: list[Site]) -> None:
        """Raise InputError unless it was computed from these sites, in this order."""
        if self.sites != [site.name for site in sites]:
            raise InputError(f"{self.path}: made for other sites; delete it to make it again")

    def projection(self, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
        """A function that projects rows (B, N, D) float32 on the device: y, (B, R) float16."""
        U, mean = self.on(device)
        return lambda activations: projected(activations, mean, U).to(torch.float16)

    def partial(
        self, sites: Sequence[int], device: torch.device
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """A function that maps some sites' rows (B, n, D) to their part of y, (B, R) float32.

        Parameters
        ----------
        sites : ascending numbers of n of the N sites.
        """
        U, mean = self.on(device)
        if len(sites) < len(self.sites):
            # Consecutive sites are a view of the same memory.
            consecutive = sites and len(sites) == sites[-1] - sites[0] + 1
            chosen = slice(sites[0], sites[-1] + 1) if consecutive else list(sites)
            U = U.unflatten(0, (len(self.sites), -1))[chosen].flatten(0, 1)
            mean = mean.unflatten(0, (len(self.sites), -1))[chosen].flatten()
        return lambda activations: projected(activations, mean, U)


def project(
    basis: str | Path, rows: Cached, shard: int, output: str | Path, device: torch.device
) -> None:
    """Write a shard's training rows in a subspace: HDF5, `projected` (rows, R) float16.

    Raises
    ------
    InputError : damaged activations, or a coordinate that float16 cannot hold.
    """
    subspace = Subspace(basis)
    subspace.check_sites(rows.sites)
    to_subspace = subspace.projection(device)
    first, stop = rows.starts[shard : shard + 2]
    with (
        whole_hdf5(output) as file,
        bar(f"project onto {subspace.dimensions} dimensions", stop - first, "rows") as progress,
    ):
        writer = Writer(file, "projected", stop - first, subspace.dimensions, "float16")
        for start, piece in pieces(rows, piece_rows(len(subspace.mean)), first, stop):
            y = to_subspace(torch.from_numpy(piece).to(device))
            wrong = (~torch.isfinite(y)).any(1).nonzero()
            if len(wrong):
                raise InputError(
                    f"activations: row {start + int(wrong[0])} has a principal coordinate that is "
                    "too large for float16; look for an outlier there, or set basis: full"
                )
            writer.write(y.cpu().numpy())
            progress.update(len(y))
        file.attrs["format"] = FORMAT
        file.attrs["tokens"] = rows.tokens
        file.attrs["first_row"] = first


class Projected:
    """Training rows in a subspace, from the files of their shards.

    Raises
    ------
    InputError : a file is truncated, foreign, or not the next shard; `read` raises it if a chunk is
        not as it was written.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._readers: list[Reader] = []
        sizes: list[int] = []
        for path in paths:
            with read_hdf5(path, "a file of projected rows") as file:
                held: Any = file.attrs.get("format"), file.attrs.get("first_row")
            if held != (FORMAT, sum(sizes)):
                raise InputError(
                    f"{path}: written by another version, or from other rows; delete it"
                )
            self._readers.append(Reader(path, "projected"))
            sizes.append(self._readers[-1].shape[0])
        self._starts = starts_of(sizes)
        self.rows = self._starts[-1]
        self.shape: tuple[int, ...] = self._readers[0].shape[1:]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop), (stop − start, R) float32."""
        stored = across(self._starts, start, stop, lambda n, *part: self._readers[n].read(*part))
        return stored.astype(np.float32)
