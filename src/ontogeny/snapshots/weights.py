"""A model's weights as safetensors, from any folder in Hugging Face format.

What is safetensors already is linked into its place; `pytorch_model.bin` is loaded by torch's
restricted unpickler, which runs no code, and saved as safetensors. Nothing else is ever unpickled.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from ontogeny.files import InputError, digest_file

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
BIN = "pytorch_model.bin"
BIN_INDEX = "pytorch_model.bin.index.json"


def choice(names: Collection[str]) -> str | None:
    """The name that leads to a model's weights: one file, or the index of its shards.

    Safetensors come before pickles; None where `names` hold no weights.
    """
    return next((name for name in (SINGLE, INDEX, BIN, BIN_INDEX) if name in names), None)


def present(folder: Path) -> list[str]:
    """Names of the files of a folder, ascending; links that lead nowhere are left out."""
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def shards(index: Path) -> dict[str, list[str]]:
    """The files that an index names, each with its tensors, in the files' order.

    Raises
    ------
    InputError : the index is damaged, or names a file outside its folder.
    """
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        found: dict[str, list[str]] = {}
        for tensor, file in places.items():
            found.setdefault(file, []).append(tensor)
        named = sorted(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index}: damaged index ({_line(error)}); fetch it again") from None
    ending = ".safetensors" if index.name == INDEX else ".bin"
    for file in named:
        if not re.fullmatch(rf"\w[\w.-]*{re.escape(ending)}", file):
            raise InputError(f"{index}: names {file!r}, which is no {ending} file beside it")
    if not named:
        raise InputError(f"{index}: names no files; fetch it again")
    return {file: found[file] for file in named}


def check(path: Path) -> set[str]:
    """Names of the tensors of a safetensors file whose header and size agree.

    Raises
    ------
    InputError : the file is cut short, longer than its header says, or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        # numpy's reader suffices for names, and loads no torch
        with safe_open(path, framework="np") as file:
            return set(file.keys())
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path}: damaged safetensors ({_line(error)}); delete it and get it again"
        ) from None


def place(
    source: Path,
    output: Path,
    code: bool = False,
    known: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Bring the configuration and the weights of `source` into `output` as a snapshot.

    Parameters
    ----------
    source : a folder in Hugging Face format: a Trainer's checkpoint, or a commit in a cache.
    output : the folder to fill; made if it is not there.
    code : bring the model's own Python files too.
    known : SHA-256 of files of `source` that have been hashed just now, by name.

    Returns
    -------
    {"files": {name: {"sha256", "size"}}} of the files in `output`, sizes in bytes; where pickled
    weights were saved as safetensors, also {"converted": ...}, the same of what they came from.

    Raises
    ------
    InputError : no configuration or weights, a shard is missing, a file is damaged, or a pickle
        holds more than tensors.
    """
    known = known or {}
    names = present(source)
    _check_config(source / CONFIG)
    chosen = choice(names)
    if chosen is None:
        raise InputError(f"{source}: no {SINGLE} or {BIN} in it; name a folder that has weights")
    output.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / CONFIG, output / CONFIG)
    for name in names:
        if code and name.endswith(".py"):
            shutil.copyfile(source / name, output / name)
    parts = shards(source / chosen) if chosen in (INDEX, BIN_INDEX) else {chosen: []}
    for name in parts:
        if name not in names:
            raise InputError(f"{source / chosen}: names {name}, which is missing; fetch it again")
    if chosen in (SINGLE, INDEX):
        for name, tensors in parts.items():
            absent = set(tensors) - check(source / name)
            if absent:
                raise InputError(f"{source / name}: lacks {min(absent)}, which {INDEX} names")
            _link(source / name, output / name)
        if chosen == INDEX:
            shutil.copyfile(source / INDEX, output / INDEX)
        return {"files": _describe(output, present(output), known)}
    _convert(source, output, list(parts))
    return {
        "files": _describe(output, present(output), {}),
        "converted": _describe(source, parts, known),
    }


def _convert(source: Path, output: Path, parts: list[str]) -> None:
    """Save pickled weights as safetensors, one shard in memory at a time."""
    from safetensors.torch import save_file

    where: dict[str, str] = {}
    size = 0
    for number, part in enumerate(parts, 1):
        name = SINGLE
        if len(parts) > 1:
            name = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        tensors = _separate(_load(source / part))
        save_file(tensors, output / name, metadata={"format": "pt"})
        check(output / name)
        where |= dict.fromkeys(tensors, name)
        size += sum(tensor.nbytes for tensor in tensors.values())
    if len(parts) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": where}
        (output / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _load(path: Path) -> dict[str, Any]:
    """The tensors of a pickled state, by name; no code in it is run.

    Raises
    ------
    InputError : the file is damaged, or holds anything but tensors.
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
            f"{path}: cannot be loaded as plain tensors ({_line(error)}); get it again, or "
            "save the model as safetensors"
        ) from None
    if not isinstance(state, dict) or not state:
        raise InputError(f"{path}: holds no tensors by name; save the model as safetensors")
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided:
            raise InputError(
                f"{path}: {name} is a {type(tensor).__name__}, no dense tensor; save the model as "
                "safetensors"
            )
    return state


def _separate(state: dict[str, Any]) -> dict[str, Any]:
    """The same tensors, contiguous, none sharing memory with another, as safetensors demands.

    Tied tensors are stored twice: to leave one out is right only where the model ties them again.
    """
    taken: set[int] = set()
    separate = {}
    for name, tensor in state.items():
        memory = tensor.untyped_storage().data_ptr()
        tensor = tensor.detach()
        separate[name] = tensor.clone().contiguous() if memory in taken else tensor.contiguous()
        taken.add(memory)
    return separate


def _check_config(path: Path) -> None:
    """Raise InputError unless the model's configuration is there and can be read."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: missing; name a folder in Hugging Face format") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: damaged ({_line(error)}); get it again") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: is no mapping; get it again")


def _link(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where the file system has no such names."""
    source = source.resolve()  # the hub's cache holds links, which would break when it is emptied
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _describe(
    folder: Path, names: Iterable[str], known: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """SHA-256 and size in bytes of some files of a folder, by name."""
    return {
        name: {
            "sha256": known.get(name) or digest_file(folder / name),
            "size": (folder / name).stat().st_size,
        }
        for name in names
    }


def _line(error: BaseException) -> str:
    """An error as a part of one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
