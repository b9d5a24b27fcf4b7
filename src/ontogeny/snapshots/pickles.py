"""Weights in files that torch pickled, read by its restricted unpickler, which runs no code."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from ontogeny.files import InputError, one_line

# Where Lightning, custom training loops and DeepSpeed put the model in the files that they save.
INSIDE = ("state_dict", "model_state_dict", "model", "module")


def check(path: Path) -> None:
    """Raise InputError if a file is truncated; torch's archives end with an index."""
    with path.open("rb") as file:
        archive = file.read(2) == b"PK"
    if not archive and path.stat().st_size > 0:
        return  # a file from before torch 1.6, which only loading can check
    try:
        zipfile.ZipFile(path).close()
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: cannot be loaded as plain tensors ({one_line(error, 160)}); get it again, or "
            "save the model as safetensors"
        ) from None


def load(path: Path) -> dict[str, Any]:
    """The tensors of a pickled state by name, also if the state is part of a whole checkpoint.

    Raises InputError if the file is damaged, or holds flattened parameters or other objects than
    plain tensors.
    """
    import torch

    try:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            # Files from before torch 1.6 are not archives and cannot be memory-mapped.
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
    """The same tensors, contiguous and without shared memory, as safetensors requires.

    Tied tensors are stored twice, since leaving one out is only right if the model ties them again.
    """
    taken: set[int] = set()
    apart = {}
    for name, tensor in state.items():
        memory = tensor.untyped_storage().data_ptr()
        tensor = tensor.detach()
        apart[name] = tensor.clone().contiguous() if memory in taken else tensor.contiguous()
        taken.add(memory)
    return apart
