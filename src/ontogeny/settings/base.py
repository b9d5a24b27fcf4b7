"""The base of every section of the configuration, including those that analyses declare."""

from __future__ import annotations

import os
import re
from decimal import Decimal
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo, field_validator

NUMBER = re.compile(r"[+-]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][+-]?\d+)?")
LARGEST = 2**63  # largest integer that is written with an exponent


class SettingsError(ValueError):
    """A configuration that cannot run. The message has one line per fault."""


def expanded(path: str) -> str:
    """A path with ~ and $VARIABLES of the environment replaced; unset variables stay."""
    return os.path.expanduser(os.path.expandvars(path))


PathText = Annotated[str, AfterValidator(expanded)]
"""A path or pattern of paths, expanded when the configuration is read."""


def as_number(value: Any, kind: Any) -> Any:
    """Convert a value to the number type of its key, if it is a number in some usual notation.

    YAML 1.1, which PyYAML and Snakemake read, takes 3e-3, 1e6 and 1.0e6 for text. Values that are
    not numbers, and keys that may be text, are not changed.

    Parameters
    ----------
    kind : the key's type.
    """
    origin, members = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return as_number(value, members[0])
    if origin is list and isinstance(value, list):
        return [as_number(each, members[0]) for each in value]
    kinds = members if origin in (Union, UnionType) else (kind,)
    kinds = tuple(get_args(k)[0] if get_origin(k) is Annotated else k for k in kinds)
    if isinstance(value, list):
        lists = [each for each in kinds if get_origin(each) is list]
        return as_number(value, lists[0]) if lists and len(kinds) > 1 else value
    if str in kinds or not {int, float} & set(kinds):
        return value
    if any(value in get_args(each) for each in kinds if get_origin(each) is Literal):
        return value
    return _number(value, whole=float not in kinds)


def _number(value: Any, whole: bool) -> Any:
    """Text that is a number, or a float that is whole, as the required type; otherwise the value
    itself."""
    if isinstance(value, str) and NUMBER.fullmatch(value.strip()):
        exact = Decimal(value.strip().replace("_", ""))
        if not whole:
            return float(exact)
        if exact.copy_abs() < LARGEST and exact == exact.to_integral_value():
            return int(exact)
    if whole and isinstance(value, float) and value.is_integer() and abs(value) < LARGEST:
        return int(value)
    return value


class Section(BaseModel):
    """A part of the configuration: immutable, strict about types, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _as_people_write_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        return as_number(value, cls.model_fields[str(info.field_name)].annotation)


def at_most(section: type[Section], given: Any, key: str, other: str) -> Any:
    """Fill in `key` as `other` if `key` is not given and its default exceeds the given `other`.

    So a default that the user never wrote does not conflict with what the user did write.
    """
    if not isinstance(given, dict) or key in given or given.get(other) is None:
        return given
    limit = as_number(given[other], section.model_fields[other].annotation)
    default = section.model_fields[key].default
    fits = isinstance(limit, int | float) and not isinstance(limit, bool) and 0 < limit < default
    return given | {key: limit} if fits else given


class AnalysisSection(Section):
    """The section of an analysis; `Settings.section` finds it by its class.

    Attributes
    ----------
    key : its key in the configuration, which is the analysis's name.
    """

    key: ClassVar[str]
