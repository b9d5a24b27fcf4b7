"""Settings of the complexity of features: context span, and a grader."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from ontogeny.settings.base import AnalysisSection, Section


class Grader(Section):
    """A language model that grades the complexity of features."""

    url: str = Field(
        ...,
        pattern=r"^https?://[^@\s]+$",
        description="OpenAI-compatible address, without the final /chat/completions.",
    )
    model: str = Field(..., min_length=1, description="Name of the model there.")
    key_variable: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Environment variable that holds the key; null if no key is needed.",
    )
    features: int = Field(100, ge=1, description="Features to grade, sampled.")
    examples: int = Field(20, ge=1, description="Passages shown of a feature, at most.")
    parallel: int = Field(4, ge=1, description="Requests that are sent at the same time.")
    timeout: float = Field(120.0, gt=0, description="Seconds to wait for an answer.")


class Complexity(AnalysisSection):
    """Context span: how much context before it a feature needs."""

    key: ClassVar[str] = "complexity"

    contexts: int = Field(
        3,
        ge=1,
        description="Least number of held-out contexts of a feature for its span to be measured.",
    )
    keep: float = Field(
        0.9,
        gt=0,
        le=1,
        description="Share of the activation that a suffix of the context must keep.",
    )
    longest: int = Field(
        32, ge=1, description="Tokens of the longest suffix; spans beyond it are censored."
    )
    features: int = Field(
        4096,
        ge=1,
        description="Largest number of living features to measure; if there are more, a sample "
        "is drawn.",
    )
    grader: Grader | None = Field(
        None,
        description="A language model that also grades the complexity of features; null for "
        "none. It may cost money.",
    )
