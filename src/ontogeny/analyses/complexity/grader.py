"""Grading of the complexity of features by a language model, as in the paper's figure 5 (optional).

A grader behind an OpenAI-compatible address is shown passages in which a feature is active (half
of them the strongest, half at even ranks among the rest) and grades the pattern's complexity from
1 to 5. The instructions are in grader_prompt.md. Each answer is saved on arrival, in a file named
after the digest of the question, so that an interrupted grading resumes and nothing is paid for
twice. To ask again, delete that folder.

An answer that is not the requested JSON object is returned with a request to correct it. After
`ANSWERS` such answers the feature has no grade. Nothing is guessed.
"""

from __future__ import annotations

import json
import os
import re
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse
from tokenizers import Tokenizer

from ontogeny import devices
from ontogeny.analyses.complexity.settings import Complexity, Grader
from ontogeny.corpus.build import Tokens
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.features.held_out import held_out
from ontogeny.files import InputError, digest_value, read_table, write_json, write_table
from ontogeny.progress import bar
from ontogeny.settings import Settings

if TYPE_CHECKING:
    import httpx2

PROMPT = Path(__file__).with_name("grader_prompt.md")
AGAIN = "That is not the JSON object that was asked for. Answer with that object alone."
ANSWERS = 3  # most answers to one question until one is well formed
TRIES = 6  # most attempts of one request
FIRST_PAUSE = 1.0  # seconds between attempts; doubles each time
LONGEST_PAUSE = 60.0
BEFORE, AFTER = 32, 8  # number of tokens shown around the marked one
KEY = "complexity.grader"  # section of the settings
Messages = list[dict[str, str]]


def parse(answer: str) -> tuple[int, str] | None:
    """Grade and pattern of a well-formed answer; None for any other answer."""
    try:
        value = json.loads(answer)
    except ValueError:
        return None
    if not isinstance(value, dict) or set(value) != {"pattern", "complexity"}:
        return None
    grade, pattern = value["complexity"], value["pattern"]
    fine = type(grade) is int and 1 <= grade <= 5 and isinstance(pattern, str)
    return (grade, pattern) if fine else None


