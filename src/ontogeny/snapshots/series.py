"""The models of many snapshots, one after another, for reading a little text with each.

transformers needs at least 20 ms to build a small model, but its weights are read in 1 ms. So if
snapshots differ only in their weights, a single model loads the weights of each in turn.
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
    """(step, model) of some snapshots, complete and in evaluation mode.

    A model is valid until the next one is requested.

    Parameters
    ----------
    snapshots : folder. The rest is as for `load_model`, which also describes the errors.
    """
    model, config = None, None
    for step in steps:
        folder = snapshots / f"step{step}"
        if config is None or _text(folder / CONFIG) != config or not _exchange(model, folder):
            del model  # free its memory for the next one
            model = load_model(folder, device, dtype, remote_code)
            config = _text(folder / CONFIG) if _is_plain(model, folder) else None
        yield step, model


@contextmanager
def kept(model: Any, wanted: Iterable[Key]) -> Iterator[dict[Key, torch.Tensor]]:
    """Within the context, each pass of the model stores these (layer, stream) in the mapping.

    The values are those of `sites.read`, but the pass continues to the logits; (B, T, d) or
    (B·T, d).

    Raises
    ------
    InputError : the model lacks a layer or a stream; names the setting to change.
    """
    values: dict[Key, torch.Tensor] = {}

    def keep(key: Key, value: torch.Tensor) -> None:
        values[key] = value.clone()  # the model may write into it later

    with ExitStack() as stack:
        for key in wanted:
            handle = _on(*structure.end_of(model, *key), partial(keep, key))
            stack.callback(handle.remove)
        yield values


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _pairs(model: Any, folder: Path) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
    """Each tensor of a snapshot's file paired with the model's tensor of that name, or None.

    None if these are not all tensors of the model (except tied ones), if their shapes differ, or if
    the file cannot be read; `load_model` then reports what is wrong with it.
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
    """Whether a model holds exactly what is in its file: nothing renamed, changed or omitted."""
    pairs = _pairs(model, folder)
    return pairs is not None and all(torch.equal(given.to(own), own) for given, own in pairs)


@torch.no_grad()
def _exchange(model: Any, folder: Path) -> bool:
    """Load another snapshot's weights into a plain model; returns whether they fit."""
    pairs = _pairs(model, folder)
    for given, own in pairs or []:
        own.copy_(given)
    return pairs is not None
