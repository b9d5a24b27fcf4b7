"""Tasks: pairs of a clean and a corrupted prompt that ask for different answers (METHOD.md 7).

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
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from tokenizers import Tokenizer

from ontogeny.circuits import words
from ontogeny.corpus.build import Tokens
from ontogeny.files import InputError, whole, write_table
from ontogeny.settings import Circuits

LEAST_PAIRS = 16  # of a task; with fewer it is left out
LEAST_WORDS = 4  # nouns of a task
TRIES = 40  # draws from the templates, for each pair wanted
LONG = 64  # tokens from which a task has half as many pairs
FARTHEST = 128  # tokens between the copies of `copying`, at most
SHOWN = 120  # letters of an example
PIECE = (8, 16)  # tokens of the piece that stands twice in `induction`


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
        inside: np.ndarray = differs & (np.arange(self.clean.shape[1]) < self.length[:, None])
        return inside


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
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return found

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
        where = np.flatnonzero(np.array(clean) != np.array(corrupted))
        # One word differs: what follows it must be cut into the same tokens.
        same_after = len(self.ids(_common_end(*texts)))
        if not len(where) or where[0] == 0 or where[-1] >= len(clean) - same_after:
            return None
        found = [{self.answer(text, word) for text in texts} for word in answers]
        right, wrong = (each.pop() if len(each) == 1 else None for each in found)
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


def _nouns(text: _Text) -> list[tuple[str, str]]:
    """The nouns whose singular and plural have as many tokens."""
    kept = [n for n in words.NOUNS if len({len(text.ids(f" {form}")) for form in n}) == 1]
    if len(kept) < LEAST_WORDS:
        raise Unfit(
            f"{len(kept)} of {len(words.NOUNS)} nouns have as many tokens in the plural; "
            f"{LEAST_WORDS} are needed"
        )
    return kept


def _verbs(text: _Text) -> list[tuple[str, str]]:
    """The verbs of which both forms are one token."""
    kept = [v for v in words.VERBS if None not in {text.answer("The", form) for form in v}]
    if not kept:
        raise Unfit(f"none of {len(words.VERBS)} verbs is one token in singular and plural")
    return kept


def _agreement(
    text: _Text, rng: np.random.Generator, template: str
) -> tuple[Iterator[_Pair | None], str]:
    """{opener}, {subject}, {other} (a noun of either number), {preposition} and {past}."""
    nouns, verbs = _nouns(text), _verbs(text)

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
            one, two = number, 1 - number
            texts = tuple(template.format(subject=subject[n], **rest) for n in (one, two))
            pair = text.pair((texts[0], texts[1]), (verb[one], verb[two]))
            number = number if pair is None else two
            yield pair

    return draw(), f"{len(nouns)} of {len(words.NOUNS)} nouns, {len(verbs)} verbs"


def _indirect_object(text: _Text, rng: np.random.Generator) -> tuple[Iterator[_Pair | None], str]:
    names = [n for n in words.NAMES if text.answer("a letter to", n) is not None]
    if len(names) < 2:
        raise Unfit(f"{len(names)} of {len(words.NAMES)} names is one token; 2 are needed")

    def draw() -> Iterator[_Pair | None]:
        second = 0  # which of the two gives in the clean prompt
        while True:
            pair = [names[i] for i in rng.choice(len(names), 2, replace=False)]
            template = words.MEETINGS[rng.integers(len(words.MEETINGS))]
            rest = {
                "place": words.PLACES[rng.integers(len(words.PLACES))],
                "thing": words.THINGS[rng.integers(len(words.THINGS))],
            }
            texts = tuple(template.format(*pair, pair[who], **rest) for who in (second, 1 - second))
            made = text.pair((texts[0], texts[1]), (pair[1 - second], pair[second]))
            second = second if made is None else 1 - second
            yield made

    return draw(), f"{len(names)} of {len(words.NAMES)} names"


def _induction(text: _Text, rng: np.random.Generator) -> tuple[Iterator[_Pair | None], str]:
    least, most = PIECE
    total = 2 * most
    _room(text, total)

    def draw() -> Iterator[_Pair | None]:
        while True:
            length = int(rng.integers(least, most + 1))
            a = int(rng.integers(0, length - 3))
            c = int(rng.integers(a + 2, length - 1))
            tokens = rng.choice(text.ordinary, total - a - 1, replace=False).tolist()
            filler, piece = tokens[:-length], tokens[-length:]
            other = piece.copy()
            other[a], other[c] = piece[c], piece[a]
            end = piece[: a + 1]
            clean, corrupted = (text.started([*filler, *x, *end]) for x in (piece, other))
            yield _Pair(clean, corrupted, piece[a + 1], piece[c + 1])

    return draw(), f"{len(text.ordinary)} tokens"


def _copying(text: _Text, rng: np.random.Generator) -> tuple[Iterator[_Pair | None], str]:
    half = min(text.context // 2, FARTHEST)
    reach = min(16, half // 2)  # tokens of the second copy, at most
    total = half + reach
    _room(text, total)

    def draw() -> Iterator[_Pair | None]:
        while True:
            a = int(rng.integers(1, reach))
            d = int(rng.integers(a + 3, half))
            tokens = rng.choice(text.ordinary, total - a - 1, replace=False).tolist()
            filler, piece = tokens[:-half], tokens[-half:]
            other = piece.copy()
            other[a + 1], other[d] = piece[d], piece[a + 1]
            end = piece[: a + 1]
            clean, corrupted = (text.started([*filler, *x, *end]) for x in (piece, other))
            yield _Pair(clean, corrupted, piece[a + 1], piece[d])

    return draw(), f"{len(text.ordinary)} tokens, {half} apart"


def _room(text: _Text, tokens: int) -> None:
    if tokens + 1 > text.context or tokens > len(text.ordinary):
        raise Unfit(
            f"{tokens + 1} tokens are needed of a context of {text.context}, and as many "
            f"different ones of a vocabulary of {len(text.ordinary)}"
        )


Maker = Callable[[_Text, np.random.Generator], tuple[Iterator[_Pair | None], str]]


def _of(template: str) -> Maker:
    return lambda text, rng: _agreement(text, rng, template)


MAKERS: dict[str, Maker] = {
    "agreement_simple": _of("{opener} {subject}"),
    "agreement_across_pp": _of("{opener} {subject} {preposition} the {other}"),
    "agreement_within_rc": _of("{opener} {other} that the {subject}"),
    "agreement_across_rc": _of("{opener} {subject} that the {other} {past}"),
    "indirect_object": _indirect_object,
    "induction": _induction,
    "copying": _copying,
}


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
    found: dict[tuple[object, ...], _Pair] = {}
    wanted = pairs
    for _ in range(TRIES * pairs):
        pair = next(draws)
        if pair is not None:
            if len(pair.clean) > LONG:
                wanted = max(LEAST_PAIRS, pairs // 2)
            found.setdefault((*pair.clean, pair.right, pair.wrong), pair)
        if len(found) == wanted:
            break
    if len(found) < LEAST_PAIRS:
        raise Unfit(
            f"{len(found)} different pairs with tokens that align and answers of one token "
            f"({kept}); {LEAST_PAIRS} are needed"
        )
    every = list(found.values())
    longest = max(len(pair.clean) for pair in every)

    def padded(rows: list[list[int]]) -> np.ndarray:
        return np.array([row + [row[0]] * (longest - len(row)) for row in rows])

    task = Task(
        name,
        padded([pair.clean for pair in every]),
        padded([pair.corrupted for pair in every]),
        np.array([len(pair.clean) for pair in every]),
        np.array([pair.right for pair in every]),
        np.array([pair.wrong for pair in every]),
    )
    first = every[0]
    answers = {i for pair in every for i in (pair.right, pair.wrong)}
    about = {
        "words": kept,
        "pairs": len(every),
        "tokens": longest,
        "answers": len(answers),
        "clean": text.show(first.clean),
        "corrupted": text.show(first.corrupted),
        "right": text.show([first.right]),
        "wrong": text.show([first.wrong]),
    }
    return task, about


COLUMNS = ["task", "pairs", "tokens", "answers", "words", "left_out", "clean", "corrupted"]
COLUMNS += ["right", "wrong"]


def build(
    c: Circuits,
    tokens: str | Path,
    tokenizer: str | Path,
    output: str | Path,
    table: str | Path,
) -> None:
    """Make the tasks with the tokenizer at hand.

    Parameters
    ----------
    tokens : tokens.h5. tokenizer : tokenizer.json beside it.
    output : HDF5; a group a task with clean and corrupted (P, T), length, right, wrong (P,);
        attributes tokens (digest) and tasks (names).
    table : CSV; task, pairs, tokens (of the longest prompt), answers (different ones), words (what
        the tokenizer keeps of them), left_out (the reason, or empty), and the first pair as text:
        clean, corrupted, right, wrong.

    Raises
    ------
    InputError : a tokenizer that cannot be read, or no task can be made.
    """
    data = Tokens(tokens)
    try:
        backend = Tokenizer.from_file(str(tokenizer))
    except Exception as error:  # the library raises plain Exception
        why = " ".join(str(error).split())
        raise InputError(
            f"{tokenizer}: not a tokenizer; delete it to make it again ({why})"
        ) from None
    rows: list[dict[str, object]] = []
    made: list[Task] = []
    for name in c.tasks:
        try:
            task, about = make(name, backend, data.end_of_text, data.context, c.pairs, c.seed)
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
    with whole(output) as draft, h5py.File(draft, "w") as file:
        file.attrs["tokens"] = data.digest
        file.attrs["tasks"] = [task.name for task in made]
        for task in made:
            group = file.create_group(task.name)
            for field in ("clean", "corrupted", "length", "right", "wrong"):
                group.create_dataset(field, data=getattr(task, field), fletcher32=field != "length")
    write_table(table, pd.DataFrame(rows).reindex(columns=COLUMNS))


def read(path: str | Path) -> list[Task]:
    """The tasks of a file that `build` wrote.

    Raises
    ------
    InputError : the file is damaged or not one of tasks.
    """
    fields = ("clean", "corrupted", "length", "right", "wrong")
    try:
        with h5py.File(path, "r") as file:
            names = [str(name) for name in file.attrs["tasks"]]
            return [Task(name, *(file[name][field][:] for field in fields)) for name in names]
    except (OSError, KeyError) as error:
        why = " ".join(str(error).split())
        raise InputError(
            f"{path}: truncated or not a file of tasks; delete it to make it again ({why})"
        ) from None
