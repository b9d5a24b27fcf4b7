"""A model's weights as safetensors, from any folder in Hugging Face format.

What is safetensors already is linked; `pytorch_model.bin` is loaded by torch's
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

from ontogeny.files import InputError, digest_file, one_line, whole, write_json

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


def lacking(names: Collection[str]) -> list[str]:
    """What a folder of these names lacks to be a snapshot: a configuration, weights."""
    config = [] if CONFIG in names else [CONFIG]
    return config if choice(names) else [*config, f"{SINGLE} or {BIN}"]


def present(folder: Path) -> list[str]:
    """Names of the files of a folder, ascending; links that lead nowhere are left out."""
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def read_config(path: Path) -> dict[str, Any]:
    """A model's configuration; InputError where it is missing, damaged, or no mapping."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: missing; name a folder in Hugging Face format") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: damaged ({one_line(error, 160)}); get it again") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: is no mapping; get it again")
    return config


def shards(index: Path) -> dict[str, list[str]]:
    """The files that an index names, ascending, each with its tensors.

    InputError where the index is damaged, or names a file outside its folder.
    """
    tensors: dict[str, list[str]] = {}
    try:
        for tensor, file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items():
            tensors.setdefault(file, []).append(tensor)
        tensors = dict(sorted(tensors.items()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{index}: damaged index ({one_line(error, 160)}); fetch it again"
        ) from None
    if not tensors:
        raise InputError(f"{index}: names no files; fetch it again")
    ending = ".safetensors" if index.name == INDEX else ".bin"
    for file in tensors:
        if not re.fullmatch(rf"\w[\w.-]*{re.escape(ending)}", file):
            raise InputError(f"{index}: names {file!r}, which is no {ending} file beside it")
    return tensors


def check(path: Path) -> set[str]:
    """Names of the tensors of a safetensors file; InputError unless header and size agree."""
    from safetensors import SafetensorError, safe_open

    try:
        # numpy's reader suffices for names, and loads no torch
        with safe_open(path, framework="np") as file:
            return set(file.keys())
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path}: damaged safetensors ({one_line(error, 160)}); delete it and get it again"
        ) from None


def publish(
    source: Path,
    output: Path,
    about: Mapping[str, Any],
    code: bool = False,
    known: Mapping[str, str] | None = None,
) -> list[str]:
    """Make a snapshot's folder, whole or not at all: config.json, weights and source.json.

    Parameters
    ----------
    source : a folder in Hugging Face format: a Trainer's checkpoint, or a commit in a cache.
    output : the folder to make.
    about : the origin, for source.json; to which come SHA-256 and size in bytes of the `files`
        and, where pickled weights were saved as safetensors, of what was `converted`.
    code : bring the model's own Python files too.
    known : SHA-256 of files of `source` that have been hashed just now, by name.

    Returns
    -------
    Names of the files of pickled weights that were saved as safetensors.

    Raises
    ------
    InputError : no configuration or weights, a shard is missing, a file is damaged, or a pickle
        holds more than tensors.
    """
    known = known or {}
    names = present(source)
    read_config(source / CONFIG)
    chosen = choice(names)
    if chosen is None:
        raise InputError(f"{source}: no {SINGLE} or {BIN} in it; name a folder that has weights")
    parts = shards(source / chosen) if chosen in (INDEX, BIN_INDEX) else {chosen: []}
    for name in parts:
        if name not in names:
            raise InputError(f"{source / chosen}: names {name}, which is missing; fetch it again")
    pickled = list(parts) if chosen in (BIN, BIN_INDEX) else []
    copied = [CONFIG, *(name for name in names if code and name.endswith(".py"))]
    with whole(output) as draft:
        draft.mkdir()
        for name in [*copied, INDEX] if chosen == INDEX else copied:
            shutil.copyfile(source / name, draft / name)
        if pickled:
            _convert(source, draft, pickled)
        else:
            for name, tensors in parts.items():
                absent = set(tensors) - check(source / name)
                if absent:
                    raise InputError(f"{source / name}: lacks {min(absent)}, which {INDEX} names")
                _link(source / name, draft / name)
        files = _describe(draft, present(draft), {} if pickled else known)
        origin = {"converted": _describe(source, pickled, known)} if pickled else {}
        write_json(draft / "source.json", {**about, "files": files, **origin})
    return pickled


def copy(files: Iterable[Path], output: Path, about: Mapping[str, Any] | None = None) -> None:
    """Make a folder of copies of files, and of source.json where it is told about them."""
    with whole(output) as draft:
        draft.mkdir()
        for file in files:
            shutil.copyfile(file, draft / file.name)
        if about is not None:
            write_json(draft / "source.json", about)


def _convert(source: Path, output: Path, parts: list[str]) -> None:
    """Save pickled weights as safetensors, one shard in memory at a time."""
    from safetensors.torch import save_file

    files: dict[str, str] = {}
    size = 0
    for number, part in enumerate(parts, 1):
        name = SINGLE
        if len(parts) > 1:
            name = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        tensors = _separate(_load(source / part))
        save_file(tensors, output / name, metadata={"format": "pt"})
        check(output / name)
        files |= dict.fromkeys(tensors, name)
        size += sum(tensor.nbytes for tensor in tensors.values())
    if len(parts) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": files}
        (output / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _load(path: Path) -> dict[str, Any]:
    """The tensors of a pickled state, by name, or InputError; no code in it is run."""
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
    """SHA-256 and size in bytes of files of a folder, by name."""
    return {
        name: {
            "sha256": known.get(name) or digest_file(folder / name),
            "size": (folder / name).stat().st_size,
        }
        for name in names
    }
