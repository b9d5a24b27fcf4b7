"""Weights in pickled files as torch saves them, read by its restricted unpickler: no code runs."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from ontogeny.files import InputError, one_line

# Where Lightning, Trainers of one's own and DeepSpeed keep the model inside of what they save.
INSIDE = ("state_dict", "model_state_dict", "model", "module")


def check(path: Path) -> None:
    """InputError where a file is cut: torch's archives end with their table of contents."""
    with path.open("rb") as file:
        archive = file.read(2) == b"PK"
    if not archive and path.stat().st_size > 0:
        return  # of before torch 1.6; loading tells
    try:
        zipfile.ZipFile(path).close()
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: cannot be loaded as plain tensors ({one_line(error, 160)}); get it again, or "
            "save the model as safetensors"
        ) from None


def load(path: Path) -> dict[str, Any]:
    """The tensors of a pickled state by name, also if it is inside a whole checkpoint.

    InputError where the file is damaged, holds more than plain tensors, or flattened parameters.
    """
    import torch

    try:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            # files of before torch 1.6 are no archives that could be mapped
            state = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(
            f"{path}: cannot be loaded as plain tensors ({one_line(error, 160)}); get it again, or "
            "save the model as safetensors"
        ) from None
    if isinstance(state, dict):
        inner = (state[key] for key in INSIDE if isinstance(state.get(key), dict))
        state = next(inner, state)
    if not isinstance(state, dict) or not state:
        raise InputError(f"{path}: holds no tensors by name; save the model as safetensors")
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided:
            raise InputError(
                f"{path}: {name} is a {type(tensor).__name__}, not a dense tensor; save the model "
                "as safetensors"
            )
        if str(name).endswith("_flat_param"):
            raise InputError(
                f"{path}: {name} has parameters in FSDP's flattened form; save the model with "
                "FSDP's full state dict"
            )
    return {str(name): tensor for name, tensor in state.items()}


def separate(state: dict[str, Any]) -> dict[str, Any]:
    """The same tensors, contiguous, none sharing memory with another, as safetensors demands.

    Tied tensors are stored twice: to leave one out is right only where the model ties them again.
    """
    taken: set[int] = set()
    apart = {}
    for name, tensor in state.items():
        memory = tensor.untyped_storage().data_ptr()
        tensor = tensor.detach()
        apart[name] = tensor.clone().contiguous() if memory in taken else tensor.contiguous()
        taken.add(memory)
    return apart
