"""The file of a principal subspace, and how much variance it keeps, read without torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from ontogeny.files import InputError, read_hdf5
from ontogeny.settings import Basis

FORMAT = "ontogeny-basis-2"


@contextmanager
def open_basis(path: str | Path) -> Iterator[h5py.File]:
    """Read a basis file; raises InputError if it is truncated or foreign."""
    with read_hdf5(path, "a basis file") as file:
        if file.attrs.get("format") != FORMAT:
            raise InputError(f"{path}: not a basis file of this version; delete it")
        yield file


@dataclass(frozen=True)
class Kept:
    """How much of each site's variance is inside a subspace.

    Attributes
    ----------
    sites : names. shares : (N,), of the variance after subtracting the token table, if any.
    dimensions : R. columns : N·D.
    """

    sites: list[str]
    shares: np.ndarray
    dimensions: int
    columns: int

    @classmethod
    def read(cls, path: str | Path) -> Kept:
        """Read it from a basis file without loading the directions.

        Raises
        ------
        InputError : the file is truncated or foreign.
        """
        with open_basis(path) as file:
            columns, dimensions = file["basis"].shape
            return cls(list(file.attrs["sites"]), file["kept"][:], dimensions, columns)

    @property
    def least(self) -> float:
        """The smallest share of any site."""
        return float(self.shares.min())

    def told(self, most_lost: float) -> str:
        """A line about what is kept, with each site's share if one loses more than `most_lost`."""
        line = (
            f"basis: {self.dimensions:,} of {self.columns:,} dimensions keep {self.least:.1%} of "
            f"the variance of {self.worst}, and no less of any other site's"
        )
        if self.least >= 1 - most_lost:
            return line
        every = zip(self.sites, self.shares, strict=True)
        return f"{line}: " + ", ".join(f"{site} {share:.1%}" for site, share in every)

    def check(self, settings: Basis) -> None:
        """Raise InputError if a site keeps less than `basis.least_kept`."""
        if self.least >= settings.least_kept:
            return
        raised = "largest" if settings.dimensions is None else "dimensions"
        raise InputError(
            f"basis.{raised}: the {self.dimensions:,} dimensions keep {self.least:.3f} of the "
            f"variance of {self.worst}, less than basis.least_kept, {settings.least_kept:g}; "
            f"raise basis.{raised}, or lower basis.least_kept to train in them all the same"
        )

    @property
    def worst(self) -> str:
        """The site that keeps the smallest share."""
        return self.sites[int(self.shares.argmin())]
