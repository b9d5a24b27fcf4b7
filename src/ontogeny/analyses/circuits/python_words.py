"""The names and templates for tasks on Python source: plain data.

Each task has templates and choices (what is inserted at {x}, and how the prompt then continues).
{a}, {b} and {c} are other names, which are the same in both prompts. For a given tokenizer, only
choices whose answer is one token are used.
"""

from __future__ import annotations

NAMES = """
args array attr axis base batch bias body buffer cache char code column config count data dataset
default depth device dict dim document dtype edge element encoding engine entry error expr field
file filename filter format func function graph group height image index info input item key kwargs
label layer length level limit line list loss mask matrix message method mode model module name
node number offset option order output params parent path pattern point prefix query rank request
response result root rows sample scale schema score session shape size source start state status
style suffix symbol table tag target task tensor text timeout title token tree type url user value
values vector version weight width word
""".split()

Choices = list[tuple[str, str]]


def _indented(spaces: int) -> str:
    """A line break and the next indentation, without the space that belongs to the first word."""
    return "\n" + " " * (spaces - 1)


_AGAIN: Choices = [(name, name) for name in NAMES]
_SPACED: Choices = [(name, f" {name}") for name in NAMES]
_DEEPER: Choices = [(_indented(n), _indented(n + 4)) for n in (4, 8)]

TASKS: dict[str, tuple[list[str], Choices]] = {
    "copied_name": (
        [
            "    {a}_{x} = {b}(self)\n    return {a}_",
            "        {a}_{x} = self.{b}\n        if {a}_",
            "    {a}_{x} = {b}.{c}()\n    for {b} in {a}_",
        ],
        _AGAIN,
    ),
    "recalled_argument": (
        [
            "    def {a}(self, {x}):\n        if",
            "    def {a}(self, {x}=None):\n        if",
        ],
        _SPACED,
    ),
    "self_attribute": (
        [
            "        self.{x} = {a}({b})\n        return self.",
            "        self.{x} = {a}\n        if self.",
            "        if self.{x} in {a}:\n            self.",
        ],
        _AGAIN,
    ),
    "import_alias": (
        [
            "from .{a} import {x} as",
            "from {a}.{b} import {x} as",
        ],
        _SPACED,
    ),
    "closing_bracket": (
        [
            "    {a} = {b}{x}{c}",
            "    return {a}({b}{x}{c}",
            "    {a} = {b}({a}{x}self.{c}",
        ],
        [("(", ")"), ("[", "]")],
    ),
    "indentation": (
        [
            "{a}):{x} if {b} is None:",
            "{a}, {b}):{x} if {c}:",
            "{a} = self.{b}{x} if {c}:",
        ],
        _DEEPER,
    ),
}
