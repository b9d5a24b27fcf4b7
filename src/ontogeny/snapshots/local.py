"""Snapshots that are folders in Hugging Face format, such as a Trainer's checkpoints."""

from __future__ import annotations

import glob
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from ontogeny.files import InputError, whole, write_json
from ontogeny.settings import Local
from ontogeny.snapshots import weights
from ontogeny.snapshots.presets import nearest

# What transformers' tokenizers read, of all kinds; the first group is enough to make one.
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
    # names the kind of tokenizer where tokenizer_config.json does not
    weights.CONFIG,
)


def tokenizer_files(names: Iterable[str], code: bool = False) -> list[str]:
    """Those of the names that make a tokenizer, ascending; none where they do not suffice.

    `code` adds Python files, which a tokenizer of the model's own needs.
    """
    made_of = {name for name in names if name in TOKENIZER or name.endswith(".tiktoken")}
    if not made_of:
        return []
    also = {name for name in names if name in TOKENIZER_SETTINGS or (code and name.endswith(".py"))}
    return sorted(made_of | also)


def folders(local: Local) -> dict[int, Path]:
    """Every folder that fits the pattern, by its step, ascending.

    `{step}` stands for digits; `*`, `?`, `[...]` and `**` mean what they mean in a glob pattern.

    Raises
    ------
    InputError : two folders have the same step.
    """
    pattern = str(Path(local.folders).expanduser())
    found: dict[int, Path] = {}
    wanted = re.compile(_expression(pattern))
    for name in sorted(glob.glob(re.sub(r"\{step[^}]*\}", "[0-9]*", pattern), recursive=True)):
        match = wanted.fullmatch(name)
        if match is None or not Path(name).is_dir():
            continue
        step = int(match["step"])
        if step in found:
            raise InputError(
                f"snapshots.local.folders: {found[step]} and {name} are both step {step}; narrow "
                "the pattern"
            )
        found[step] = Path(name)
    return dict(sorted(found.items()))


def resolve_steps(local: Local) -> list[int]:
    """The steps of all folders, ascending: what `steps: all` means.

    Raises
    ------
    InputError : no folder fits the pattern, or two have the same step.
    """
    steps = list(folders(local))
    if not steps:
        raise InputError(_none(local))
    return steps


def faults(local: Local, steps: list[int] | Literal["all"]) -> list[str]:
    """What keeps these steps from being published, one line each with the mend."""
    try:
        found = folders(local)
    except InputError as error:
        return [str(error)]
    if not found:
        return [_none(local)]
    chosen = list(found) if steps == "all" else steps
    lines = []
    for step in chosen:
        if step not in found:
            lines.append(f"snapshots.steps: {missing(local.folders, step, found)}")
            continue
        names = weights.present(found[step])
        for lacks, what in (
            (weights.CONFIG not in names, weights.CONFIG),
            (weights.choice(names) is None, f"{weights.SINGLE} or {weights.BIN}"),
        ):
            if lacks:
                lines.append(
                    f"snapshots.steps: {found[step]} has no {what}; remove step {step} or save it "
                    "again"
                )
    if not lines:
        try:
            _tokenizer_folder(local, chosen, found)
        except InputError as error:
            lines.append(str(error))
    return lines


def sources(local: Local, step: int) -> list[Path]:
    """The files that a step's snapshot is made from; none where it has no folder."""
    folder = folders(local).get(step)
    if folder is None:
        return []
    kinds = (".safetensors", ".bin", ".json", ".py")
    named = [n for n in weights.present(folder) if n.startswith(("model", "pytorch_model"))]
    return [folder / n for n in [weights.CONFIG, *named] if n.endswith(kinds)]


def tokenizer_sources(local: Local, steps: list[int]) -> list[Path]:
    """The files that the tokenizer is made from.

    Raises
    ------
    InputError : there are none.
    """
    folder = _tokenizer_folder(local, steps, folders(local))
    return [folder / name for name in tokenizer_files(weights.present(folder), code=True)]


def publish(local: Local, step: int, output: Path) -> None:
    """Make the snapshot folder of a step: config.json, safetensors and source.json.

    Raises
    ------
    InputError : the step has no folder, or its folder no sound weights.
    """
    found = folders(local)
    if step not in found:
        raise InputError(f"snapshots.steps: {missing(local.folders, step, found)}")
    with whole(output) as draft:
        placed = weights.place(found[step], draft, code=True)
        write_json(draft / "source.json", {"folder": str(found[step]), "step": step, **placed})


def tokenizer(local: Local, steps: list[int], output: Path) -> None:
    """Copy the tokenizer's files, of local.tokenizer or the last wanted folder, into `output`.

    Raises
    ------
    InputError : there are none.
    """
    folder = _tokenizer_folder(local, steps, folders(local))
    with whole(output) as draft:
        draft.mkdir()
        for name in tokenizer_files(weights.present(folder), code=True):
            shutil.copyfile(folder / name, draft / name)


def missing(where: str, step: int, there: Iterable[int]) -> str:
    """What to say of a step that is not among those that are there."""
    near = ", ".join(map(str, nearest(step, list(there))))
    return f"{where} has no step {step}; nearest: {near}" if near else f"{where} has no step {step}"


def _tokenizer_folder(local: Local, steps: list[int], found: dict[int, Path]) -> Path:
    """The folder of the tokenizer; raises InputError where it holds none."""
    if local.tokenizer is not None:
        folder = Path(local.tokenizer).expanduser()
        if not folder.is_dir():
            raise InputError(f"snapshots.local.tokenizer: {folder} is no folder; correct it")
        mend = "name another folder"
    else:
        if steps[-1] not in found:
            raise InputError(f"snapshots.steps: {missing(local.folders, steps[-1], found)}")
        folder = found[steps[-1]]
        mend = "name the tokenizer's folder there"
    if not tokenizer_files(weights.present(folder)):
        raise InputError(
            f"snapshots.local.tokenizer: {folder} has no tokenizer files ({TOKENIZER[0]}); {mend}"
        )
    return folder


def _none(local: Local) -> str:
    return (
        f"snapshots.local.folders: no folder fits {local.folders} (from {Path.cwd()}); correct it, "
        "or make the checkpoints first"
    )


def _expression(pattern: str) -> str:
    """The regular expression of a glob pattern with {step}, whose digits are the group `step`."""
    parts = re.split(r"(\{step[^}]*\}|\*\*/?|\*|\?|\[[^]]+\])", pattern)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    expression, seen = "", False
    for part in parts:
        if part.startswith("{step"):
            # the same step, should it stand there twice
            expression += "(?P=step)" if seen else r"(?<!\d)(?P<step>\d+)(?!\d)"
            seen = True
        elif part in known:
            expression += known[part]
        elif part.startswith("[") and part.endswith("]"):
            expression += "[^" + part[2:] if part[1] == "!" else part
        else:
            expression += re.escape(part)
    return expression
