"""States of a training that several ranks share: one folder, each rank's features from itself.

`state/step{S}` is written beside its place and renamed when all ranks have ended; only then is the
state before it removed. In it are torch.distributed.checkpoint's files, whose tensors any number of
ranks, or one process, cut anew as they read them, and

    about.json    step, aux, data, log: as the attributes of state.h5 (state.py)
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from ontogeny.crosscoder.ranks import Ranks
from ontogeny.files import write_json


class State(NamedTuple):
    """A state's folder, and the step that it is of."""

    step: int
    folder: Path


def _states(folder: Path) -> list[Path]:
    return [path for path in folder.glob("step*") if (path / "about.json").exists()]


def _about(state: Path) -> dict[str, Any]:
    about: dict[str, Any] = json.loads((state / "about.json").read_text(encoding="utf-8"))
    return about


def newest(folder: Path, data: str | None = None) -> State | None:
    """The newest state in a folder, of rows with this digest if one is given."""
    states = []
    for path in _states(folder):
        about = _about(path)
        if data is None or about["data"] == data:
            states.append(State(about["step"], path))
    return max(states, default=None)


def remove(folder: Path) -> None:
    """Remove all states in a folder."""
    for path in _states(folder):
        shutil.rmtree(path)


def _placed(tensors: dict[str, torch.Tensor], shared: set[str], ranks: Ranks) -> dict[str, Any]:
    """The tensors, those of shared features as what they are of the whole."""
    if ranks.size == 1:
        return dict(tensors)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    mesh = init_device_mesh(tensors["silent"].device.type, (ranks.size,))
    return {
        name: DTensor.from_local(tensor, mesh, [Shard(0)], run_check=False)
        if name in shared
        else tensor
        for name, tensor in tensors.items()
    }


def save(
    folder: Path,
    tensors: dict[str, torch.Tensor],
    shared: set[str],
    ranks: Ranks,
    about: dict[str, Any],
) -> None:
    """Write the ranks' state, whole or not at all, in place of whatever state was there.

    All ranks call it, and have what they need of it when it returns.

    Parameters
    ----------
    tensors : of this rank, by name. shared : names of those that have a row for each of its own
        features; the rest is alike on all.
    about : what about.json holds, as it is on rank 0; `step` among it.
    """
    from torch.distributed.checkpoint import state_dict_saver

    final = folder / f"step{about['step']}"
    draft = folder / f".{final.name}.part"
    if ranks.rank == 0:
        for stale in (*folder.glob(".step*.part"), final):
            shutil.rmtree(stale, ignore_errors=True)
    dist.barrier()
    state_dict_saver.save(_placed(tensors, shared, ranks), checkpoint_id=draft)
    if ranks.rank == 0:
        before = [path for path in _states(folder) if path != final]
        write_json(draft / "about.json", about)
        draft.rename(final)
        (folder / "state.h5").unlink(missing_ok=True)
        for path in before:
            shutil.rmtree(path)


@torch.no_grad()
def load(
    state: State, tensors: dict[str, torch.Tensor], shared: set[str], ranks: Ranks
) -> dict[str, Any]:
    """Read a state into tensors, of however many ranks it is; returns what about.json holds.

    Parameters
    ----------
    tensors, shared, ranks : as for `save`; one process holds all features.
    """
    from torch.distributed.checkpoint import state_dict_loader

    with warnings.catch_warnings():
        # That one process reads alone, which it is told to.
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        placed = _placed(tensors, shared, ranks)
        state_dict_loader.load(placed, checkpoint_id=state.folder, no_dist=ranks.size == 1)
    return _about(state.folder)
