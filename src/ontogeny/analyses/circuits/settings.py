"""Settings of the tasks, and of what features do in them."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

from pydantic import Field

from ontogeny.settings.base import AnalysisSection

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


class Circuits(AnalysisSection):
    """Tasks, what the features of the primary crosscoder do in them, and how that is measured."""

    key: ClassVar[str] = "circuits"

    tasks: list[TaskName] = Field(
        list(get_args(TaskName)),
        min_length=1,
        description="Tasks to make and measure. Tasks that the tokenizer cannot express or that "
        "the last snapshot cannot do are left out.",
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
