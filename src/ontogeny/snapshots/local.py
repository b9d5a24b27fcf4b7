"""Snapshots that are folders in Hugging Face format, such as a Trainer's checkpoints."""

from __future__ import annotations

import glob
import re
import time
from collections.abc import Collection, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from ontogeny.files import InputError
from ontogeny.settings import Local
from ontogeny.snapshots import adapters, kinds, weights
from ontogeny.snapshots.presets import nearest

YOUNG = 60.0  # a checkpoint older than this counts as finished
# All files that transformers' tokenizers read; one of the first group is enough to make one.
TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
TOKENIZER_SETTINGS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
    # It names the kind of tokenizer if tokenizer_config.json does not.
    weights.CONFIG,
)


def unreadable_tokenizer(where: str, names: Collection[str]) -> str | None:
    """Why a tokenizer with these files cannot be read here, and the correction; None if it can.

    The files of SentencePiece and tiktoken need their own libraries; a tokenizer.json needs none.
    """
    if {"tokenizer.json", "vocab.json", "vocab.txt"} & set(names):
        return None
    file = next(iter(tokenizer_files(names)), "")
    file = next((n for n in tokenizer_files(names) if n.endswith((".model", ".tiktoken"))), file)
    if file.endswith(".tiktoken"):
        kind, needed, packages = "tiktoken", ["tiktoken"], "tiktoken"
    else:
        kind, needed = "SentencePiece or tiktoken", ["sentencepiece", "google.protobuf"]
        packages = "sentencepiece protobuf tiktoken"
    if all(_installed(module) for module in needed):
        return None
    return (
        f"{where} has {file} ({kind}) but no tokenizer.json; make one in an environment with `pip "
        f'install transformers {packages}`: `python -c "from transformers import AutoTokenizer; '
        f"AutoTokenizer.from_pretrained('{where}').save_pretrained('tokenizer')\"`, and name its "
        "folder"
    )


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that contains it
        return False


def tokenizer_files(names: Iterable[str], code: bool = False) -> list[str]:
    """The names among these that make up a tokenizer, ascending; none if they do not suffice.

    `code` adds Python files, for tokenizers that the model's own code defines.
    """
    made_of = {name for name in names if name in TOKENIZER or name.endswith(".tiktoken")}
    if not made_of:
        return []
    also = {name for name in names if name in TOKENIZER_SETTINGS or (code and name.endswith(".py"))}
    return sorted(made_of | also)


def folders(local: Local) -> dict[int, Path]:
    """Every folder or weight file that matches the pattern, by its step, ascending.

    `{step}` stands for digits; `*`, `?`, `[...]` and `**` mean the same as in a glob pattern.
    Raises InputError if two folders have the same step. Listed folders have the steps 0, 1, …
    """
    if not isinstance(local.folders, str):
        listed = map(Path, local.folders)
        return {step: path for step, path in enumerate(listed) if path.exists()}
    pattern = str(Path(local.folders))
    by_step: dict[int, Path] = {}
    wanted = re.compile(_expression(pattern))
    for name in sorted(glob.glob(re.sub(r"\{step[^}]*\}", "[0-9]*", pattern), recursive=True)):
        match = wanted.fullmatch(name)
        path = Path(name)
        alone = path.is_file() and path.suffix in (".safetensors", *weights.PICKLED)
        if match is None or not (alone or path.is_dir()):
            continue
        step = int(match["step"])
        if step in by_step:
            raise InputError(
                f"snapshots.local.folders: {by_step[step]} and {name} are both step {step}; make "
                "the pattern more specific"
            )
        by_step[step] = Path(name)
    return dict(sorted(by_step.items()))


def all_steps(local: Local) -> list[int]:
    """The steps of all folders that exist or, if they are listed, of all in the list."""
    return list(folders(local) if isinstance(local.folders, str) else range(len(local.folders)))


