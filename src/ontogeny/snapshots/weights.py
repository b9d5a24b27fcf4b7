"""A model's weights as safetensors, from any folder in Hugging Face format.

Safetensors files are linked. Pickled files are loaded by torch's restricted unpickler, which runs
no code, and saved as safetensors; nothing else is ever unpickled. Tensors get the names that
transformers uses (naming.py), and adapters are merged into their base (adapters.py).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ontogeny.files import InputError, digest_file, one_line, whole, write_json
from ontogeny.snapshots import adapters, headers, kinds, naming, pickles

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
BIN = "pytorch_model.bin"
BIN_INDEX = "pytorch_model.bin.index.json"
ALONE = ("model.pt", "model.pth", "ckpt.pt")  # a state dict under another name, if alone
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
KNOWN = (SINGLE, INDEX, BIN, BIN_INDEX)


@dataclass(frozen=True)
class Found:
    """Where a checkpoint has the parts of a snapshot.

    config : its config.json. files : of its weights, each with the tensors that an index lists.
    index : the index of several files, if there is one. adapter : the folder of an adapter to merge
    into the weights, if there is one.
    """

    config: Path
    files: dict[Path, list[str]]
    index: Path | None = None
    adapter: Path | None = None

    @property
    def pickled(self) -> bool:
        """Whether the weights are pickled."""
        return any(path.suffix in PICKLED for path in self.files)


def choice(names: Collection[str]) -> str | None:
    """The name of a model's weights: one file, or the index of its shards.

    Safetensors are preferred to pickles; None if `names` include no weights.
    """
    known = next((name for name in KNOWN if name in names), None)
    alone = [name for name in names if name in ALONE or name.endswith(".ckpt")]
    return known or (alone[0] if len(alone) == 1 else None)


def lacking(names: Collection[str]) -> list[str]:
    """What a folder with these names lacks to be a snapshot: a configuration, weights."""
    config = [] if CONFIG in names else [CONFIG]
    return config if choice(names) else [*config, f"{SINGLE} or {BIN}"]


def instead(where: str, names: Collection[str]) -> str | None:
    """Weights of another kind in place of a model's, and the correction; None if there are none."""
    other = None if choice(names) else kinds.otherwise(where, names)
    return other and f"{where} holds {other}"


def present(folder: Path) -> list[str]:
    """Names of the files of a folder, ascending, without broken links."""
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def read_config(path: Path) -> dict[str, Any]:
    """A model's configuration; InputError if it is missing, damaged, or not a mapping."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: missing; name a folder in Hugging Face format") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: damaged ({one_line(error, 160)}); get it again") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: not a mapping; get it again")
    return config


def shards(index: Path) -> dict[str, list[str]]:
    """The files that an index lists, ascending, each with its tensors.

    Raises InputError if the index is damaged, or lists a file outside its folder.
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
            raise InputError(f"{index}: names {file!r}, which is not a {ending} file beside it")
    return tensors


def find(source: Path, config: Path | None = None, base: str | None = None) -> Found:
    """Find a checkpoint's configuration and weights.

    Parameters
    ----------
    source : a folder in Hugging Face format, or a file of weights alone.
    config : a config.json, or a folder that has one, for checkpoints without one.
    base : folder of the model that an adapter belongs to.

    Raises
    ------
    InputError : no configuration or weights, or a shard is missing.
    """
    alone = source.is_file()
    folder = source.parent if alone else source
    names = present(folder)
    if not alone and kinds.is_adapter(names) and choice(names) is None:
        return _with_adapter(folder, config, base)
    own = folder if config is None or (folder / CONFIG).is_file() else config
    chosen = source.name if alone else choice(names)
    if chosen is None:
        other = kinds.otherwise(str(source), within(source))
        lacks = f"{source}: no {SINGLE} or {BIN} in it; name a folder that has weights"
        raise InputError(f"{source} holds {other}" if other else lacks)
    if chosen not in (INDEX, BIN_INDEX):
        parts: dict[str, list[str]] = {chosen: []}
    else:
        parts = shards(folder / chosen)
    for name in parts:
        if name not in names:
            raise InputError(f"{folder / chosen}: names {name}, which is missing; fetch it again")
    index = folder / chosen if chosen in (INDEX, BIN_INDEX) else None
    files = {folder / name: tensors for name, tensors in parts.items()}
    return Found(own / CONFIG if own.is_dir() else own, files, index)


def _with_adapter(folder: Path, config: Path | None, base: str | None) -> Found:
    """The base model of an adapter, and the adapter."""
    adapters.weights_of(folder)
    place = adapters.base_of(folder, base)
    if place is None:
        raise InputError(f"{folder} holds {kinds.otherwise(str(folder), present(folder))}")
    if not place.is_dir():
        raise InputError(f"snapshots.local.base: {place} is not a folder; correct it")
    found = find(place, config)
    return Found(found.config, found.files, found.index, folder)


def within(source: Path) -> list[str]:
    """Names of the files in a folder, and of the files of its subfolders as FOLDER/FILE."""
    if not source.is_dir():
        return []
    return sorted(
        str(path.relative_to(source)) for deep in ("*", "*/*") for path in source.glob(deep)
    )


