"""A position of the text as the naming rules see it: its token, and the text around it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

LOOK = 64  # tokens before the position that the rules read
WORD = re.compile(r"\w+")
OPENING, CLOSING = "([{", ")]}"
LINE = "↵"  # how a line break is shown (corpus/pieces.visible)
POINTS = ".,:;!?"
QUOTES = "'\"`“”‘’«»"
WORDS = ("word start", "word piece")  # classes of a word's first token, and of a later one
# A ' between letters is an apostrophe, unless a string prefix precedes it, as in f'x'.
MARK = r"""(?i)"|'(?![a-z])|(?<![a-z])'|(?<=\b[rbfu])'(?=[a-z])(?!(?:m|d|s|t|ll|re|ve)\b)"""


@dataclass(frozen=True)
class Context:
    """A position of a block.

    Attributes
    ----------
    tokens : of the block, as they are shown. at : index of the position among them, from 0.
    """

    tokens: Sequence[str]
    at: int

    def token(self, n: int = 0) -> str | None:
        """The token n after the position (before it, if n is negative); None beyond the block."""
        i = self.at + n
        return self.tokens[i] if 0 <= i < len(self.tokens) else None

    @cached_property
    def before(self) -> str:
        """The text before the position, at most LOOK tokens of it."""
        return "".join(self.tokens[max(0, self.at - LOOK) : self.at])

    @cached_property
    def line(self) -> str:
        """The position's line up to the position, as far as `before` contains it."""
        return self.before.rpartition(LINE)[2]

    @property
    def line_is_whole(self) -> bool:
        """Whether `before` contains the beginning of the line."""
        return LINE in self.before

    @property
    def quotation_marks(self) -> int:
        """Number of quotation marks in that line, not counting apostrophes as in it's."""
        return len(re.findall(MARK, self.line))

    @cached_property
    def open_brackets(self) -> list[int]:
        """Indices in `before` of brackets that are open at the position, the innermost last."""
        opened: list[int] = []
        for i, letter in enumerate(self.before):
            if letter in OPENING:
                opened.append(i)
            elif letter in CLOSING and opened:
                opened.pop()
        return opened

    @property
    def word(self) -> str:
        """The word that the position's token belongs to, up to the end of the token; '' if none."""
        last = re.search(r"\w+$", self.before[-LOOK:] + self.tokens[self.at])
        return last[0] if last else ""

    @property
    def earlier_words(self) -> list[str]:
        """The words before the position's own word, excluding one that `before` cuts off."""
        words = WORD.findall(self.before + self.tokens[self.at])
        first = 1 if self.at > LOOK and WORD.match(self.before) else 0
        return words[first:-1] if self.word else words[first:]

    @property
    def followed(self) -> str | None:
        """The token after the last earlier copy of the token at the position, if there is one.

        Copies with the same preceding token take precedence.
        """
        own, before = self.tokens[self.at], self.token(-1)
        copies = [j for j in range(self.at) if self.tokens[j] == own]
        if not copies:
            return None
        same = [j for j in copies if j and self.tokens[j - 1] == before]
        return self.tokens[(same or copies)[-1] + 1]


def classes(text: str | None, before: str | None) -> list[str]:
    """What a token looks like, given the previous one; the most specific class first."""
    if text is None:
        return []
    bare = text.strip(" ")
    if LINE in text:
        return ["line break"]
    if not bare:
        return ["spaces"]
    if bare.isdigit():
        return ["digits"]
    if not any(map(str.isalnum, bare)):
        return [_sign(bare)]
    inside = text[0].isalpha() and before is not None and before[-1:].isalpha()
    return [*(["capital"] if bare[0].isupper() else []), WORDS[inside]]


def _sign(bare: str) -> str:
    """The class of a token that has only signs, by its first sign."""
    for signs, name in (
        (OPENING, "opening bracket"),
        (CLOSING, "closing bracket"),
        (QUOTES, "quote"),
        (POINTS, "punctuation"),
    ):
        if bare[0] in signs:
            return name
    return "symbol"
