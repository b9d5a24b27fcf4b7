"""Complexity of features graded by a language model, as the paper's figure 5 has it: an option.

A grader behind an OpenAI-compatible address is shown passages at which a feature is active (half
the strongest, half at even ranks among the rest) and grades the pattern's complexity from 1 to 5.
The instructions are in grader_prompt.md. Each answer is kept as it comes, in a file named by the
digest of what was asked, so that an interrupted grading goes on where it was and nothing is paid
for twice; to ask again, delete that folder.

An answer that is not the JSON object asked for is sent back with a request to mend it; after
`ANSWERS` of them the feature has no grade. Nothing is guessed.
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
from ontogeny.corpus.build import Tokens
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.features.kinds import held_out
from ontogeny.files import InputError, digest_value, write_json, write_table
from ontogeny.progress import bar
from ontogeny.settings import Grader, Settings

if TYPE_CHECKING:
    import httpx2

PROMPT = Path(__file__).with_name("grader_prompt.md")
AGAIN = "That is not the JSON object asked for. Answer with it alone."
ANSWERS = 3  # to one question, until one is well formed
TRIES = 6  # of one request
FIRST_PAUSE = 1.0  # seconds between tries; doubles
LONGEST_PAUSE = 60.0
BEFORE, AFTER = 32, 8  # tokens shown around the marked one
Messages = list[dict[str, str]]


def parse(answer: str) -> tuple[int, str] | None:
    """Grade and pattern of a well-formed answer; None for any other."""
    try:
        found = json.loads(answer)
    except ValueError:
        return None
    if not isinstance(found, dict) or set(found) != {"pattern", "complexity"}:
        return None
    grade, pattern = found["complexity"], found["pattern"]
    fine = type(grade) is int and 1 <= grade <= 5 and isinstance(pattern, str)
    return (grade, pattern) if fine else None


def examples(activations: np.ndarray, count: int) -> np.ndarray:
    """Which of a feature's activations (A,) are shown: the strongest, then at even ranks.

    Returns indices, at most `count`, none twice, by falling activation.
    """
    order = np.argsort(-activations, kind="stable")
    if len(order) <= count:
        return order
    top = -(-count // 2)
    ranks = np.linspace(top, len(order) - 1, count - top).round().astype(int)
    return order[[*range(top), *ranks]]


def passage(tokenizer: Tokenizer, block: np.ndarray, offset: int) -> str:
    """The text around a token of a block on one line, the token between << and >>."""
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
    block, offset : (N,) of each row. count : passages to show, at most.
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
    """Asks a grader, patiently; safe to use from several threads.

    Parameters
    ----------
    stop : once set, no further request is begun and none is waited for; a failure sets it.

    Raises
    ------
    InputError : the environment variable that is to hold the key is not set.
    """

    def __init__(self, g: Grader, stop: threading.Event) -> None:
        import httpx2

        self._g, self._stop = g, stop
        self._key = os.environ.get(g.key_variable, "") if g.key_variable else ""
        if g.key_variable and not self._key:
            raise InputError(
                f"grader.key_variable: {g.key_variable} is not set in the environment; export the "
                "key there, or set grader.key_variable: null where none is needed"
            )
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._http = httpx2.Client(headers=headers, timeout=g.timeout)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ask(self, messages: Messages) -> str:
        """The grader's answer to a conversation.

        Raises
        ------
        InputError : it refuses, or answers nothing of use in `TRIES` tries.
        CancelledError : `stop` was set.
        """
        import httpx2

        url = f"{self._g.url.rstrip('/')}/chat/completions"
        body = {"model": self._g.model, "messages": messages, "temperature": 0}
        for tried in range(1, TRIES + 1):
            if self._stop.is_set():
                raise CancelledError
            asked = None
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
                    why = "answers otherwise than an OpenAI-compatible address"
                else:
                    why = f"answers {response.status_code}{self._said(response)}"
                    if response.status_code not in (408, 429) and response.status_code < 500:
                        self._stop.set()
                        raise InputError(
                            f"grader: {url} {why}; mend grader.url, grader.model or the key in "
                            "grader.key_variable"
                        )
                    asked = re.fullmatch(r"\d+", response.headers.get("Retry-After", ""))
            pause = float(asked[0]) if asked else FIRST_PAUSE * 2 ** (tried - 1)
            if tried < TRIES:
                self._stop.wait(min(pause, LONGEST_PAUSE))
        self._stop.set()
        raise InputError(
            f"grader: {url} {why}, {TRIES} times; run again later, what is graded is kept"
        )

    def _said(self, response: httpx2.Response) -> str:
        """The beginning of an error's body, in brackets, without the key should it be there."""
        said = " ".join(response.text.split())
        said = said.replace(self._key, "…")[:200] if self._key else said[:200]
        return f" ({said})" if said else ""


