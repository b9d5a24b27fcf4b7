"""The models of many snapshots, one after another, for what reads little text with each.

transformers takes 20 ms and more to build a small model, and its weights are read in one. So where
snapshots differ in their weights alone, one model takes those of each in turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ontogeny.snapshots import structure
from ontogeny.snapshots.sites import _on, load_model

Key = tuple[int, str]  # (layer, stream)
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def models(
    snapshots: Path,
    steps: Iterable[int],
    device: torch.device,
    dtype: torch.dtype,
    remote_code: bool = False,
) -> Iterator[tuple[int, Any]]:
    """(step, model) of some snapshots, whole and in evaluation mode.

    A model is good until the next one is asked for.

    Parameters
    ----------
    snapshots : folder. The rest as for `load_model`, with its errors.
    """
    model, config = None, None
    for step in steps:
        folder = snapshots / f"step{step}"
        if config is None or _text(folder / CONFIG) != config or not _exchange(model, folder):
            del model  # before the next one takes its memory
            model = load_model(folder, device, dtype, remote_code)
            config = _text(folder / CONFIG) if _is_plain(model, folder) else None
        yield step, model


@contextmanager
def kept(model: Any, wanted: Iterable[Key]) -> Iterator[dict[Key, torch.Tensor]]:
    """While it lasts, each pass of the model leaves the values of these (layer, stream) here.

    What `sites.read` gives, of a pass that goes on to the logits; (B, T, d) or (B·T, d).

    Raises
    ------
    InputError : a layer or a stream that the model does not have, with the setting to change.
    """
    values: dict[Key, torch.Tensor] = {}

    def keep(key: Key, value: torch.Tensor) -> None:
        values[key] = value.clone()  # a model may go on to write into it

    with ExitStack() as stack:
        for key in wanted:
            handle = _on(*structure.end_of(model, *key), partial(keep, key))
            stack.callback(handle.remove)
        yield values


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _pairs(model: Any, folder: Path) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
    """Each tensor of a snapshot's file with the model's own of that name, or None.

    None where these are not all that the model holds, tied ones aside, or their shapes differ, and
    if the file cannot be read; `load_model` then says what is wrong with it.
    """
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError):
        return None
    state = model.state_dict()
    if not tensors.keys() <= state.keys():
        return None
    held = {state[name].data_ptr() for name in tensors}
    pairs = [(tensor, state[name]) for name, tensor in tensors.items()]
    whole = all(own.data_ptr() in held for own in state.values())
    return pairs if whole and all(given.shape == own.shape for given, own in pairs) else None


def _is_plain(model: Any, folder: Path) -> bool:
    """Whether a model holds exactly what its file does: nothing renamed, changed or left out."""
    pairs = _pairs(model, folder)
    return pairs is not None and all(torch.equal(given.to(own), own) for given, own in pairs)


@torch.no_grad()
def _exchange(model: Any, folder: Path) -> bool:
    """Give a plain model the weights of another snapshot; whether they fit it."""
    pairs = _pairs(model, folder)
    for given, own in pairs or []:
        own.copy_(given)
    return pairs is not None
