"""Tasks: pairs of a clean and a corrupted prompt that ask for different answers (docs/method.md 7).

    agreement_simple     The teacher|teachers                            is / are
    agreement_across_pp  The teacher|teachers near the boys              is / are
    agreement_within_rc  The boy that the teacher|teachers               is / are
    agreement_across_rc  The teacher|teachers that the boys liked        is / are
    indirect_object      When Mary and Tom went to the park, Tom|Mary gave a book to    Mary / Tom
    induction            … a b … c d … a    |   … c b … a d … a          b / d
    copying              … a b … c d … a    |   … a d … c b … a          b / d

Left of the bar is clean, right of it corrupted; the answer that is right for one is wrong for the
other. A model that does not see the difference is right in exactly half of the 2 P prompts, however
much it prefers one answer. Which of the two is clean alternates from pair to pair.

The last two are random tokens, a piece of which stands twice. For induction it has 8 to 16 tokens
and two of the first copy changed places, so that what stands *before* an answer tells which it is;
the distance of the copies differs. For copying they lie half a context apart (at most 128 tokens),
and the answers themselves changed places: a model that copies from one distance does it too.

Every prompt begins with the token that ends a document, where the tokenizer has one. The words are
those of words.py that the tokenizer at hand holds as needed.

References
----------
Marks et al. 2024, Sparse feature circuits (agreement); Wang et al. 2022, Interpretability in the
wild (indirect objects); Olsson et al. 2022, In-context learning and induction heads.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from tokenizers import Tokenizer

from ontogeny.analyses.circuits import words
from ontogeny.analyses.circuits.settings import Circuits
from ontogeny.corpus.build import Tokens
from ontogeny.files import InputError, whole, write_table
from ontogeny.settings import Settings

LEAST_PAIRS = 16  # of a task; with fewer it is left out
LEAST_WORDS = 4  # nouns of a task
TRIES = 40  # draws from the templates, for each pair wanted
LONG = 64  # tokens from which a task has half as many pairs
FARTHEST = 128  # tokens between the copies of `copying`, at most
SHOWN = 120  # letters of an example
PIECE = (8, 16)  # tokens of the piece that stands twice in `induction`
ARRAYS = ("clean", "corrupted", "length", "right", "wrong")  # of a Task


@dataclass(frozen=True)
class Task:
    """P pairs, each padded to T tokens at its end.

    Attributes
    ----------
    clean, corrupted : (P, T) token ids. length : (P,) tokens of each pair without its padding; the
        answer follows the last. right, wrong : (P,) token ids of the answers to the clean prompt.
    """

    name: str
    clean: np.ndarray
    corrupted: np.ndarray
    length: np.ndarray
    right: np.ndarray
    wrong: np.ndarray

    @property
    def open(self) -> np.ndarray:
        """(P, T) bool: positions from the first that differs to the last token.

        Before them the two prompts are one, and so is all that a causal model makes of them.
        """
        differs = np.cumsum(self.clean != self.corrupted, 1) > 0
        return np.asarray(differs & (np.arange(self.clean.shape[1]) < self.length[:, None]))


@dataclass(frozen=True)
class _Pair:
    clean: list[int]
    corrupted: list[int]
    right: int
    wrong: int


class Unfit(ValueError):
    """Why a task cannot be made with this tokenizer."""


class _Text:
    """What the templates need of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, end: int | None, context: int) -> None:
        self._tokenizer = tokenizer
        self._start = [] if end is None else [end]
        self.context = context
        special = {i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
        special |= set(self._start)
        self.ordinary = np.array(sorted(set(tokenizer.get_vocab().values()) - special))

    def ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def started(self, ids: list[int]) -> list[int]:
        return [*self._start, *ids]

    def show(self, ids: list[int]) -> str:
        """Tokens as one line of text, the end of it where it is long."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        line = json.dumps(text, ensure_ascii=False)[1:-1]
        return line if len(line) <= SHOWN else f"… {line[-SHOWN:]}"

    def answer(self, prompt: str, word: str) -> int | None:
        """The one token that continues a prompt by a space and a word, or None."""
        before, after = self.ids(prompt), self.ids(f"{prompt} {word}")
        fine = len(after) == len(before) + 1 and after[:-1] == before
        return after[-1] if fine else None

    def pair(self, texts: tuple[str, str], answers: tuple[str, str]) -> _Pair | None:
        """A pair of texts that differ in one word, or None where its tokens do not allow it.

        Both have as many tokens and differ in neighbouring ones alone; each answer is one token
        after either.
        """
        clean, corrupted = (self.ids(text) for text in texts)
        if len(clean) != len(corrupted) or len(clean) + len(self._start) > self.context:
            return None
        differing = np.flatnonzero(np.array(clean) != np.array(corrupted))
        # One word differs: what follows it must be cut into the same tokens.
        same_after = len(self.ids(_common_end(*texts)))
        if not len(differing) or differing[0] == 0 or differing[-1] >= len(clean) - same_after:
            return None
        tokens = [{self.answer(text, word) for text in texts} for word in answers]
        right, wrong = (each.pop() if len(each) == 1 else None for each in tokens)
        if right is None or wrong is None or right == wrong:
            return None
        return _Pair(self.started(clean), self.started(corrupted), right, wrong)


def _common_end(first: str, second: str) -> str:
    """The words at the end of two texts that are the same, with the space before them."""
    one, two = first.split(" "), second.split(" ")
    same = 0
    while same < min(len(one), len(two)) and one[-1 - same] == two[-1 - same]:
        same += 1
    return "".join(f" {word}" for word in one[len(one) - same :])


Draws = tuple[Iterator[_Pair | None], str]
"""Endless pairs, None where one came out unfit, and which words they are drawn from."""


def _agreement(text: _Text, rng: np.random.Generator, template: str) -> Draws:
    """{opener}, {subject}, {other} (a noun of either number), {preposition} and {past}."""
    nouns = [n for n in words.NOUNS if len({len(text.ids(f" {form}")) for form in n}) == 1]
    if len(nouns) < LEAST_WORDS:
        raise Unfit(
            f"{len(nouns)} of {len(words.NOUNS)} nouns have as many tokens in the plural; "
            f"{LEAST_WORDS} are needed"
        )
    verbs = [v for v in words.VERBS if None not in {text.answer("The", form) for form in v}]
    if not verbs:
        raise Unfit(f"none of {len(words.VERBS)} verbs is one token in singular and plural")

    def draw() -> Iterator[_Pair | None]:
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
            pair = text.pair((clean, corrupted), (verb[number], verb[1 - number]))
            number = number if pair is None else 1 - number
            yield pair

    return draw(), f"{len(nouns)} of {len(words.NOUNS)} nouns, {len(verbs)} verbs"


def _indirect_object(text: _Text, rng: np.random.Generator) -> Draws:
    names = [n for n in words.NAMES if text.answer("a letter to", n) is not None]
    if len(names) < 2:
        raise Unfit(f"{len(names)} of {len(words.NAMES)} names is one token; 2 are needed")

    def draw() -> Iterator[_Pair | None]:
        giver = 0  # which of the two gives in the clean prompt
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
            pair = text.pair((clean, corrupted), (two[1 - giver], two[giver]))
            giver = giver if pair is None else 1 - giver
            yield pair

    return draw(), f"{len(names)} of {len(words.NAMES)} names"


def _twice(
    text: _Text, rng: np.random.Generator, total: int, length: int, last: int, swapped: list[int]
) -> _Pair:
    """Random tokens that end with a piece and its beginning again, up to `last` in the piece.

    Parameters
    ----------
    total : most tokens. length : of the piece. swapped : the two places in the first copy that
        change their tokens in the corrupted prompt.
    """
    tokens = rng.choice(text.ordinary, total - last - 1, replace=False).tolist()
    filler, piece = tokens[:-length], tokens[-length:]
    other = piece.copy()
    for i, j in (swapped, swapped[::-1]):
        other[i] = piece[j]
    end = piece[: last + 1]
    clean, corrupted = (text.started([*filler, *first, *end]) for first in (piece, other))
    return _Pair(clean, corrupted, piece[last + 1], other[other.index(end[-1]) + 1])


def _induction(text: _Text, rng: np.random.Generator) -> Draws:
    least, most = PIECE
    _check_room(text, 2 * most)

    def draw() -> Iterator[_Pair | None]:
        while True:
            length = int(rng.integers(least, most + 1))
            a = int(rng.integers(0, length - 3))
            c = int(rng.integers(a + 2, length - 1))
            yield _twice(text, rng, 2 * most, length, a, [a, c])

    return draw(), f"{len(text.ordinary)} tokens"


def _copying(text: _Text, rng: np.random.Generator) -> Draws:
    half = min(text.context // 2, FARTHEST)
    reach = min(16, half // 2)  # tokens of the second copy, at most
    _check_room(text, half + reach)

    def draw() -> Iterator[_Pair | None]:
        while True:
            a = int(rng.integers(1, reach))
            d = int(rng.integers(a + 3, half))
            yield _twice(text, rng, half + reach, half, a, [a + 1, d])

    return draw(), f"{len(text.ordinary)} tokens, {half} apart"


def _check_room(text: _Text, tokens: int) -> None:
    if tokens + 1 > text.context or tokens > len(text.ordinary):
        raise Unfit(
            f"{tokens + 1} tokens are needed of a context of {text.context}, and as many "
            f"different ones of a vocabulary of {len(text.ordinary)}"
        )


MAKERS: dict[str, Callable[[_Text, np.random.Generator], Draws]] = {
    name: partial(_agreement, template=template) for name, template in words.AGREEMENT.items()
} | {"indirect_object": _indirect_object, "induction": _induction, "copying": _copying}


def make(
    name: str, tokenizer: Tokenizer, end: int | None, context: int, pairs: int, seed: int
) -> tuple[Task, dict[str, object]]:
    """A task's pairs, all different, and what its table says of it.

    Parameters
    ----------
    end : the token before every prompt, or None. context : most tokens of a prompt.

    Raises
    ------
    Unfit : fewer than 16 pairs can be made; the reason.
    """
    text = _Text(tokenizer, end, context)
    # A generator of its own: a task is the same whichever others are made.
    draws, kept = MAKERS[name](text, np.random.default_rng([seed, zlib.crc32(name.encode())]))
    different: dict[tuple[object, ...], _Pair] = {}
    wanted = pairs
    for _ in range(TRIES * pairs):
        pair = next(draws)
        if pair is not None:
            if len(pair.clean) > LONG:
                wanted = max(LEAST_PAIRS, pairs // 2)
            different.setdefault((*pair.clean, pair.right, pair.wrong), pair)
        if len(different) == wanted:
            break
    if len(different) < LEAST_PAIRS:
        raise Unfit(
            f"{len(different)} different pairs with tokens that align and answers of one token "
            f"({kept}); {LEAST_PAIRS} are needed"
        )
    made = list(different.values())
    length = np.array([len(pair.clean) for pair in made])
    longest = int(length.max())

    def padded(rows: list[list[int]]) -> np.ndarray:
        return np.array([row + [row[0]] * (longest - len(row)) for row in rows])

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
        "tokens": longest,
        "answers": len({*task.right, *task.wrong}),
        "clean": text.show(first.clean),
        "corrupted": text.show(first.corrupted),
        "right": text.show([first.right]),
        "wrong": text.show([first.wrong]),
    }


COLUMNS = ["task", "pairs", "tokens", "answers", "words", "left_out", "clean", "corrupted"]
COLUMNS += ["right", "wrong"]


def build(settings: Settings, tokens: Path, tokenizer: Path, tasks: Path, table: Path) -> None:
    """Make the tasks with the tokenizer at hand.

    Parameters
    ----------
    tokens : tokens.h5. tokenizer : tokenizer.json beside it.
    tasks : HDF5; one group per task with clean and corrupted (P, T), length, right, wrong (P,);
        attributes tokens (digest) and tasks (names).
    table : CSV, one row per task; its columns are in the declaration.

    Raises
    ------
    InputError : a tokenizer that cannot be read, or no task can be made.
    """
    section, data = settings.section(Circuits), Tokens(tokens)
    try:
        backend = Tokenizer.from_file(str(tokenizer))
    except Exception as error:  # the library raises plain Exception
        why = " ".join(str(error).split())
        raise InputError(
            f"{tokenizer}: not a tokenizer; delete it to make it again ({why})"
        ) from None
    rows: list[dict[str, object]] = []
    made: list[Task] = []
    for name in section.tasks:
        try:
            task, about = make(
                name, backend, data.end_of_text, data.context, section.pairs, section.seed
            )
        except Unfit as reason:
            rows.append({"task": name, "pairs": 0, "left_out": str(reason)})
            continue
        rows.append({"task": name, **about})
        made.append(task)
    if not made:
        reasons = "; ".join(f"{row['task']}: {row['left_out']}" for row in rows)
        raise InputError(
            f"circuits.tasks: none can be made with this tokenizer; add others ({reasons})"
        )
    with whole(tasks) as draft, h5py.File(draft, "w") as file:
        file.attrs["tokens"] = data.digest
        file.attrs["tasks"] = [task.name for task in made]
        for task in made:
            for field in ARRAYS:
                key, array = f"{task.name}/{field}", getattr(task, field)
                file.create_dataset(key, data=array, fletcher32=field != "length")
    write_table(table, pd.DataFrame(rows).reindex(columns=COLUMNS))


def read(path: Path, tokens: str) -> list[Task]:
    """The tasks of a file that `build` wrote.

    Parameters
    ----------
    tokens : digest of the tokens that they have to be of.

    Raises
    ------
    InputError : the file is damaged or not one of tasks, or they are of other tokens.
    """
    try:
        with h5py.File(path, "r") as file:
            names, own = [str(name) for name in file.attrs["tasks"]], file.attrs.get("tokens")
            tasks = [Task(name, *(file[name][array][:] for array in ARRAYS)) for name in names]
    except (OSError, KeyError) as error:
        why = " ".join(str(error).split())
        raise InputError(
            f"{path}: truncated or not a file of tasks; delete it to make it again ({why})"
        ) from None
    if own != tokens:
        raise InputError(
            f"{path}: of other tokens than the crosscoder was trained on; make them again"
        )
    return tasks
