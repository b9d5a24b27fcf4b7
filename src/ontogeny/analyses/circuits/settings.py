"""Settings of the tasks, and of what features do in them."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field

from ontogeny.settings.base import AnalysisSection, PathText

TaskName = Literal[
    "agreement_simple",
    "agreement_across_pp",
    "agreement_within_rc",
    "agreement_across_rc",
    "indirect_object",
    "induction",
    "copying",
    "copied_name",
    "recalled_argument",
    "self_attribute",
    "import_alias",
    "closing_bracket",
    "indentation",
]


FILES = "circuits.files"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def matching(pattern: str) -> list[Path]:
    """The files that a path or pattern names, sorted."""
    literal = Path(pattern)  # whatever signs of a pattern its name has
    return [literal] if literal.is_file() else sorted(map(Path, glob.glob(pattern, recursive=True)))


class Circuits(AnalysisSection):
    """Tasks, what the features of the primary crosscoder do in them, and how that is measured."""

    key: ClassVar[str] = "circuits"

    tasks: list[TaskName] = Field(
        list(get_args(TaskName)),
        description="Tasks to make and measure. Tasks that the tokenizer cannot express or that "
        "the last snapshot cannot do are left out.",
    )
    files: list[PathText] = Field(
        [],
        description="Tasks of your own: .jsonl files, or patterns, with one prompt (clean, "
        "corrupted, right, wrong) or one minimal pair (sentence_good, sentence_bad) per line; the "
        "file's name is the task's.",
    )
    least_accuracy: float = Field(
        0.8,
        ge=0,
        le=1,
        description="Share of a task's prompts that the last snapshot must get right for the "
        "task to be measured. A model that ignores the difference between the "
        "prompts gets 0.5; 0 keeps all tasks.",
    )
    pairs: int = Field(
        64,
        ge=16,
        description="Pairs of clean and corrupted prompts of a task; half as many if prompts "
        "are long.",
    )
    path_steps: int = Field(
        10, ge=1, description="Points on the path along which gradients are averaged."
    )
    curve_snapshots: int = Field(
        4,
        ge=1,
        description="Number of snapshots with curves of necessity and sufficiency, evenly spaced.",
    )
    curve_points: int = Field(
        8, ge=3, description="Largest number of points (numbers of features, k) on a curve."
    )
    draws: int = Field(
        4, ge=2, description="Number of random sets of features that the curves are compared with."
    )
    seed: int = Field(0, ge=0, description="Seed of the tasks, the random sets and the bootstrap.")

    @property
    def paths(self) -> dict[str, Path]:
        """The files of `files` by the names of their tasks; of a pattern without any, nothing."""
        return {path.stem: path for pattern in self.files for path in matching(pattern)}

    @property
    def every(self) -> list[str]:
        """The names of all tasks, those of files last."""
        return [*self.tasks, *self.paths]


def faults(settings: Any) -> Iterator[str]:
    """Lines for settings that name no task, or one twice."""
    section = settings.section(Circuits)
    if not (section.tasks or section.files):
        yield f"circuits.tasks: the list is empty; name some tasks, or files in {FILES}"
    known: dict[str, Path] = {}
    for path in [path for pattern in section.files for path in matching(pattern)]:
        if path.suffix != ".jsonl" or not NAME.fullmatch(path.stem):
            yield (
                f"{FILES}: {path}: the file's name is the task's; write it with letters, digits, _ "
                "and - alone, and end it in .jsonl"
            )
        elif path.stem in get_args(TaskName):
            yield f"{FILES}: {path}: {path.stem} is a task of circuits.tasks; rename the file"
        elif known.setdefault(path.stem, path) != path:
            yield f"{FILES}: {path} and {known[path.stem]} have one name; rename one of them"