def step_of(local: Local, folder: str) -> int | None:
    """The step in the name of a folder, whether or not it exists; None if there is none."""
    if not isinstance(local.folders, str):
        listed = [str(Path(name)) for name in local.folders]
        return listed.index(folder) if folder in listed else None
    pattern = str(Path(local.folders))
    match = re.fullmatch(_expression(pattern), folder)
    return int(match["step"]) if match else None


def resolve_steps(local: Local) -> list[int]:
    """The steps of all folders, ascending, for `steps: all`; raises if there are none."""
    steps = all_steps(local)
    if not steps:
        raise InputError(
            f"snapshots.local.folders: no folder matches {local.where} (from {Path.cwd()}); "
            "correct it, or make the checkpoints first"
        )
    return steps


def faults(
    local: Local, steps: list[int] | Literal["all"], kept: Collection[int] = ()
) -> list[str]:
    """What prevents these steps from being published, one line each with the correction.

    Parameters
    ----------
    kept : steps whose snapshots the experiment already has, whatever their source.
    """
    try:
        by_step = folders(local)
        every = sorted({*by_step, *kept}) or resolve_steps(local)
    except InputError as error:
        return [str(error)]
    chosen = every if steps == "all" else steps
    lines = []
    for step in chosen:
        if step in kept and step not in by_step:
            continue
        try:
            folder = _of_step(local, by_step, step)
        except InputError as error:
            lines.append(str(error))
        else:
            lines += _folder_faults(local, folder, step)
    if not lines and (local.tokenizer is not None or chosen[-1] in by_step):
        try:
            tokenizer_sources(local, chosen)
        except InputError as error:
            lines.append(str(error))
    return lines


def _folder_faults(local: Local, folder: Path, step: int) -> list[str]:
    """Reasons why a folder is not a snapshot, one per line."""
    names = [folder.name] if folder.is_file() else weights.present(folder)
    lacking = [n for n in weights.lacking(names) if n != weights.CONFIG or local.config is None]
    if folder.is_file():
        lacking = [n for n in lacking if n == weights.CONFIG]
        if not (folder.parent / weights.CONFIG).is_file() and lacking:
            return [
                f"snapshots.local.config: {folder} has only weights; name the model's config.json"
            ]
    elif lacking and weights.choice(names) is None:
        other = kinds.otherwise(str(folder), weights.within(folder))
        if not kinds.is_adapter(names) and other is not None:
            return [f"snapshots.steps: {folder} holds {other}"]
        lacking = [] if other is not None else lacking
    if lacking and not folder.is_file():
        return [
            f"snapshots.steps: {folder} has no {name}; remove step {step} or save it again"
            for name in lacking
        ]
    try:
        found = found_at(local, folder)
        if found.adapter is not None:
            adapters.settings(found.adapter)
    except InputError as error:
        return [str(error) if str(error).startswith("snapshots.") else f"snapshots.steps: {error}"]
    try:
        weights.read_config(found.config)
        weights.check(found)
    except InputError as error:
        age = max(time.time() - newest(folder), 0)
        still = f"; it was written {age:.0f} seconds ago: wait until the training has saved it"
        return [f"snapshots.steps: {error}{still if age < YOUNG else ''}"]
    return []


def advice(local: Local, steps: list[int]) -> list[str]:
    """Doubts about folders that can be published: a checkpoint may be unfinished."""
    by_step = folders(local)
    young = [step for step in steps if step in by_step]
    if not young or time.time() - newest(by_step[young[-1]]) >= YOUNG:
        return []
    age = max(time.time() - newest(by_step[young[-1]]), 0)
    return [
        f"snapshots.steps: {by_step[young[-1]]} was written {age:.0f} seconds ago; if a training "
        "is still saving it, wait until it is done"
    ]


def newest(folder: Path) -> float:
    """When the newest file of a checkpoint was written, in seconds since 1970."""
    files = [folder] if folder.is_file() else [p for p in folder.iterdir() if p.is_file()]
    return max((path.stat().st_mtime for path in files), default=0.0)


