"""Griffe extension: the house's docstrings, read as NumPy's.

A parameter and what it is share a line here, `name : what it is`; NumPy's style has the description
on a line of its own, below the name.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ENTRY = re.compile(r"^(\S.*?) : (.+)$")


class HouseStyle(griffe.Extension):
    """Rewrites docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object that has one."""
        if obj.docstring is not None:
            obj.docstring.value = as_numpys(obj.docstring.value)


def as_numpys(text: str) -> str:
    """A docstring with descriptions of parameters and errors below their names."""
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        if line.startswith("---"):
            inside = lines[-1] in ("Parameters", "Raises", "Attributes")
        entry = ENTRY.match(line) if inside else None
        lines += [entry[1], f"    {entry[2]}"] if entry else [line]
    return "\n".join(lines)
