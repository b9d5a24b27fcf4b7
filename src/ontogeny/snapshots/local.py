"""Snapshots that are folders in Hugging Face format, such as a Trainer's checkpoints."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from ontogeny.files import InputError
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
    InputError where two folders have the same step.
    """
    pattern = str(Path(local.folders).expanduser())
    by_step: dict[int, Path] = {}
    wanted = re.compile(_expression(pattern))
    for name in sorted(glob.glob(re.sub(r"\{step[^}]*\}", "[0-9]*", pattern), recursive=True)):
        match = wanted.fullmatch(name)
        if match is None or not Path(name).is_dir():
            continue
        step = int(match["step"])
        if step in by_step:
            raise InputError(
                f"snapshots.local.folders: {by_step[step]} and {name} are both step {step}; narrow "
                "the pattern"
            )
        by_step[step] = Path(name)
    return dict(sorted(by_step.items()))


def resolve_steps(local: Local) -> list[int]:
    """The steps of all folders, ascending: what `steps: all` means; raises where there are none."""
    steps = list(folders(local))
    if not steps:
        raise InputError(
            f"snapshots.local.folders: no folder fits {local.folders} (from {Path.cwd()}); correct "
            "it, or make the checkpoints first"
        )
    return steps


def faults(local: Local, steps: list[int] | Literal["all"]) -> list[str]:
    """What keeps these steps from being published, one line each with the mend."""
    try:
        every, by_step = resolve_steps(local), folders(local)
    except InputError as error:
        return [str(error)]
    chosen = every if steps == "all" else steps
    lines = []
    for step in chosen:
        try:
            folder = _of_step(local, by_step, step)
        except InputError as error:
            lines.append(str(error))
            continue
        lines += [
            f"snapshots.steps: {folder} has no {name}; remove step {step} or save it again"
            for name in weights.lacking(weights.present(folder))
        ]
    if not lines:
        try:
            tokenizer_sources(local, chosen)
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
    """The files of the tokenizer, of local.tokenizer or the last wanted folder, or InputError."""
    if local.tokenizer is None:
        folder, mend = (
            _of_step(local, folders(local), steps[-1]),
            "name the tokenizer's folder there",
        )
    else:
        folder, mend = Path(local.tokenizer).expanduser(), "name another folder"
        if not folder.is_dir():
            raise InputError(f"snapshots.local.tokenizer: {folder} is no folder; correct it")
    names = tokenizer_files(weights.present(folder), code=True)
    if not names:
        raise InputError(
            f"snapshots.local.tokenizer: {folder} has no tokenizer files ({TOKENIZER[0]}); {mend}"
        )
    return [folder / name for name in names]


def publish(local: Local, step: int, output: Path) -> None:
    """Make the snapshot folder of a step: config.json, safetensors and source.json.

    InputError where the step has no folder, or its folder no sound weights.
    """
    folder = _of_step(local, folders(local), step)
    weights.publish(folder, output, {"folder": str(folder), "step": step}, code=True)


def tokenizer(local: Local, steps: list[int], output: Path) -> None:
    """Make a folder of the tokenizer's files; raises as `tokenizer_sources`."""
    weights.copy(tokenizer_sources(local, steps), output)


def _of_step(local: Local, by_step: dict[int, Path], step: int) -> Path:
    if step not in by_step:
        raise InputError(f"snapshots.steps: {missing(local.folders, step, by_step)}")
    return by_step[step]


def missing(where: str, step: int, known: Iterable[int]) -> str:
    """What to say of a step that is not among those that are there."""
    near = ", ".join(map(str, nearest(step, list(known))))
    return f"{where} has no step {step}" + (f"; nearest: {near}" if near else "")


def _expression(pattern: str) -> str:
    """The regular expression of a glob pattern with {step}, whose digits are the group `step`."""
    parts = re.split(r"(\{step[^}]*\}|\*\*/?|\*|\?|\[[^]]+\])", pattern)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    expression, digits = "", r"(?<!\d)(?P<step>\d+)(?!\d)"
    for part in parts:
        if part.startswith("{step"):
            expression += digits
            digits = "(?P=step)"  # the same, should it stand there twice
        elif part in known:
            expression += known[part]
        elif part.startswith("[") and part.endswith("]"):
            expression += "[^" + part[2:] if part[1] == "!" else part
        else:
            expression += re.escape(part)
    return expression
