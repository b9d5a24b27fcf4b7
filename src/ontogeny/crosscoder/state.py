"""Everything that changes while a crosscoder trains, and the file that trainings resume from.

A file may hold the states of several trainings that run together (stream.py), each under its own
key. It is written atomically, so that all states are from the same time. A thread writes it from a
copy while the trainings continue.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from ontogeny import digests
from ontogeny.crosscoder import model
from ontogeny.crosscoder.optimizer import Adam
from ontogeny.crosscoder.ranks import Ranks
from ontogeny.crosscoder.sizes import SAVE_SECONDS
from ontogeny.files import BROKEN, InputError, one_line, open_hdf5, whole_hdf5

FILE = "state.h5"


@dataclass
class Progress:
    """Everything that changes while a crosscoder trains, and therefore all that a state file holds.

    Attributes
    ----------
    silent : (F,) rows since each feature was last active.
    threshold : () running mean of BatchTopK's smallest kept score; −1 before the first.
    pressure : () factor of λ that steers L0 to the wanted value. l0 : () running mean of L0; −1
        before the first.
    failed : () first step whose loss was not finite; −1 while there is none.
    aux : number of features that AuxK looks at, set from the last count of dead ones; 0 is none.
    data : digest of the rows; training never resumes from a state made on different rows.
    ranks : this process among those that share the training. Weights, gradients and moments are of
        its own features. The rest is the same on all ranks, except the log, which only rank 0 has.
    slots : number of AuxK's features that each rank looks at, if there are several ranks.
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
        """All tensors of a state, by name."""
        tensors = self.weights.named() | {"silent": self.silent, "threshold": self.threshold}
        tensors |= {"pressure": self.pressure, "l0": self.l0}
        for i, (m, v) in enumerate(zip(self.optimizer.first, self.optimizer.second, strict=True)):
            tensors |= {f"first.{i}": m, f"second.{i}": v}
        return tensors

    def shared(self) -> set[str]:
        """Names of the tensors that have one row per feature, of which each rank holds a share."""
        own = {id(t) for n, t in self.weights.named().items() if n != "b_dec"}
        trained = [i for i, w in enumerate(self.optimizer.weights) if id(w) in own]
        moments = {f"{moment}.{i}" for i in trained for moment in ("first", "second")}
        return moments | set(self.weights.named()) - {"b_dec"}

    def copied(self) -> State | None:
        """A copy of this state in host memory, on rank 0. All ranks have to call it.

        The ranks' features are gathered one tensor at a time, so that any number of ranks can
        resume. bfloat16 is stored as its bits, since NumPy and HDF5 have no such type.
        """
        shared = self.shared()
        if self.ranks.rank:
            for name in sorted(shared):
                self.ranks.gathered(self.tensors()[name])
            return None
        tensors = {}
        for name, tensor in sorted(self.tensors().items()):
            every = self.ranks.gathered(tensor) if name in shared else tensor.cpu()
            own = every.data_ptr() == tensor.data_ptr()
            tensors[name] = _bits(every.clone() if own else every).numpy()
        about = {"step": self.step, "aux": self.aux, "data": self.data}
        return State(tensors, about | {"log": json.dumps(self.log)})

    def resume(self, folder: Path, key: str = "/") -> None:
        """Load the folder's state, each rank its share, if it was made on the same rows.

        Parameters
        ----------
        folder : has a file that is not `damaged`. key : of the training.

        Raises
        ------
        InputError : the file is damaged in a way that shows only when it is read.
        """
        if not kept(folder):
            return
        try:
            with open_hdf5(folder / FILE) as file:
                if key in file and file[key].attrs["data"] == self.data:
                    self._read(file[key])
        except InputError:
            raise
        except BROKEN as error:
            why = one_line(error, 200)
            raise InputError(
                f"{folder / FILE}: damaged ({why}); delete it to train from the beginning"
            ) from None

    def _read(self, file: h5py.Group) -> None:
        shared = self.shared()
        for name, tensor in self.tensors().items():
            stored = file[name]
            own = self.ranks.share(len(stored)) if name in shared else ()
            _bits(tensor).copy_(torch.from_numpy(np.asarray(stored[own])))
        self.step, self.aux = int(file.attrs["step"]), int(file.attrs["aux"])
        self.log = json.loads(file.attrs["log"])

    def whole_weights(self) -> dict[str, Tensor]:
        """All features' weights in host memory on rank 0; on other ranks, only their own."""
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


@dataclass(frozen=True)
class State:
    """A copy of a training's state: its tensors, by name, and attributes."""

    tensors: Mapping[str, np.ndarray]
    about: Mapping[str, Any]


class Saver:
    """Saves the states of trainings from time to time, in a thread that writes copies of them.

    Use it in a `with` statement, which writes the last state when it ends. An error in the thread
    is raised there, or by the next `save`.

    Parameters
    ----------
    folder : of the file that holds all states.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pool = ThreadPoolExecutor(1, "state")
        self._writing: Future[None] | None = None
        self._last = time.monotonic()

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown()
        if kind is None:
            self.wait()

    @property
    def due(self) -> bool:
        """Whether to save now: enough time has passed, and the last state has been written."""
        busy = self._writing is not None and not self._writing.done()
        return not busy and time.monotonic() - self._last >= SAVE_SECONDS

    def save(self, trainings: Mapping[str, Progress]) -> None:
        """Copy the states and start writing them, by key, in place of the previous ones.

        All ranks have to call it. A single training has the key "/".
        """
        self.wait()
        states = {key: now.copied() for key, now in trainings.items()}
        mine = {key: state for key, state in states.items() if state is not None}
        if mine:
            self._writing = self._pool.submit(_write, self.folder / FILE, mine)
        self._last = time.monotonic()

    def wait(self) -> None:
        """Wait until the last state is written, and raise any error of the thread."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()


def _write(path: Path, states: Mapping[str, State]) -> None:
    with whole_hdf5(path) as file:
        for key, state in states.items():
            group = file.require_group(key)
            for name, values in state.tensors.items():
                group[name] = values
            group.attrs.update(state.about)


def kept(folder: Path) -> bool:
    """Whether a folder holds a state."""
    return (folder / FILE).exists()


def damaged(folder: Path) -> str:
    """A line about a folder's damaged state; '' if it is intact or there is none.

    A damaged state is not used, and training starts again.
    """
    for _, wrong in digests.faults(folder / FILE) if kept(folder) else ():
        return f"{folder / FILE}: {wrong}; training starts again"
    return ""


def _bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