def answered(client: Client, messages: Messages, kept: Path) -> dict[str, Any]:
    """A question's outcome: grade and pattern, None without a well-formed answer; answers.

    Parameters
    ----------
    kept : file of the answers so far, written after each.
    """
    answers: list[str] = json.loads(kept.read_text())["answers"] if kept.exists() else []
    talk = list(messages)
    for number in range(ANSWERS):
        if number == len(answers):
            answers.append(client.ask(talk))
            write_json(kept, {"question": messages[1]["content"], "answers": answers})
        found = parse(answers[number])
        if found is not None:
            return {"grade": found[0], "pattern": found[1], "answers": number + 1}
        talk += [
            {"role": "assistant", "content": answers[number]},
            {"role": "user", "content": AGAIN},
        ]
    return {"grade": None, "pattern": None, "answers": ANSWERS}


def ask_all(g: Grader, questions: list[Messages], cache: str | Path) -> list[dict[str, Any]]:
    """Outcomes of all questions in their order, `g.parallel` asked at once.

    Parameters
    ----------
    cache : folder that keeps every answer, by what was asked of whom.
    """
    stop = threading.Event()
    client = Client(g, stop)
    outcomes: list[dict[str, Any]] = [{} for _ in questions]
    with (
        bar("grading", len(questions), "features") as progress,
        ThreadPoolExecutor(g.parallel) as pool,
    ):
        jobs = {}
        for i, messages in enumerate(questions):
            name = digest_value([g.url, g.model, messages])
            kept = Path(cache) / f"{name}.json"
            jobs[pool.submit(answered, client, messages, kept)] = i
        try:
            for job in as_completed(jobs):
                try:
                    outcomes[jobs[job]] = job.result()
                except CancelledError:
                    continue  # for the failure of another, which is among the jobs
                progress.update()
        finally:
            stop.set()  # what is under way is paid for: it ends, and its answer is kept
            pool.shutdown(cancel_futures=True)
            client.close()
    return outcomes


def grade(
    s: Settings,
    crosscoder: str | Path,
    activations: str | Path,
    tokens: str | Path,
    tokenizer: str | Path,
    span: str | Path,
    kept: str | Path,
    output: str | Path,
) -> None:
    """Write the grades of a sample of a crosscoder's features.

    Parameters
    ----------
    crosscoder : folder of a seed. activations : folder. tokens : tokens.h5.
    tokenizer : tokenizer.json. span : table of `span.measure`, whose features are sampled.
    kept : folder of the answers. output : Parquet, a row a feature; feature, grade (1 to 5,
        missing without a well-formed answer), pattern (the grader's words), answers (how many it
        took).

    Raises
    ------
    InputError : no grader in the settings, one that cannot be asked, or no well-formed answer.
    """
    g = s.grader
    if g is None:
        raise InputError("grader: not given; set grader.url and grader.model to have one")
    known = pd.read_parquet(span)["feature"].unique()
    rng = np.random.default_rng(s.analysis.seed)
    chosen = np.sort(rng.choice(known, min(g.features, len(known)), replace=False))
    f, position = held_out(Crosscoder.load(crosscoder, devices.choose(s.device)), activations)
    block, offset = position.T.astype(np.int64)
    used, block_of = np.unique(block, return_inverse=True)
    blocks, columns = Tokens(tokens).take(used), sparse.csc_array(f)
    decoder = Tokenizer.from_file(str(tokenizer))
    questions = [
        question(columns, int(feature), decoder, blocks, block_of, offset, g.examples)
        for feature in chosen
    ]
    found = pd.DataFrame(ask_all(g, questions, kept))
    if found["grade"].isna().all():
        raise InputError(
            f"grader.model: {g.model} gave the JSON object asked for to none of {len(chosen)} "
            f"questions; its answers are in {kept}; use another model"
        )
    found.insert(0, "feature", chosen)
    write_table(output, found.astype({"grade": "Int64"}))