def found_at(local: Local, folder: Path) -> weights.Found:
    """Where a checkpoint has the parts of a snapshot; InputError as for weights.find."""
    config = None if local.config is None else Path(local.config)
    return weights.find(folder, config, local.base)


def sources(local: Local, step: int) -> list[Path]:
    """The files from which a step's snapshot is made; none if it has no folder or no weights."""
    folder = folders(local).get(step)
    if folder is None:
        return []
    try:
        found = found_at(local, folder)
    except InputError:
        return []
    paths = [found.config, *found.files]
    paths += [found.index] if found.index is not None else []
    if found.adapter is not None:
        paths += [found.adapter / kinds.ADAPTER, adapters.weights_of(found.adapter)]
    if folder.is_dir():
        paths += [folder / name for name in weights.present(folder) if name.endswith(".py")]
    return paths


def tokenizer_sources(local: Local, steps: list[int]) -> list[Path]:
    """The tokenizer's files, of local.tokenizer or the last wanted folder, or InputError."""
    if local.tokenizer is None:
        folder = _of_step(local, folders(local), steps[-1])
        folder, mend = (
            folder.parent if folder.is_file() else folder,
            "name the tokenizer's folder there",
        )
        if not tokenizer_files(weights.present(folder), code=True):
            config = found_at(local, _of_step(local, folders(local), steps[-1])).config
            folder = config.parent if tokenizer_files(weights.present(config.parent)) else folder
    else:
        folder, mend = Path(local.tokenizer), "name another folder"
        if not folder.is_dir():
            raise InputError(f"snapshots.local.tokenizer: {folder} is not a folder; correct it")
    names = tokenizer_files(weights.present(folder), code=True)
    if not names:
        raise InputError(
            f"snapshots.local.tokenizer: {folder} has no tokenizer files ({TOKENIZER[0]}); {mend}"
        )
    unread = unreadable_tokenizer(str(folder), names)
    if unread is not None:
        raise InputError(f"snapshots.local.tokenizer: {unread}")
    return [folder / name for name in names]


def publish(local: Local, step: int, output: Path) -> None:
    """Make the snapshot folder of a step: config.json, safetensors and source.json.

    Raises InputError if the step has no folder, or the folder no intact weights.
    """
    folder = _of_step(local, folders(local), step)
    read = [str(path) for path in sources(local, step)]
    about = {"folder": str(folder), "step": step, "read": read}
    config = None if local.config is None else Path(local.config)
    weights.publish(folder, output, about, code=True, config=config, base=local.base)


def tokenizer(local: Local, steps: list[int], output: Path) -> None:
    """Make a folder with the tokenizer's files; raises as `tokenizer_sources`."""
    weights.copy(tokenizer_sources(local, steps), output)


def _of_step(local: Local, by_step: dict[int, Path], step: int) -> Path:
    if step not in by_step:
        listed = [] if isinstance(local.folders, str) else local.folders
        if step < len(listed):
            raise InputError(f"snapshots.local.folders: {listed[step]}: no such folder; correct it")
        raise InputError(f"snapshots.steps: {missing(local.where, step, by_step)}")
    return by_step[step]


def missing(where: str, step: int, known: Iterable[int]) -> str:
    """A line about a step that is not among the known ones."""
    near = ", ".join(map(str, nearest(step, list(known))))
    return f"{where} has no step {step}" + (f"; nearest: {near}" if near else "")


def _expression(pattern: str) -> str:
    """The regular expression of a glob pattern with {step}; its digits are the group `step`."""
    parts = re.split(r"(\{step[^}]*\}|\*\*/?|\*|\?|\[[^]]+\])", pattern)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    expression, digits = "", r"(?<!\d)(?P<step>\d+)(?!\d)"
    for part in parts:
        if part.startswith("{step"):
            expression += digits
            digits = "(?P=step)"  # the same digits, if it occurs twice
        elif part in known:
            expression += known[part]
        elif part.startswith("[") and part.endswith("]"):
            expression += "[^" + part[2:] if part[1] == "!" else part
        else:
            expression += re.escape(part)
    return expression
