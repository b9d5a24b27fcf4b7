"""Names by rule: what a feature's strongest contexts share (docs/method.md 6).

Of a context the position t at which the feature is active counts, with what stands before it. Rules
in order; the first that holds in at least `names.agreement` of the contexts names the feature:

    pair        x_{t−1} x_t          the same two tokens
    token       x_t                  the same token
    previous    after x_{t−1}        the same token before
    second      two after x_{t−2}    the same token two before
    start       start of window      t is among the first three positions of the text window

These name no feature that is active far more often than what they name can stand: on more than
DENSE of the positions, or twice as many as a window begins with. And, since half of all positions
may lie in brackets, where *all* contexts agree:

    comment     in a comment         after a # in its line
    quotes      inside quotes        after an odd number of quotation marks in its line
    brackets    inside brackets      after a bracket in the window that is not closed

Of the kind induction the name says that the token comes again; where no rule holds, that a name
does (rule `kind`). No language model judges, and a name
says what the strongest contexts look like, not what the feature does in its weak ones.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ontogeny.analyses.names.settings import Names
from ontogeny.files import write_table
from ontogeny.settings import Settings

FIRST = 3  # positions of a block that are its start
DENSE = 0.05  # share of positions; of a pair of tokens or a token hardly any has as many
OPENING, CLOSING = "([{", ")]}"
# A ' between letters is an apostrophe, unless a prefix of strings stands before it, as in f'x'.
MARK = r"""(?i)"|'(?![a-z])|(?<![a-z])'|(?<=\b[rbfu])'(?=[a-z])(?!(?:m|d|s|t|ll|re|ve)\b)"""


@dataclass(frozen=True)
class Context:
    """The tokens up to a position, its own last, and its offset in the block.

    Tokens are as they are shown: ↵ is a line break (corpus/pieces.visible).
    """

    tokens: tuple[str, ...]
    offset: int

    def back(self, n: int) -> str | None:
        """The token n before the position; None where the block begins later."""
        return self.tokens[-1 - n] if len(self.tokens) > n else None

    @property
    def line(self) -> str:
        """The text of the position's line, as far as the window shows it, up to the position."""
        return "".join(self.tokens[:-1]).rpartition("↵")[2]

    @property
    def quotation_marks(self) -> int:
        """How many stand in that line; an apostrophe, as in it's, is none."""
        return len(re.findall(MARK, self.line))


def quoted(text: str) -> str:
    """A token as it stands in a name: without the space before it, and with a sign for others."""
    bare = text.removeprefix(" ")
    return bare if bare.strip(" ") and "  " not in bare else text.replace(" ", "␣")


def _pair(c: Context) -> str | None:
    before = c.back(1)
    return None if before is None else quoted(before + c.tokens[-1])


def _token(c: Context) -> str | None:
    return quoted(c.tokens[-1])


def _previous(c: Context) -> str | None:
    before = c.back(1)
    return None if before is None else f"after {quoted(before)}"


def _second(c: Context) -> str | None:
    before = c.back(2)
    return None if before is None else f"two after {quoted(before)}"


def _start(c: Context) -> str | None:
    return "start of window" if c.offset < FIRST else None


def _comment(c: Context) -> str | None:
    return "in a comment" if c.line.lstrip().startswith("#") else None


def _quotes(c: Context) -> str | None:
    return "inside quotes" if c.quotation_marks % 2 else None


def _brackets(c: Context) -> str | None:
    depth = 0
    for letter in "".join(c.tokens[:-1]):
        if letter in OPENING:
            depth += 1
        elif letter in CLOSING:
            depth = max(0, depth - 1)
    return "inside brackets" if depth else None


Rule = Callable[[Context], str | None]
RULES: dict[str, Rule] = {
    "pair": _pair,
    "token": _token,
    "previous": _previous,
    "second": _second,
    "start": _start,
}
OFTEN = 2  # times as many positions as a block's start has, above which it names no feature
OF_ALL: dict[str, Rule] = {"comment": _comment, "quotes": _quotes, "brackets": _brackets}
"""Rules that hold by chance in many contexts, and so have to hold in all."""


def name(
    contexts: Sequence[Context],
    least: int,
    agreement: float,
    again: bool = False,
    without: Collection[str] = (),
) -> tuple[str, str, float]:
    """The name of a feature, the rule that gave it, and the share of contexts that agree.

    Parameters
    ----------
    contexts : of its largest activations. least : fewer of them name nothing.
    again : whether the feature is one of induction. without : rules that may not name it.

    Returns
    -------
    ('', '', 0.0) where no rule holds.
    """
    if len(contexts) < least:
        return "", "", 0.0
    for rules, needed in ((RULES, agreement), (OF_ALL, 1.0)):
        for rule, of in rules.items():
            found = Counter(label for label in map(of, contexts) if label is not None)
            if rule in without or not found:
                continue
            label, count = found.most_common(1)[0]
            if count >= needed * len(contexts):
                return f"{label}, again" if again else label, rule, count / len(contexts)
    return ("a name, again", "kind", 0.0) if again else ("", "", 0.0)


def too_frequent_for(density: float, context: int) -> set[str]:
    """Rules whose names cannot stand at as many positions as a feature is active on.

    Parameters
    ----------
    density : share of the positions. context : positions of a block.
    """
    start = {"start"} if density > OFTEN * FIRST / context else set()
    return start | (set(RULES) if density > DENSE else set())


def measure(
    settings: Settings, contexts: Path, features: Path, kinds: Path | None, named: Path
) -> None:
    """Name every living feature that its contexts name.

    Parameters
    ----------
    contexts : Parquet of the analysis `contexts`, one row per feature and context. features :
        Parquet; feature, density. kinds : Parquet; feature, kind; None where kinds are not told.
    named : Parquet to write; feature, name ('' where no rule holds), rule, agreement.
    """
    section = settings.section(Names)
    table = pd.read_parquet(contexts)
    kind: dict[int, str] = {}
    if kinds is not None:
        known = pd.read_parquet(kinds)
        kind = dict(zip(known["feature"], known["kind"], strict=True))
    density = pd.read_parquet(features).set_index("feature")["density"]
    rows = []
    for _, own in table.sort_values(["feature", "rank"]).groupby("feature"):
        read = [
            Context(tuple(tokens[: position + 1]), int(offset))
            for tokens, position, offset in zip(
                own["tokens"], own["position"], own["offset"], strict=True
            )
        ]
        number = int(own["feature"].iloc[0])
        without = too_frequent_for(float(density[number]), settings.corpus.context)
        again = kind.get(number) == "induction"
        found = name(read, section.contexts, section.agreement, again, without)
        rows.append((number, *found))
    write_table(named, pd.DataFrame(rows, columns=["feature", "name", "rule", "agreement"]))
