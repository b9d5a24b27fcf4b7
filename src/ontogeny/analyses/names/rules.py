"""The rules that name features: what each one finds in a context, and how it words the name.

Each is a pure function of a context (text.py) and knows no language: a word is letters, digits and
underscores, a line ends at a line break, brackets are ( [ {. docs/atlas.md has a sentence on each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ontogeny.analyses.names.text import WORD, WORDS, Context, classes

SOON = 12  # a position is "soon after" words and signs in this many preceding tokens
FIRST, EARLY = 4, 16  # number of positions that are at the start of a window, and early in it
LONGEST = 32  # most letters of a label in a name
SPACES = re.compile(" {3,}")
STARTS = {"at first token": 1, "at start of window": FIRST, "early in window": EARLY}
POWERS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
JOINING = "/\\-_.@:+"  # signs that join words without a space
TELLING = re.compile(r"\w{3,}|[^\w\s↵]{2,}")  # words of 3 letters or more, 2 or more signs


@dataclass(frozen=True)
class Rule:
    """A property that contexts may share.

    Attributes
    ----------
    labels : function that returns a context's labels. form : the name, with {} for the labels.
    place : the preposition in "strongest on self". most : maximum number of labels in one name.
    loose : whether many contexts have it by chance, so that all strong ones have to have it.
    copies : whether it applies only to features that depend on earlier copies.
    caused : whether that dependence implies it, so that chance is not tested.
    """

    labels: Callable[[Context], Iterable[str]]
    form: str = "{}"
    place: str = ""
    most: int = 1
    loose: bool = False
    copies: bool = False
    caused: bool = False

    def name(self, labels: Iterable[str], strongest: bool) -> str:
        """The name for some labels; `strongest` if it holds only for large activations."""
        said = self.form.format(" or ".join(map(shortened, labels)))
        return " ".join(filter(None, ["strongest", self.place, said])) if strongest else said


def shown(text: str) -> str:
    """Text as shown in a name, without its leading space; ␣ is one space, ␣⁷ seven."""
    bare = text.removeprefix(" ")
    if bare and bare == bare.strip(" ") and "  " not in bare:
        return bare
    counted = SPACES.sub(lambda run: "␣" + str(len(run[0])).translate(POWERS), text)
    return counted.replace(" ", "␣")


def shortened(label: str) -> str:
    """A label of at most LONGEST letters: the end of a longer one."""
    return label if len(label) <= LONGEST else "…" + label[1 - LONGEST :]


def _run(first: int, last: int) -> Callable[[Context], Iterable[str]]:
    """The text of the tokens from `first` to `last`, counted from the position."""

    def labels(c: Context) -> Iterable[str]:
        tokens = [c.token(n) for n in range(first, last + 1)]
        return () if None in tokens else (shown("".join(t for t in tokens if t is not None)),)

    return labels


def _class(n: int) -> Callable[[Context], Iterable[str]]:
    """What the token at offset n from the position looks like."""
    return lambda c: classes(c.token(n), c.token(n - 1))


def _class_after(c: Context) -> Iterable[str]:
    """Signs, capitals and the like after a token; `previous` covers plain words."""
    before = c.token(-1)
    if before is None:
        return ()
    return {f"{own} after {shown(before)}" for own in _telling(c)}


def _class_after_class(c: Context) -> Iterable[str]:
    before = classes(c.token(-1), c.token(-2))
    return {f"{own} after {other}" for own in _telling(c) for other in before}


def _telling(c: Context) -> list[str]:
    return [own for own in classes(c.token(), c.token(-1)) if own not in WORDS]


def _word(c: Context) -> Iterable[str]:
    return (c.word,) if c.word else ()


def _word_before(c: Context) -> Iterable[str]:
    return c.earlier_words[-1:]


def _soon(c: Context) -> Iterable[str]:
    text = "".join(c.tokens[max(0, c.at - SOON) : c.at])
    if WORD.match(c.tokens[c.at]):  # the token may continue the last word
        text = re.sub(r"\w+$", "", text)
    return set(TELLING.findall(text if c.at <= SOON else re.sub(r"^\w+", "", text)))


def _run_with(c: Context) -> Iterable[str]:
    if c.tokens[c.at][:1].isspace():
        return ()
    return set(JOINING) & set(re.split(r"[\s↵]", c.before)[-1])


def _line(c: Context) -> Iterable[str]:
    first = re.match(r"\w+|[^\w\s]+", c.line.lstrip()) if c.line_is_whole else None
    return (first[0],) if first else ()


def _comment(c: Context) -> Iterable[str]:
    return ("in a comment",) if c.line.lstrip().startswith("#") else ()


def _quotes(c: Context) -> Iterable[str]:
    return ("inside quotes",) if c.quotation_marks % 2 else ()


def _brackets(c: Context) -> Iterable[str]:
    return ("inside brackets",) if c.open_brackets else ()


def _call(c: Context) -> Iterable[str]:
    if not c.open_brackets:
        return ()
    at = c.open_brackets[-1]
    word = re.search(r"\w+$", c.before[:at])
    return (word[0] + c.before[at],) if word else ()


def _indent(c: Context) -> Iterable[str]:
    depth = len(c.line) - len(c.line.lstrip(" "))
    return (str(depth),) if c.line_is_whole and 0 < depth < len(c.line) else ()


def _start(c: Context) -> Iterable[str]:
    """Nested ranges; what the contexts share decides which of them a name uses."""
    return [name for name, end in STARTS.items() if c.at < end]


def _repeat(c: Context) -> Iterable[str]:
    return () if c.followed is None else ("a repeated token",)


def _copy(c: Context) -> Iterable[str]:
    return () if c.followed is None else (shown(c.followed),)


RULES: dict[str, Rule] = {
    "three": Rule(_run(-2, 0), place="on"),
    "pair": Rule(_run(-1, 0), place="on"),
    "word": Rule(_word, place="on", most=3),
    "token": Rule(_run(0, 0), place="on", most=3),
    "previous": Rule(_run(-1, -1), "after {}", most=3),
    "previous_two": Rule(_run(-2, -1), "after {}"),
    "second": Rule(_run(-2, -2), "two after {}", most=2),
    "word_before": Rule(_word_before, "after the word {}", most=2),
    "soon": Rule(_soon, "soon after {}", loose=True),
    "run": Rule(_run_with, "in a run with {}", loose=True),
    "next": Rule(_run(1, 1), "before {}", most=3),
    "copy": Rule(_copy, "before {}, again", most=3, copies=True),
    "repeat": Rule(_repeat, place="on", copies=True, caused=True),
    "call": Rule(_call, "in {}…", loose=True),
    "line": Rule(_line, "line begins {}", place="where", most=2, loose=True),
    "comment": Rule(_comment, loose=True),
    "quotes": Rule(_quotes, loose=True),
    "brackets": Rule(_brackets, loose=True),
    "indent": Rule(_indent, "indented by {}", loose=True),
    "class": Rule(_class(0), place="on", most=2),
    "class_after": Rule(_class_after, place="on"),
    "class_after_class": Rule(_class_after_class, place="on"),
    "previous_class": Rule(_class(-1), "after {}"),
    "next_class": Rule(_class(1), "before {}"),
    "start": Rule(_start),
}


def labels_of(context: Context, copies: bool) -> set[tuple[str, str]]:
    """All labels of a context, as (rule, label).

    Parameters
    ----------
    copies : whether to look for earlier copies too, which is the slowest part.
    """
    return {
        (rule, label)
        for rule, about in RULES.items()
        if copies or not about.copies
        for label in about.labels(context)
        if label  # '' for a token that only continues a character
    }