def examples(activations: np.ndarray, count: int) -> np.ndarray:
    """Which of a feature's activations (A,) to show: the strongest ones, then some at even ranks.

    Returns at most `count` different indices, by decreasing activation.
    """
    order = np.argsort(-activations, kind="stable")
    if len(order) <= count:
        return order
    top = -(-count // 2)
    ranks = np.linspace(top, len(order) - 1, count - top).round().astype(int)
    return order[[*range(top), *ranks]]


def passage(tokenizer: Tokenizer, block: np.ndarray, offset: int) -> str:
    """The text around a token of a block as one line, with the token between << and >>."""
    parts = (
        block[max(0, offset - BEFORE) : offset],
        block[offset : offset + 1],
        block[offset + 1 : offset + 1 + AFTER],
    )
    before, here, after = (
        tokenizer.decode(part.tolist(), skip_special_tokens=False) for part in parts
    )
    return re.sub(r"\r\n|[\n\r\v\f\x85\u2028\u2029]", "⏎", f"{before}<<{here}>>{after}")


def question(
    f: sparse.csc_array,
    feature: int,
    tokenizer: Tokenizer,
    blocks: np.ndarray,
    block: np.ndarray,
    offset: np.ndarray,
    count: int,
) -> Messages:
    """The messages that ask for a feature's grade.

    Parameters
    ----------
    f : (N, F) held-out activations. blocks : (blocks, context) token ids.
    block, offset : (N,) of each row. count : maximum number of passages to show.
    """
    part = slice(f.indptr[feature], f.indptr[feature + 1])
    rows, values = f.indices[part], f.data[part]
    lines = [
        f"{values[i] / values.max():.0%}: {passage(tokenizer, blocks[block[r]], int(offset[r]))}"
        for i, r in ((i, rows[i]) for i in examples(values, count))
    ]
    return [
        {"role": "system", "content": PROMPT.read_text(encoding="utf-8")},
        {"role": "user", "content": "\n".join(lines)},
    ]


class Client:
    """Client that asks a grader and retries; it can be used from several threads.

    Parameters
    ----------
    stop : once set, no request is started and no retry is awaited; a failure sets it.

    Raises
    ------
    InputError : the environment variable for the key is not set.
    """

    def __init__(self, grader: Grader, stop: threading.Event) -> None:
        import httpx2

        self._grader, self._stop = grader, stop
        variable = grader.key_variable
        self._key = os.environ.get(variable, "") if variable else ""
        if variable and not self._key:
            raise InputError(
                f"{KEY}.key_variable: {variable} is not set in the environment; export the key "
                f"there, or set {KEY}.key_variable: null where none is needed"
            )
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._http = httpx2.Client(headers=headers, timeout=grader.timeout)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ask(self, messages: Messages) -> str:
        """The grader's answer to a conversation.

        Raises
        ------
        InputError : the grader refuses, or gives no usable answer in `TRIES` attempts.
        CancelledError : `stop` was set.
        """
        import httpx2

        url = f"{self._grader.url.rstrip('/')}/chat/completions"
        body = {"model": self._grader.model, "messages": messages, "temperature": 0}
        for tried in range(1, TRIES + 1):
            if self._stop.is_set():
                raise CancelledError
            wait = None
            try:
                response = self._http.post(url, json=body)
            except httpx2.TransportError as error:
                why = f"cannot be reached ({type(error).__name__})"
            else:
                if response.status_code == 200:
                    try:
                        content = response.json()["choices"][0]["message"]["content"]
                    except (ValueError, LookupError, TypeError):
                        content = None
                    if isinstance(content, str):
                        return content
                    why = "does not answer like an OpenAI-compatible address"
                else:
                    why = f"answers {response.status_code}{self._beginning(response)}"
                    if response.status_code not in (408, 429) and response.status_code < 500:
                        self._stop.set()
                        raise InputError(
                            f"{KEY}: {url} {why}; correct {KEY}.url, {KEY}.model or the key in "
                            f"{KEY}.key_variable"
                        )
                    wait = re.fullmatch(r"\d+", response.headers.get("Retry-After", ""))
            pause = float(wait[0]) if wait else FIRST_PAUSE * 2 ** (tried - 1)
            if tried < TRIES:
                self._stop.wait(min(pause, LONGEST_PAUSE))
        self._stop.set()
        raise InputError(
            f"{KEY}: {url} {why}, {TRIES} times; run again later: the grades so far are kept"
        )

    def _beginning(self, response: httpx2.Response) -> str:
        """The beginning of an error's body, in brackets, with the key removed if it occurs."""
        text = " ".join(response.text.split())
        text = text.replace(self._key, "…")[:200] if self._key else text[:200]
        return f" ({text})" if text else ""


def answered(client: Client, messages: Messages, kept: Path) -> dict[str, Any]:
    """A question's outcome: grade and pattern, None without a well-formed answer, and all answers.

    Parameters
    ----------
    kept : file with the answers so far, written after each answer.
    """
    answers: list[str] = json.loads(kept.read_text())["answers"] if kept.exists() else []
    talk = list(messages)
    for number in range(ANSWERS):
        if number == len(answers):
            answers.append(client.ask(talk))
            write_json(kept, {"question": messages[1]["content"], "answers": answers})
        parsed = parse(answers[number])
        if parsed is not None:
            return {"grade": parsed[0], "pattern": parsed[1], "answers": number + 1}
        talk += [
            {"role": "assistant", "content": answers[number]},
            {"role": "user", "content": AGAIN},
        ]
    return {"grade": None, "pattern": None, "answers": ANSWERS}


def ask_all(grader: Grader, questions: list[Messages], cache: Path) -> list[dict[str, Any]]:
    """Outcomes of all questions in their order; `grader.parallel` are asked at the same time.

    Parameters
    ----------
    cache : folder that keeps every answer, by grader and question.
    """
    stop = threading.Event()
    client = Client(grader, stop)
    outcomes: list[dict[str, Any]] = [{} for _ in questions]
    with (
        bar("grading", len(questions), "features") as progress,
        ThreadPoolExecutor(grader.parallel) as pool,
    ):
        jobs = {}
        for i, messages in enumerate(questions):
            name = digest_value([grader.url, grader.model, messages])
            jobs[pool.submit(answered, client, messages, cache / f"{name}.json")] = i
        try:
            for job in as_completed(jobs):
                try:
                    outcomes[jobs[job]] = job.result()
                except CancelledError:
                    continue  # because another job failed; its result raises the error
                progress.update()
        finally:
            stop.set()  # requests under way are paid for: let them finish and keep their answers
            pool.shutdown(cancel_futures=True)
            client.close()
    return outcomes


def grade(
    settings: Settings,
    crosscoder: Path,
    activations: Path,
    tokens: Path,
    tokenizer: Path,
    span: Path,
    answers: Path,
    grades: Path,
) -> None:
    """Write the grades of a sample of a crosscoder's features.

    Parameters
    ----------
    crosscoder : folder of a seed. activations : folder. tokens : tokens.h5.
    tokenizer : tokenizer.json. span : table of `span.measure`; its features are sampled.
    answers : folder that keeps them. grades : Parquet, one row per feature, see declaration.py.

    Raises
    ------
    InputError : the settings have no grader, it cannot be reached, or no answer is well formed.
    """
    grader = settings.section(Complexity).grader
    if grader is None:
        raise InputError(f"{KEY}: not set; set {KEY}.url and {KEY}.model to use a grader")
    known = read_table(span)["feature"].unique()
    rng = np.random.default_rng(settings.analysis.seed)
    chosen = np.sort(rng.choice(known, min(grader.features, len(known)), replace=False))
    trained = Crosscoder.load(crosscoder, devices.choose(settings.device))
    f, position = held_out(trained, activations)
    block, offset = position.T.astype(np.int64)
    used, block_of = np.unique(block, return_inverse=True)
    blocks, columns = Tokens(tokens).take(used), sparse.csc_array(f)
    decoder = Tokenizer.from_file(str(tokenizer))
    questions = [
        question(columns, int(feature), decoder, blocks, block_of, offset, grader.examples)
        for feature in chosen
    ]
    table = pd.DataFrame(ask_all(grader, questions, answers))
    if table["grade"].isna().all():
        raise InputError(
            f"{KEY}.model: {grader.model} answered none of {len(chosen)} questions with the JSON "
            f"object that was asked for (its answers are in {answers}); use another model"
        )
    table.insert(0, "feature", chosen)
    write_table(grades, table.astype({"grade": "Int64"}))
