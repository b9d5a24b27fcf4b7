"""From a file to settings, or to one line for each fault."""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from ontogeny.settings.base import Section, SettingsError
from ontogeny.settings.experiment import Settings, whole
from ontogeny.settings.faults import faults
from ontogeny.settings.sections import Crosscoder, Sites


class _Loader(yaml.SafeLoader):
    """YAML without repeated keys; ordinary readers silently keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping's keys and values."""
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                raise SettingsError(
                    f"{key.value}: occurs twice in {key.start_mark.name}, in lines "
                    f"{lines[key.value]} and {line}; remove one"
                )
            lines[key.value] = line
        return super().construct_mapping(node, deep)


def read(path: str | Path) -> Any:
    """The contents of a YAML (or JSON) file.

    Raises
    ------
    SettingsError : it cannot be read, is not YAML, or has a key twice in a section.
    """
    try:
        with Path(path).open(encoding="utf-8") as file:
            return yaml.load(file, _Loader)
    except SettingsError:
        raise
    except FileNotFoundError:
        raise SettingsError(f"{path}: there is no such file; `ontogeny new` writes one") from None
    except (OSError, ValueError, yaml.YAMLError) as error:  # or a number with too many digits
        raise SettingsError(f"{path}: {' '.join(str(error).split())}") from None


def load(source: str | Path | dict[str, Any]) -> Settings:
    """Validate a configuration.

    Parameters
    ----------
    source : path of a YAML (or JSON) file, or the mapping itself.

    Raises
    ------
    SettingsError : one line per fault, with the key, the given value and the correction.
    """
    mapping: Any = source if isinstance(source, dict) else read(source)
    if not isinstance(mapping, dict):
        raise SettingsError(f"{source}: not a mapping of keys to values; see config.yaml")
    try:
        settings = whole().model_validate(mapping)
    except ValidationError as error:
        by_key: dict[str, Any] = {}
        for e in error.errors():  # a value that fits no member of a union counts as one fault
            known = by_key.setdefault(_key(e), dict(e))
            if known["msg"] != e["msg"]:
                known["msg"] += f" or {e['msg'].removeprefix('Input should be ')}"
        raise SettingsError("\n".join(map(_line, by_key.values()))) from None
    impossible = list(faults(settings))
    if impossible:
        raise SettingsError("\n".join(impossible))
    return settings


LABELS = re.compile(r"list\[int\]|literal\[.*\]|int|constrained-int")


def _key(error: Any) -> str:
    """The faulty key's dotted path, without the members of unions that pydantic adds to it."""
    return ".".join(str(p) for p in error["loc"] if not LABELS.fullmatch(str(p)))


def _line(error: Any) -> str:
    """One pydantic fault as one line: the key, what is wrong, and the correction."""
    if isinstance(error.get("ctx", {}).get("error"), SettingsError):
        return str(error["ctx"]["error"])
    key = _key(error)
    if error["type"] == "extra_forbidden":
        known = sorted(_keys_beside(key.split(".")))
        near = difflib.get_close_matches(key.rsplit(".", 1)[-1], known, 1)
        meant = f"did you mean {near[0]}? Otherwise " if near else ""
        return f"{key}: unknown key; {meant}remove it or use one of {known}"
    if error["type"] == "missing":
        return f"{key}: missing; add it (schemas/config.schema.json describes it)"
    given = json.dumps(error["input"], default=str)
    given = given if len(given) < 60 else given[:57] + "..."
    return f"{key}: {error['msg'][0].lower()}{error['msg'][1:]}, not {given}; change it"


def _keys_beside(parts: list[str]) -> list[str]:
    """Known keys of the section that contains the key with these path parts."""
    section: Any = whole()
    for part in parts[:-1]:
        if section is whole() and part == "crosscoders":
            section = dict
        elif section is dict:
            section = Crosscoder
        elif part in ("inputs", "outputs"):
            section = Sites
        else:
            kind = section.model_fields[part].annotation
            members = [m for m in get_args(kind) if isinstance(m, type) and issubclass(m, Section)]
            section = members[0] if members else kind
    return list(section.model_fields)


def schema() -> str:
    """The JSON schema of the configuration, as stored in schemas/config.schema.json."""
    return json.dumps(whole().model_json_schema(), indent=2) + "\n"
