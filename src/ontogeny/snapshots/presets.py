"""What is known in advance of snapshots on the Hugging Face hub, read from presets.yaml.

With it an experiment can be checked and its cost estimated before anything is fetched. To add
a family of repositories, add an entry to presets.yaml.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).with_suffix(".yaml")
FAULTS = FILE.with_name("faults.yaml")


@dataclass(frozen=True)
class Preset:
    """How a family of repositories publishes its snapshots; presets.yaml explains the fields.

    steps : the published ones, ascending; None if they are known only from the list of branches.
    """

    name: str
    revision: str
    steps: list[int] | None
    tokenizer: str | None


def find(repository: str) -> Preset | None:
    """The preset of a repository such as EleutherAI/pythia-160m, or None if there is none."""
    for name, family in families().items():
        if any(fnmatchcase(repository, pattern) for pattern in family["repositories"]):
            steps = None if family["steps"] is None else _expand(family["steps"])
            return Preset(name, family["revision"], steps, family["tokenizer"])
    return None


def doubts(repository: str, steps: Sequence[int]) -> list[str]:
    """Problems of a repository's steps that are publicly reported, one sentence each."""
    lines = []
    for fault in yaml.safe_load(FAULTS.read_text(encoding="utf-8")):
        known = set(_expand(fault["steps"]))
        hit = [step for step in steps if step in known]
        concerned = any(fnmatchcase(repository, each) for each in fault["repositories"])
        if concerned and len(hit) >= (2 if fault.get("alike") else 1):
            named = ", ".join(map(str, hit[:6])) + (", …" if len(hit) > 6 else "")
            mend = "keep one of them" if fault.get("alike") else "leave it out"
            lines.append(
                f"snapshots.steps: {named} of {repository}: {fault['says']} ({fault['report']}); "
                f"{mend}"
            )
    return lines


def architecture(repository: str) -> dict[str, Any] | None:
    """Keyword arguments of `transformers.AutoConfig.for_model` for a repository's model, or None.

    `dtype` is the type of the stored weights. The caller may change the copy.
    """
    for family in families().values():
        if repository in family["models"]:
            return copy.deepcopy(family["models"][repository])
    return None


def nearest(step: int, steps: Sequence[int], count: int = 2) -> list[int]:
    """The `count` of `steps` that are nearest to `step`, ascending; ties prefer the earlier."""
    return sorted(sorted(steps, key=lambda known: (abs(known - step), known))[:count])


@cache
def families() -> dict[str, dict[str, Any]]:
    """The entries of presets.yaml by name, as written; do not change them."""
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))["families"]


def _expand(items: Iterable[int | dict[str, int]]) -> list[int]:
    """Steps written as numbers and {from, to, every} ranges, both ends included, ascending."""
    steps: list[int] = []
    for item in items:
        if isinstance(item, int):
            steps.append(item)
        else:
            steps.extend(range(item["from"], item["to"] + 1, item["every"]))
    return sorted(steps)
