"""Everything that changes while a crosscoder trains, and the file that a training resumes from."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from ontogeny import digests
from ontogeny.crosscoder import model
from ontogeny.crosscoder.optimizer import Adam
from ontogeny.crosscoder.ranks import Ranks
from ontogeny.files import BROKEN, InputError, one_line, open_hdf5, whole_hdf5


@dataclass
class Progress:
    """Everything that changes while a crosscoder trains, and so all that a state file holds.

    Attributes
    ----------
    silent : (F,) rows since each feature was last active.
    threshold : () running mean of BatchTopK's smallest kept score; −1 before the first.
    pressure : () what λ is multiplied with, to reach a wanted L0. l0 : () running mean of L0; −1
        before the first.
    failed : () first step whose loss was not finite; −1 while there is none.
    aux : how many features AuxK looks at, by how many were dead when last counted; 0 is none.
    data : digest of what the rows are; training never resumes from a state of other rows.
    ranks : this process among those that share the training. Weights, gradients and moments are of
        its own features; the rest is alike on all, but for the log, which rank 0 has.
    slots : of AuxK's features, how many each of several ranks looks at.
    """

    weights: model.Weights
    gradients: model.Weights
    optimizer: Adam
    silent: Tensor
    threshold: Tensor
    pressure: Tensor
    l0: Tensor
    failed: Tensor
    data: str
    aux: int = 0
    step: int = 0
    log: list[dict[str, float]] = field(default_factory=list)
    ranks: Ranks = field(default_factory=Ranks)
    slots: int = 0

    def tensors(self) -> dict[str, Tensor]:
        """All that a state holds of tensors, by name."""
        tensors = self.weights.named() | {"silent": self.silent, "threshold": self.threshold}
        tensors |= {"pressure": self.pressure, "l0": self.l0}
        for i, (m, v) in enumerate(zip(self.optimizer.first, self.optimizer.second, strict=True)):
            tensors |= {f"first.{i}": m, f"second.{i}": v}
        return tensors

    def shared(self) -> set[str]:
        """Names of those that have a row for each feature, of which ranks hold a share each."""
        own = {id(t) for n, t in self.weights.named().items() if n != "b_dec"}
        trained = [i for i, w in enumerate(self.optimizer.weights) if id(w) in own]
        moments = {f"{moment}.{i}" for i in trained for moment in ("first", "second")}
        return moments | set(self.weights.named()) - {"b_dec"}

    def save(self, folder: Path) -> None:
        """Write state.h5, whole or not at all, in place of the one before. All ranks call it.

        Ranks' features are gathered a tensor at a time, so that any number of ranks can resume.
        bfloat16 is kept as its bits: NumPy and HDF5 have no such type.
        """
        shared = self.shared()
        if self.ranks.rank:
            for name in sorted(shared):
                self.ranks.gathered(self.tensors()[name])
            return
        with whole_hdf5(folder / "state.h5") as file:
            for name, tensor in sorted(self.tensors().items()):
                every = self.ranks.gathered(tensor) if name in shared else tensor.cpu()
                file[name] = _bits(every).numpy()
            about = {"step": self.step, "aux": self.aux, "data": self.data}
            file.attrs.update(about | {"log": json.dumps(self.log)})

    def resume(self, folder: Path) -> None:
        """Read the folder's state into place, each rank its share, if it is of the same rows.

        A damaged state is not used: one line says so, and training starts again.

        Raises
        ------
        InputError : it is damaged, which shows only as it is read.
        """
        if not kept(folder):
            return
        path = folder / "state.h5"
        for _, wrong in digests.faults(path):
            if self.ranks.rank == 0:
                print(f"{path}: {wrong}; training starts again", file=sys.stderr)
            return
        try:
            with open_hdf5(path) as file:
                if file.attrs["data"] == self.data:
                    self._read(file)
        except InputError:
            raise
        except BROKEN as error:
            why = one_line(error, 200)
            raise InputError(
                f"{path}: damaged ({why}); delete it to train from the beginning"
            ) from None

    def _read(self, file: h5py.File) -> None:
        shared = self.shared()
        for name, tensor in self.tensors().items():
            stored = file[name]
            own = self.ranks.share(len(stored)) if name in shared else ()
            _bits(tensor).copy_(torch.from_numpy(np.asarray(stored[own])))
        self.step, self.aux = int(file.attrs["step"]), int(file.attrs["aux"])
        self.log = json.loads(file.attrs["log"])

    def whole_weights(self) -> dict[str, Tensor]:
        """The weights of all features in the host's memory of rank 0; of others, their own."""
        shared = self.shared()
        return {
            name: self.ranks.gathered(tensor) if name in shared else tensor.cpu()
            for name, tensor in self.weights.named().items()
        }

    @property
    def finite(self) -> bool:
        """Whether every loss so far and every weight now is finite, on all ranks."""
        fine = all(bool(torch.isfinite(t).all()) for t in self.weights.named().values())
        return self.ranks.agree(fine and self.failed.item() < 0, self.silent.device)


def kept(folder: Path) -> bool:
    """Whether a folder holds a state."""
    return (folder / "state.h5").exists()


def _bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
