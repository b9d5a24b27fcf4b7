"""Tasks: pairs of a clean and a corrupted prompt that ask for different answers (docs/method.md 7).

    agreement_simple     The teacher|teachers                            is / are
    agreement_across_pp  The teacher|teachers near the boys              is / are
    agreement_within_rc  The boy that the teacher|teachers               is / are
    agreement_across_rc  The teacher|teachers that the boys liked        is / are
    indirect_object      When Mary and Tom went to the park, Tom|Mary gave a book to    Mary / Tom
    induction            … a b … c d … a    |   … c b … a d … a          b / d
    copying              … a b … c d … a    |   … a d … c b … a          b / d
    copied_name          top_k|n = get(self)⏎ return top_                k / n
    recalled_argument    def get(self, path|name):⏎ if                   path / name
    self_attribute       self.path|name = get(key)⏎ return self.         path / name
    import_alias         from .base import path|name as                  path / name
    closing_bracket      return get((|[path                              ) / ]
    indentation          ⏎ four|eight spaces, if path:                   eight / twelve spaces

The clean prompt is left of the bar, the corrupted one right of it. The answer that is right for one
is wrong for the other. A model that does not see the difference is right in exactly half of the 2 P
prompts, however much it prefers one answer. Which prompt is clean alternates from pair to pair.

Induction and copying use random tokens in which a passage occurs twice. For induction, the passage
has 8 to 16 tokens, and the corrupted prompt swaps two tokens of its first copy, so that the token
*before* an answer identifies it; the distance of the copies varies. For copying, the copies are
half a context apart (at most 128 tokens), and the answers themselves are swapped, so a model that
copies from a fixed distance can do it too.

The six tasks after these use Python source: the prompt contains the name that is repeated, the
open bracket, or the line's indentation.

Every prompt begins with the token that ends a document, if the tokenizer has one. Words come from
words.py and python_words.py, as far as the tokenizer splits them as needed.

References
----------
Marks et al. 2024, Sparse feature circuits (agreement); Wang et al. 2022, Interpretability in the
wild (indirect objects); Olsson et al. 2022, In-context learning and induction heads.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ontogeny.analyses.circuits import python_words, words
from ontogeny.analyses.circuits.pairs import Draws, Pair, Text, Unfit
from ontogeny.files import InputError, read_hdf5, whole_hdf5

LEAST_PAIRS = 16  # least number of pairs of a task, which is left out if it has fewer
LEAST_WORDS = 4  # least number of nouns for a task
TRIES = 40  # draws from the templates per pair
LONG = 64  # tokens from which on a task has half as many pairs
FARTHEST = 128  # most tokens between the copies of `copying`
PIECE = (8, 16)  # tokens of the piece that occurs twice in `induction`
ARRAYS = ("clean", "corrupted", "length", "right", "wrong")  # fields of a Task
OF_SENTENCES = ("clean", "corrupted", "length", "target")


@dataclass(frozen=True)
class Task:
    """P pairs of prompts, each padded at its end to T tokens.

    Attributes
    ----------
    clean, corrupted : (P, T) token ids. length : (P,) tokens of each pair without padding; the
        answer follows the last one. right, wrong : (P,) token ids of the answers to the clean
        prompt; (P, R) if there are several, filled up with −1.
    """

    name: str
    clean: np.ndarray
    corrupted: np.ndarray
    length: np.ndarray
    right: np.ndarray
    wrong: np.ndarray

    @property
    def open(self) -> np.ndarray:
        """(P, T) bool: positions from the first difference to the last token.

        Before them the two prompts are equal, and so are all activations of a causal model.
        """
        differs = np.cumsum(self.clean != self.corrupted, 1) > 0
        return np.asarray(differs & (np.arange(self.clean.shape[1]) < self.length[:, None]))

    @property
    def prompts(self) -> tuple[np.ndarray, ...]:
        """The prompts to read, each with the positions of `open`."""
        return self.clean, self.corrupted


@dataclass(frozen=True)
class Sentences:
    """P pairs of a good and a bad sentence, whose log-probabilities are compared.

    No prompt is corrupted: the contribution of features is measured against no active feature.

    Attributes
    ----------
    clean, corrupted : (P, S) token ids of the good and of the bad sentence without the last token,
        padded at the end. length : (P,) tokens of the good one. target : (P, 2, S) the token after
        each position in either, −1 if it does not count. start : tokens before each sentence.
    """

    name: str
    clean: np.ndarray
    corrupted: np.ndarray
    length: np.ndarray
    target: np.ndarray
    start: int

    @property
    def open(self) -> np.ndarray:
        """(P, 2 S) bool: positions of both sentences up to the last one whose next token counts."""
        after = np.cumsum(self.target[:, :, ::-1] >= 0, 2)[:, :, ::-1] > 0
        after[:, :, : self.start] = False
        return np.asarray(after.reshape(len(after), -1))

    @property
    def prompts(self) -> tuple[np.ndarray, ...]:
        """Both sentences of a pair, one after the other, (P, 2, S)."""
        return (np.stack([self.clean, self.corrupted], 1),)


AnyTask = Task | Sentences


def _agreement(text: Text, rng: np.random.Generator, template: str) -> Draws:
    """{opener}, {subject}, {other} (a noun of either number), {preposition} and {past}."""
    nouns = [n for n in words.NOUNS if len({len(text.ids(f" {form}")) for form in n}) == 1]
    if len(nouns) < LEAST_WORDS:
        raise Unfit(
            f"{len(nouns)} of {len(words.NOUNS)} nouns have as many tokens in the plural; "
            f"{LEAST_WORDS} are needed"
        )
    verbs = [v for v in words.VERBS if None not in {text.answer("The", f" {form}") for form in v}]
    if not verbs:
        raise Unfit(f"none of {len(words.VERBS)} verbs is one token in singular and plural")

    def draw() -> Iterator[Pair | None]:
        number = 0
        while True:
            subject, other = (nouns[i] for i in rng.choice(len(nouns), 2, replace=False))
            rest = {
                "opener": words.OPENERS[rng.integers(len(words.OPENERS))],
                "other": other[rng.integers(2)],
                "preposition": words.PREPOSITIONS[rng.integers(len(words.PREPOSITIONS))],
                "past": words.PAST[rng.integers(len(words.PAST))],
            }
            verb = verbs[rng.integers(len(verbs))]
            clean, corrupted = (
                template.format(subject=subject[n], **rest) for n in (number, 1 - number)
            )
            answers = f" {verb[number]}", f" {verb[1 - number]}"
            pair = text.pair((clean, corrupted), answers)
            number = number if pair is None else 1 - number
            yield pair

    return draw(), f"{len(nouns)} of {len(words.NOUNS)} nouns, {len(verbs)} verbs"


def _indirect_object(text: Text, rng: np.random.Generator) -> Draws:
    names = [n for n in words.NAMES if text.answer("a letter to", f" {n}") is not None]
    if len(names) < 2:
        raise Unfit(f"{len(names)} of {len(words.NAMES)} names is one token; 2 are needed")

    def draw() -> Iterator[Pair | None]:
        giver = 0  # which of the two is the giver in the clean prompt
        while True:
            two = [names[i] for i in rng.choice(len(names), 2, replace=False)]
            template = words.MEETINGS[rng.integers(len(words.MEETINGS))]
            rest = {
                "place": words.PLACES[rng.integers(len(words.PLACES))],
                "thing": words.THINGS[rng.integers(len(words.THINGS))],
            }
            clean, corrupted = (
                template.format(*two, two[who], **rest) for who in (giver, 1 - giver)
            )
            pair = text.pair((clean, corrupted), (f" {two[1 - giver]}", f" {two[giver]}"))
            giver = giver if pair is None else 1 - giver
            yield pair

    return draw(), f"{len(names)} of {len(words.NAMES)} names"


def _python(
    text: Text, rng: np.random.Generator, templates: list[str], choices: python_words.Choices
) -> Draws:
    """{x}, on which the answer depends, and other names {a}, {b} and {c}."""

    def filled(template: str, x: str, others: list[str]) -> str:
        return template.format(x=x, **dict(zip("abc", others, strict=True)))

    def one_token(x: str, following: str) -> bool:
        return text.answer(filled(templates[0], x, python_words.NAMES[:3]), following) is not None

    known = [choice for choice in choices if one_token(*choice)]
    kept = f"{len(known)} of {len(choices)} answers are one token"
    if len(known) < 2:
        raise Unfit(f"{kept}; 2 are needed")

    def draw() -> Iterator[Pair | None]:
        turn = 0  # which of the two answers is right for the clean prompt
        while True:
            two = [known[i] for i in sorted(rng.choice(len(known), 2, replace=False))]
            taken = {x for x, _ in two}
            others = [str(n) for n in rng.permutation(python_words.NAMES) if n not in taken][:3]
            template = templates[rng.integers(len(templates))]
            (x, right), (other, wrong) = two[turn], two[1 - turn]
            texts = filled(template, x, others), filled(template, other, others)
            pair = text.pair(texts, (right, wrong))
            turn = turn if pair is None else 1 - turn
            yield pair

    return draw(), kept


def _twice(
    text: Text, rng: np.random.Generator, total: int, length: int, last: int, swapped: list[int]
) -> Pair:
    """Random tokens that end with a piece and its beginning again, up to position `last` in it.

    Parameters
    ----------
    total : most tokens. length : of the piece. swapped : the two positions in the first copy whose
        tokens the corrupted prompt swaps.
    """
    tokens = rng.choice(text.ordinary, total - last - 1, replace=False).tolist()
    filler, piece = tokens[:-length], tokens[-length:]
    other = piece.copy()
    for i, j in (swapped, swapped[::-1]):
        other[i] = piece[j]
    end = piece[: last + 1]
    clean, corrupted = (text.started([*filler, *first, *end]) for first in (piece, other))
    return Pair(clean, corrupted, piece[last + 1], other[other.index(end[-1]) + 1])


def _induction(text: Text, rng: np.random.Generator) -> Draws:
    least, most = PIECE
    _check_room(text, 2 * most)

    def draw() -> Iterator[Pair | None]:
        while True:
            length = int(rng.integers(least, most + 1))
            a = int(rng.integers(0, length - 3))
            c = int(rng.integers(a + 2, length - 1))
            yield _twice(text, rng, 2 * most, length, a, [a, c])

    return draw(), f"{len(text.ordinary)} tokens"


def _copying(text: Text, rng: np.random.Generator) -> Draws:
    half = min(text.context // 2, FARTHEST)
    reach = min(16, half // 2)  # most tokens of the second copy
    _check_room(text, half + reach)

    def draw() -> Iterator[Pair | None]:
        while True:
            a = int(rng.integers(1, reach))
            d = int(rng.integers(a + 3, half))
            yield _twice(text, rng, half + reach, half, a, [a + 1, d])

    return draw(), f"{len(text.ordinary)} tokens, {half} apart"


def _check_room(text: Text, tokens: int) -> None:
    if tokens + 1 > text.context or tokens > len(text.ordinary):
        raise Unfit(
            f"{tokens + 1} tokens are needed of a context of {text.context}, and as many "
            f"different ones of a vocabulary of {len(text.ordinary)}"
        )


MAKERS: dict[str, Callable[[Text, np.random.Generator], Draws]] = {
    name: partial(_agreement, template=template) for name, template in words.AGREEMENT.items()
} | {"indirect_object": _indirect_object, "induction": _induction, "copying": _copying}
MAKERS |= {
    name: partial(_python, templates=templates, choices=choices)
    for name, (templates, choices) in python_words.TASKS.items()
}


def padded(rows: list[list[int]], by: int | None = None, longest: int = 0) -> np.ndarray:
    """Rows of token ids as one array, padded with their first token, or with `by`."""
    longest = longest or max(map(len, rows))
    return np.array([row + [row[0] if by is None else by] * (longest - len(row)) for row in rows])


def make(
    name: str,
    tokenizer: Tokenizer,
    end: int | None,
    context: int,
    pairs: int,
    seed: int,
    known: int | None = None,
) -> tuple[Task, dict[str, object]]:
    """A task's pairs, all different, and its row of the table.

    Parameters
    ----------
    end : the token before every prompt, or None. context : most tokens of a prompt.
    known : number of ids that the model has rows for, if the tokenizer has more.

    Raises
    ------
    Unfit : fewer than 16 pairs can be made; with the reason.
    """
    text = Text(tokenizer, end, context, known)
    # A separate generator, so that a task does not depend on which others are made.
    draws, kept = MAKERS[name](text, np.random.default_rng([seed, zlib.crc32(name.encode())]))
    different: dict[tuple[object, ...], Pair] = {}
    wanted = pairs
    for _ in range(TRIES * pairs):
        pair = next(draws)
        if pair is not None:
            if len(pair.clean) > LONG:
                wanted = max(LEAST_PAIRS, pairs // 2)
            different.setdefault((*pair.clean, pair.right), pair)
        if len(different) == wanted:
            break
    if len(different) < LEAST_PAIRS:
        raise Unfit(
            f"{len(different)} different pairs with tokens that align and answers of one token "
            f"({kept}); {LEAST_PAIRS} are needed"
        )
    made = list(different.values())
    length = np.array([len(pair.clean) for pair in made])
    task = Task(
        name,
        padded([pair.clean for pair in made]),
        padded([pair.corrupted for pair in made]),
        length,
        np.array([pair.right for pair in made]),
        np.array([pair.wrong for pair in made]),
    )
    first = made[0]
    return task, {
        "words": kept,
        "pairs": len(made),
        "tokens": int(length.max()),
        "answers": len({*task.right, *task.wrong}),
        "clean": text.show(first.clean),
        "corrupted": text.show(first.corrupted),
        "right": text.show([first.right]),
        "wrong": text.show([first.wrong]),
    }


def every(
    names: Sequence[str],
    tokenizer: Tokenizer,
    end: int | None,
    context: int,
    pairs: int,
    seed: int,
    known: int | None = None,
) -> tuple[list[Task], list[dict[str, object]]]:
    """The tasks that can be made, and the table's row for each name; parameters as for `make`."""
    rows: list[dict[str, object]] = []
    made: list[Task] = []
    for name in names:
        try:
            task, about = make(name, tokenizer, end, context, pairs, seed, known)
        except Unfit as reason:
            rows.append({"task": name, "pairs": 0, "left_out": str(reason)})
            continue
        rows.append({"task": name, **about})
        made.append(task)
    return made, rows


