"""Pairs of prompts as token ids, which the templates of every task are turned into."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

SHOWN = 120  # most letters of an example
# Words with the preceding space, signs, white space: the first split of byte-level tokenizers.
PIECE = re.compile(r" ?\w+| ?[^\s\w]+|\s+(?!\S)|\s+")


@dataclass(frozen=True)
class Pair:
    """Token ids of two prompts of equal length, and of the answers.

    The right answer to the clean prompt is wrong for the corrupted one.
    """

    clean: list[int]
    corrupted: list[int]
    right: int
    wrong: int


class Unfit(ValueError):
    """Why a task cannot be made with this tokenizer."""


class Text:
    """The functions of a tokenizer that the templates need."""

    def __init__(
        self, tokenizer: Tokenizer, end: int | None, context: int, known: int | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._start = [] if end is None else [end]
        self.context = context
        special = {i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
        special |= set(self._start)
        ids = set(tokenizer.get_vocab().values()) - special
        self.ordinary = np.array(sorted(i for i in ids if known is None or i < known))

    def ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def started(self, ids: list[int]) -> list[int]:
        return [*self._start, *ids]

    def show(self, ids: list[int]) -> str:
        """Tokens as one line of text, from which only the end is shown if it is long."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        line = json.dumps(text, ensure_ascii=False)[1:-1]
        return line if len(line) <= SHOWN else f"… {line[-SHOWN:]}"

    def answer(self, prompt: str, following: str) -> int | None:
        """The single token by which some text continues a prompt, or None."""
        before, after = self.ids(prompt), self.ids(prompt + following)
        fine = len(after) == len(before) + 1 and after[:-1] == before
        return after[-1] if fine else None

    def pair(self, texts: tuple[str, str], answers: tuple[str, str]) -> Pair | None:
        """A pair of texts that differ in one piece, or None if its tokens are not suitable.

        Both have equally many tokens and differ only in adjacent ones. Each answer, which is the
        text that follows, is one token after either text.
        """
        clean, corrupted = (self.ids(text) for text in texts)
        if len(clean) != len(corrupted) or len(clean) + len(self._start) > self.context:
            return None
        differing = np.flatnonzero(np.array(clean) != np.array(corrupted))
        # Only one piece may differ: the text after it must be tokenized equally.
        same_after = len(self.ids(common_end(*texts)))
        if not len(differing) or differing[0] == 0 or differing[-1] >= len(clean) - same_after:
            return None
        tokens = [{self.answer(text, following) for text in texts} for following in answers]
        right, wrong = (each.pop() if len(each) == 1 else None for each in tokens)
        if right is None or wrong is None or right == wrong:
            return None
        return Pair(self.started(clean), self.started(corrupted), right, wrong)


def common_end(first: str, second: str) -> str:
    """The identical pieces (`PIECE`) at the end of two texts."""
    one, two = PIECE.findall(first), PIECE.findall(second)
    same = 0
    while same < min(len(one), len(two)) and one[-1 - same] == two[-1 - same]:
        same += 1
    return "".join(one[len(one) - same :])


Draws = tuple[Iterator[Pair | None], str]
"""Endless pairs, or None for an unsuitable one, and the words that they are drawn from."""
