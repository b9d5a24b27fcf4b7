"""What every section of the configuration is, also those that analyses declare for themselves."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class SettingsError(ValueError):
    """A configuration that cannot run. The message has one line per fault."""


class Section(BaseModel):
    """A part of the configuration: immutable, strict about types, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class AnalysisSection(Section):
    """The section of an analysis; `Settings.section` finds it by its class.

    Attributes
    ----------
    key : where it stands in the configuration: the analysis's name.
    """

    key: ClassVar[str]