def write(path: Path, tasks: Sequence[AnyTask], tokens: str) -> None:
    """Write the file that `read` reads: HDF5, one group per task with its `ARRAYS`.

    Parameters
    ----------
    tokens : digest of the tokens that the tasks belong to.
    """
    with whole_hdf5(path) as file:
        file.attrs["tokens"] = tokens
        file.attrs["tasks"] = [task.name for task in tasks]
        for task in tasks:
            arrays = ARRAYS if isinstance(task, Task) else OF_SENTENCES
            for field in arrays:
                key, array = f"{task.name}/{field}", getattr(task, field)
                file.create_dataset(key, data=array, fletcher32=field != "length")
            if isinstance(task, Sentences):
                file[task.name].attrs["start"] = task.start


def read(path: Path, tokens: str) -> list[AnyTask]:
    """The tasks in a file; none if the last snapshot can do none.

    Parameters
    ----------
    tokens : digest of the tokens that the tasks must belong to.

    Raises
    ------
    InputError : the file is damaged or not a file of tasks, or the tasks belong to other tokens.
    """
    with read_hdf5(path, "a file of tasks") as file:
        own = file.attrs.get("tokens")
        tasks = [_read(str(name), file[name]) for name in file.attrs["tasks"]]
    if own != tokens:
        raise InputError(f"{path}: made from other tokens than the crosscoder's; make them again")
    return tasks


def _read(name: str, group: Any) -> AnyTask:
    if "target" in group:
        clean, corrupted, length, target = (group[array][:] for array in OF_SENTENCES)
        return Sentences(name, clean, corrupted, length, target, int(group.attrs["start"]))
    return Task(name, *(group[array][:] for array in ARRAYS))