def check(found: Found) -> None:
    """Raise InputError if a weight file is damaged, or lacks what the index lists."""
    for path, named in found.files.items():
        if path.suffix in PICKLED:
            pickles.check(path)
        else:
            absent = set(named) - headers.names(path)
            if absent:
                raise InputError(f"{path}: lacks {min(absent)}, which {INDEX} names")


def publish(
    source: Path,
    output: Path,
    about: Mapping[str, Any],
    code: bool = False,
    known: Mapping[str, str] | None = None,
    config: Path | None = None,
    base: str | None = None,
) -> list[str]:
    """Make a snapshot's folder, which appears only when complete, with its three parts.

    Parameters
    ----------
    source, config, base : as for `find`.
    output : the folder to make.
    about : the origin, for source.json; SHA-256 and size in bytes of the `files` are added and,
        if they were rewritten and not linked, of what was `converted`.
    code : whether to bring the model's own Python files too.
    known : SHA-256 of files of `source` that have just been hashed, by name.

    Returns
    -------
    Names of the pickled weight files that were saved as safetensors.

    Raises
    ------
    InputError : as for `find`, or a file is damaged, or a pickle holds more than tensors.
    """
    known = known or {}
    found = find(source, config, base)
    architecture = read_config(found.config)
    check(found)
    home = next(iter(found.files)).parent
    copied = [path for path in home.glob("*.py") if code and path.is_file()]
    with whole(output) as draft:
        draft.mkdir()
        for path in (found.config, *copied):
            shutil.copyfile(path, draft / path.name)
        if found.pickled or found.adapter is not None:
            _convert(found, draft, architecture, code)
            linked = False
        else:
            linked = _bring(found, draft, architecture, code)
        files = _describe(draft, present(draft), known if linked else {})
        read = [path.name for path in found.files]
        origin = {} if linked else {"converted": _describe(home, read, known)}
        write_json(draft / "source.json", {**about, "files": files, **origin})
    return [] if not found.pickled else read


def copy(files: Iterable[Path], output: Path, about: Mapping[str, Any] | None = None) -> None:
    """Make a folder with copies of files, and with source.json if one is given."""
    with whole(output) as draft:
        draft.mkdir()
        for file in files:
            shutil.copyfile(file, draft / file.name)
        if about is not None:
            write_json(draft / "source.json", about)


def _bring(found: Found, output: Path, config: dict[str, Any], code: bool) -> bool:
    """Link safetensors, or copy them if tensors have to be renamed; returns whether linked."""
    every = [name for path in found.files for name in headers.names(path)]
    new = naming.unwrapped(every, config, _own(code, config))
    plain = all(old == name for old, name in new.items())
    for path in found.files:
        if plain:
            _link(path, output / path.name)
        else:
            headers.renamed(path, output / _named(path.name, len(found.files)), new)
    if found.index is not None and plain:
        shutil.copyfile(found.index, output / INDEX)
    elif found.index is not None:
        files = {new[name]: path.name for path in found.files for name in headers.names(path)}
        _write_index(output, files)
    return plain


def _own(code: bool, config: dict[str, Any]) -> bool:
    """Whether code from the repository builds the model."""
    return code and "auto_map" in config


def _named(name: str, files: int) -> str:
    """The name of a weight file in a snapshot."""
    return SINGLE if files == 1 else name


def _write_index(output: Path, files: Mapping[str, str]) -> None:
    size = sum(path.stat().st_size for path in output.glob("*.safetensors"))
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(files.items()))}
    (output / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _convert(found: Found, output: Path, config: dict[str, Any], code: bool) -> None:
    """Save weights as new safetensors files, with one file in memory at a time."""
    from safetensors.torch import load_file, save_file

    def read(path: Path) -> dict[str, Any]:
        return pickles.load(path) if path.suffix in PICKLED else load_file(path)

    named = [name for names in found.files.values() for name in names]
    adapter = None if found.adapter is None else adapters.Lora(found.adapter)
    files: dict[str, str] = {}
    for number, path in enumerate(found.files, 1):
        name = SINGLE
        if len(found.files) > 1:
            name = f"model-{number:05d}-of-{len(found.files):05d}.safetensors"
        state = read(path)
        new = naming.unwrapped(named or list(state), config, _own(code, config))
        state = {new.get(old, old): tensor for old, tensor in state.items()}
        if adapter is not None:
            state = {tensor: adapter.added_to(tensor, value) for tensor, value in state.items()}
        save_file(pickles.separate(state), output / name, metadata={"format": "pt"})
        headers.names(output / name)
        files |= dict.fromkeys(state, name)
    if adapter is not None:
        adapter.finish()
    if len(found.files) > 1:
        _write_index(output, files)


def linked(found: Found, folder: Path) -> bool:
    """Whether a checkpoint's weights would be linked into a folder, not copied; it tries one file.

    Links work only within a file system, not for files of another user if the system protects
    these, and not if tensors have to be renamed.
    """
    if found.pickled or found.adapter is not None:
        return False
    path = next(iter(found.files))
    try:
        every = [name for file in found.files for name in headers.names(file)]
        with tempfile.TemporaryDirectory(dir=folder, prefix=".link") as probe:
            os.link(path.resolve(), Path(probe) / path.name)
    except (OSError, InputError):
        return False
    return all(naming.inside(name) == name for name in every)


def _link(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it if the file system has no hard links."""
    source = source.resolve()  # symbolic links into the hub's cache break when it is emptied
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
