"""The token table in use: T^θ[x], the mean activation of token x at site θ (method.md 3).

token_table.py computes it. Letters: N sites, D width, M tokens with a separate entry; all other
tokens share the last entry, the overall mean. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ontogeny.activations.sites import Site, folder_name
from ontogeny.files import InputError, read_hdf5

FORMAT = "ontogeny-token-table-2"
HALF = 65504.0  # the largest float16


@contextmanager
def open_table(path: str | Path) -> Iterator[h5py.File]:
    """Open the token table of a layer's stream while its contents are read.

    Raises
    ------
    InputError : the file is damaged or foreign.
    """
    with read_hdf5(path, "a token table") as file:
        if file.attrs.get("format") != FORMAT:
            raise InputError(f"{path}: not a token table of this version; delete it")
        yield file


def of_sites(folder: str | Path, sites: Sequence[Site], name: str) -> Iterator[Any]:
    """The values of a dataset or attribute in the token tables, for each of some sites.

    Parameters
    ----------
    folder : the experiment's token tables.

    Raises
    ------
    InputError : a site is missing, or as for `open_table`.
    """
    for site in sites:
        path = Path(folder) / f"{folder_name(site.layer, site.stream)}.h5"
        with open_table(path) as file:
            steps = list(file.attrs["steps"])
            if site.snapshot not in steps:
                raise InputError(f"{path}: has no step {site.snapshot}; delete it to make it again")
            value = file[name][steps.index(site.snapshot)]
        yield value


class Table:
    """The token table of N sites, in the normalised units of its own scales.

    Parameters
    ----------
    folder : the experiment's token tables. sites : N sites in the order wanted.
    scales : (N,) constants of the sites. With None they bring the mean norm of the rows minus the
        table to √D, or are 0 at a constant site.

    Attributes
    ----------
    scales : (N,) float32. token : (M,) ids with an entry, ascending.
    values : (N, M + 1, D) float32, rounded to float16 so that they equal a saved crosscoder's.

    Raises
    ------
    InputError : the file is damaged or lacks a site, or nothing remains at a site.
    """

    def __init__(
        self, folder: str | Path, sites: Sequence[Site], scales: np.ndarray | None = None
    ) -> None:
        first = Path(folder) / f"{folder_name(sites[0].layer, sites[0].stream)}.h5"
        with open_table(first) as file:
            self.token: np.ndarray = file["token"][:]
            width = file["table"].shape[2]
        if scales is None:
            left = np.array(list(of_sites(folder, sites, "left_norm")))
            varies = np.array(list(of_sites(folder, sites, "varies")))
            if (varies & (left == 0)).any():
                site = sites[int((varies & (left == 0)).argmax())]
                raise InputError(
                    f"{site.name}: the token alone determines every row, so beyond the token "
                    "table there is nothing to learn; set token_table: false, or remove the site "
                    "from inputs"
                )
            scales = np.where(varies, width**0.5 / np.where(left > 0, left, 1), 0)
            scales = scales.astype(np.float32)
        self.scales = scales
        self.values = np.empty((len(sites), len(self.token) + 1, width), np.float32)
        for own, raw, scale in zip(
            self.values, of_sites(folder, sites, "table"), scales, strict=True
        ):
            own[:] = (raw * scale).clip(-HALF, HALF).astype(np.float16)
        self._entry = lookup(self.token)

    def entry(self, ids: np.ndarray) -> np.ndarray:
        """The index of each token's entry, in the shape of the ids."""
        return np.asarray(self._entry[np.minimum(ids, len(self._entry) - 1)])

    def off(self, rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Subtract the entries of the tokens (B,) from normalised rows (B, N, D), in place."""
        entry = self.entry(ids)
        for n, values in enumerate(self.values):
            rows[:, n] -= values[entry]
        return rows


def lookup(token: np.ndarray) -> np.ndarray:
    """The index of the entry of each token id, then the one for all larger ids."""
    M = len(token)
    entry = np.full(int(token.max(initial=-1)) + 2, M)
    entry[token] = np.arange(M)
    return entry
