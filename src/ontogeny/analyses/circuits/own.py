"""The user's own tasks: JSON Lines files of prompts, or of minimal pairs in BLiMP's format.

    {"clean": "The key to the cabinets", "corrupted": "The keys to the cabinets",
     "right": " is", "wrong": " are"}
    {"sentence_good": "The cats annoy Tim.", "sentence_bad": "The cats annoys Tim."}

The task has the file's name without its ending. `right` and `wrong` may be lists; the probabilities
of all answers in a list are then added. Other keys of a line are ignored.

References
----------
Warstadt et al. 2020, BLiMP (arXiv 1912.00582).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ontogeny.analyses.circuits.pairs import Text, Unfit
from ontogeny.analyses.circuits.settings import FILES, Circuits, matching
from ontogeny.analyses.circuits.tasks import LEAST_PAIRS, LONG, AnyTask, Sentences, Task, padded
from ontogeny.files import InputError, one_line

PROMPT = ("clean", "corrupted", "right", "wrong")
SENTENCES = ("sentence_good", "sentence_bad")
TOLD = 3  # most lines of a file that are reported one by one


@dataclass(frozen=True)
class Line:
    """A line of a file: `texts` are a clean and a corrupted prompt, or a good and a bad sentence.

    Attributes
    ----------
    answers : right ones and wrong ones; None for sentences.
    """

    number: int
    texts: tuple[str, str]
    answers: tuple[list[str], list[str]] | None


@dataclass(frozen=True)
class Cut:
    """A line as token ids.

    Attributes
    ----------
    ids : of the two texts, after the token that begins a prompt. answers : as for `Line`, as ids.
    first : for sentences, the first token that counts.
    """

    ids: tuple[list[int], list[int]]
    answers: tuple[list[int], list[int]]
    first: int = 0


def read(path: Path) -> list[Line]:
    """The lines of a file, without empty ones.

    Raises
    ------
    InputError : the file cannot be read or is empty; or one line for each of the first lines that
        are not JSON, lack a key, or have a value that is not text.
    """
    lines: list[Line] = []
    wrong: list[str] = []
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{FILES}: {path}: cannot be read ({one_line(error)}); correct it"
        ) from None
    for number, raw in enumerate(content.splitlines(), 1):
        if not raw.strip():
            continue
        try:
            lines.append(_line(number, raw))
        except ValueError as error:
            wrong.append(f"{path}, line {number}: {error}")
    kinds = {line.answers is None: line for line in reversed(lines)}
    if len(kinds) == 2:
        prompt, pair = kinds[False].number, kinds[True].number
        wrong.append(
            f"{path}, line {max(prompt, pair)}: line {prompt} has a prompt, line {pair} a pair of "
            "sentences; give each a file of its own"
        )
    if not (lines or wrong):
        wrong.append(f"{path}: the file is empty; write one JSON object per line")
    if wrong:
        more = [f"{path}: {len(wrong) - TOLD} more lines like these"] if len(wrong) > TOLD else []
        raise InputError("\n".join([*wrong[:TOLD], *more]))
    return lines


def _line(number: int, raw: bytes) -> Line:
    """Parse a line of a file, or raise a ValueError that says what is wrong with it."""
    try:
        row = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8; convert the file to UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({one_line(error)}); mend or remove the line") from None
    if not isinstance(row, dict):
        raise ValueError("not an object; write one {…} per line")
    keys = SENTENCES if any(key in row for key in SENTENCES) else PROMPT
    for key in keys:
        if key not in row:
            raise ValueError(f"has no {key}; add it (a line needs {', '.join(keys)})")
    texts = _text(row, keys[0]), _text(row, keys[1])
    if keys is SENTENCES:
        return Line(number, texts, None)
    return Line(number, texts, (_answers(row, "right"), _answers(row, "wrong")))


def _text(row: dict[str, Any], key: str) -> str:
    if not isinstance(row[key], str) or not row[key]:
        raise ValueError(f"{key} is {json.dumps(row[key])[:40]}; write a text in quotes")
    return str(row[key])


def _answers(row: dict[str, Any], key: str) -> list[str]:
    given = row[key] if isinstance(row[key], list) else [row[key]]
    if not given or not all(isinstance(answer, str) and answer for answer in given):
        raise ValueError(f"{key} is {json.dumps(row[key])[:40]}; write a text, or a list of texts")
    return list(dict.fromkeys(given))


def cut(line: Line, text: Text) -> Cut:
    """The tokens of a line.

    Raises
    ------
    Unfit : the line cannot be used; with the reason and what to do.
    """
    ids = text.started(text.ids(line.texts[0])), text.started(text.ids(line.texts[1]))
    longest = max(map(len, ids))
    if longest > text.context:
        raise Unfit(
            f"{longest} tokens exceed corpus.context, {text.context}; shorten it, or raise that"
        )
    if ids[0] == ids[1]:
        raise Unfit("both texts are the same; change one of them")
    if line.answers is None:
        return _sentences(ids, len(text.started([])))
    if len(ids[0]) != len(ids[1]):
        raise Unfit(
            f"clean has {len(ids[0])} tokens, corrupted {len(ids[1])}; reword one so that they "
            "have as many"
        )
    right, wrong = (_as_ids(line, answers, text) for answers in line.answers)
    if set(right) & set(wrong):
        raise Unfit("an answer is right and wrong; remove it from one of the two")
    return Cut(ids, (right, wrong))


def _as_ids(line: Line, answers: list[str], text: Text) -> list[int]:
    ids = []
    for answer in answers:
        each = {text.answer(prompt, answer) for prompt in line.texts}
        token = each.pop()
        if each or token is None or token not in text.ordinary:
            pieces = len(text.ids(answer))
            mend = (
                f"is {pieces} tokens; name one that is a single token"
                if pieces > 1
                else "does not follow the prompt as a token of its own; most need a space before"
            )
            raise Unfit(f"the answer {json.dumps(answer, ensure_ascii=False)} {mend}")
        ids.append(token)
    return ids


def _sentences(ids: tuple[list[int], list[int]], start: int) -> Cut:
    """Two sentences, scored from their first difference; only that token if nothing else differs.

    The text before the difference has the same probability in both.
    """
    good, bad = ids
    same = next((i for i, (a, b) in enumerate(zip(good, bad, strict=False)) if a != b), None)
    first = min(len(good), len(bad)) if same is None else same
    one = len(good) == len(bad) and good[first + 1 :] == bad[first + 1 :]
    if one and first > start:  # there is context from which it can be predicted
        good, bad = good[: first + 1], bad[: first + 1]
    if max(len(good), len(bad)) - start < 2:
        raise Unfit("a sentence of one token; write longer ones")
    return Cut((good, bad), ([], []), max(first, 1))


def sort_out(path: Path, text: Text) -> tuple[list[Cut], list[str], int]:
    """The usable lines of a file, why the other lines cannot be used, and how many lines it has.

    Raises
    ------
    InputError : as for `read`.
    """
    lines, fit, unfit = read(path), [], []
    for line in lines:
        try:
            fit.append(cut(line, text))
        except Unfit as reason:
            unfit.append(f"line {line.number}: {reason}")
    return fit, unfit, len(lines)


def left_out(path: Path, unfit: list[str], lines: int) -> str:
    """How many lines of a file are not used, and the reasons for the first ones."""
    more = f"; and {len(unfit) - TOLD} more" if len(unfit) > TOLD else ""
    return f"{path}: {len(unfit)} of {lines} lines are not used: {'; '.join(unfit[:TOLD])}{more}"


def make(
    name: str, path: Path, text: Text, pairs: int, seed: int
) -> tuple[AnyTask, dict[str, object], str]:
    """A file's task, its row of the table, and a sentence on lines that are not used, or ''.

    If there are more lines than pairs wanted, some are drawn, in the file's order.

    Raises
    ------
    InputError : as for `read`. Unfit : fewer than 16 lines can be used; with the reason.
    """
    fit, unfit, lines = sort_out(path, text)
    if len(fit) < LEAST_PAIRS:
        reasons = f" ({'; '.join(unfit[:TOLD])})" if unfit else ""
        raise Unfit(f"{len(fit)} of {lines} lines can be used; {LEAST_PAIRS} are needed{reasons}")
    if max(len(ids) for each in fit for ids in each.ids) > LONG:
        pairs = max(LEAST_PAIRS, pairs // 2)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    drawn = np.sort(rng.permutation(len(fit))[:pairs])
    chosen = [fit[i] for i in drawn]
    of_sentences = not chosen[0].answers[0]
    start = len(text.started([]))
    task: AnyTask = (
        _of_sentences(name, chosen, start) if of_sentences else _of_prompts(name, chosen)
    )
    first = chosen[0]
    shown = [text.show([answer]) for answer in first.answers[0][:TOLD]]
    others = [text.show([answer]) for answer in first.answers[1][:TOLD]]
    if of_sentences:
        shown, others = (
            [text.show(ids[first.first :])] if len(ids) > first.first else [] for ids in first.ids
        )
    used = f"{len(fit)} of {lines} lines can be used"
    return task, {
        "words": used + (f", {len(chosen)} are drawn" if len(chosen) < len(fit) else ""),
        "pairs": len(chosen),
        "tokens": max(len(ids) for each in chosen for ids in each.ids),
        "answers": len({answer for each in chosen for some in each.answers for answer in some}),
        "clean": text.show(first.ids[0]),
        "corrupted": text.show(first.ids[1]),
        "right": " or ".join(shown),
        "wrong": " or ".join(others),
    }, left_out(path, unfit, lines) if unfit else ""  # fmt: skip


def _of_prompts(name: str, chosen: Sequence[Cut]) -> Task:
    clean, corrupted = (padded([each.ids[i] for each in chosen]) for i in range(2))
    right, wrong = (padded([each.answers[i] for each in chosen], -1) for i in range(2))
    if right.shape[1] == wrong.shape[1] == 1:
        right, wrong = right[:, 0], wrong[:, 0]
    length = np.array([len(each.ids[0]) for each in chosen])
    return Task(name, clean, corrupted, length, right, wrong)


def _of_sentences(name: str, chosen: Sequence[Cut], start: int) -> Sentences:
    longest = max(len(ids) for each in chosen for ids in each.ids)
    whole = np.stack(
        [padded([each.ids[i] for each in chosen], longest=longest) for i in range(2)], 1
    )
    length = np.array([[len(ids) for ids in each.ids] for each in chosen])
    first = np.array([each.first for each in chosen])
    at = np.arange(longest)
    counts = (at >= first[:, None, None]) & (at < length[:, :, None])
    target = np.where(counts, whole, -1)[:, :, 1:]
    return Sentences(name, whole[:, 0, :-1], whole[:, 1, :-1], length[:, 0] - 1, target, start)


def ahead(experiment: Any) -> tuple[list[str], list[str]]:
    """Before any job starts: what in the files would stop a run, and which lines are not used.

    Checks that depend on the tokenizer are possible only once the experiment has one.
    """
    section = experiment.settings.section(Circuits)
    stops: list[str] = []
    for pattern in section.files:
        if not matching(pattern):
            stops.append(f"{FILES}: {pattern}: no such file; correct the path or pattern")
    text, advice = _text_of(experiment), []
    for path in section.paths.values():
        try:
            if text is None:
                count = len(read(path))
                if count < LEAST_PAIRS:
                    stops.append(f"{path}: {count} lines; add some, {LEAST_PAIRS} are needed")
                continue
            fit, unfit, lines = sort_out(path, text)
        except InputError as fault:
            stops.append(str(fault))
            continue
        if len(fit) < LEAST_PAIRS:
            told = f"; {left_out(path, unfit, lines)}" if unfit else ""
            stops.append(
                f"{path}: {len(fit)} of {lines} lines can be used, {LEAST_PAIRS} are needed; mend "
                f"them or add some{told}"
            )
        elif unfit:
            advice.append(left_out(path, unfit, lines))
    return stops, advice


def _text_of(experiment: Any) -> Text | None:
    """The experiment's tokenizer and context length, once its tokens exist."""
    from ontogeny.corpus.build import Tokens
    from ontogeny.corpus.pieces import read_tokenizer

    files = experiment.path("tokens"), experiment.path("tokenizer")
    if not experiment.settings.section(Circuits).files or not all(map(Path.exists, files)):
        return None
    try:
        data = Tokens(files[0])
        return Text(read_tokenizer(files[1]), data.end_of_text, data.context)
    except InputError:
        return None  # reported elsewhere
