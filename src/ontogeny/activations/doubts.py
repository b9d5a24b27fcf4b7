"""Doubts about text, rows and trainings: a sentence each, with the setting that would help.

ontogeny/doubts.py describes where doubts are shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ontogeny.activations import outliers
from ontogeny.activations.store import open_checked
from ontogeny.corpus import arrays, text
from ontogeny.corpus.build import Tokens
from ontogeny.corpus.marks import Marks, of_folder
from ontogeny.corpus.shares import fillers
from ontogeny.experiment import Experiment
from ontogeny.files import InputError
from ontogeny.settings import Settings
from ontogeny.snapshots import local

BLOCKS = 4096  # most blocks of training text in which ids are counted
L0_MISSED = 0.1  # share of k by which L0 on held-out text may differ from it
L0_OF_LONG = 0.15  # the same after a long training, which fits its own rows slightly better
LONG = 1000  # steps


def before(settings: Settings) -> list[str]:
    """Doubts about the text, the rows and the trainings, before any job runs."""
    return [*_short_trainings(settings), *_of_text(settings)]


def found(experiment: Experiment) -> list[str]:
    """Doubts that follow from what the stages have measured."""
    return [*of_tokens(experiment), *_of_rows(experiment), *_of_thresholds(experiment)]


# Before


def _short_trainings(s: Settings) -> Iterator[str]:
    for name, c in s.crosscoders.items():
        trained = c.steps * c.batch_rows
        if c.dead_after_rows > trained:
            yield (
                f"crosscoders.{name}.dead_after_rows: {c.dead_after_rows:,} exceeds the "
                f"{trained:,} training rows, so training cannot recognise dead features"
                + (" and AuxK never starts" if c.aux else "")
                + f"; set at most {max(1, trained // 4)}"
            )


def _tokenizer(s: Settings) -> tuple[Any, Marks] | None:
    """The tokenizer of a local model and its marks, if they can be read before a run."""
    if s.snapshots.local is None:
        return None
    try:
        sources = local.tokenizer_sources(s.snapshots.local, s.snapshots.chosen)
    except (InputError, OSError):
        return None
    return of_folder(sources[0].parent)


def _of_text(s: Settings) -> Iterator[str]:
    """Doubts about the tokenizer and, if it is to be tokenised, about the text, before a run."""
    empty = text.empty(s.corpus)
    if empty:
        others = f", and {len(empty) - 1} further files" if len(empty) > 1 else ""
        yield (
            f"corpus.files.paths: {empty[0]} is empty{others}; restore any file that should have "
            "text"
        )
    known = _tokenizer(s)
    backend, marks = known or (None, Marks())
    if marks.first is not None and not s.corpus.bos and s.corpus.tokens is None:
        yield missing_bos(_name(backend, marks.first))
    if s.corpus.tokens is None:
        return
    context = s.corpus.context - s.corpus.bos
    try:
        array = arrays.opened(s.corpus.tokens, context)
    except InputError:
        return  # it is reported as a fault
    first = s.corpus.held_out_blocks
    last = first + min(BLOCKS, s.corpus.train_blocks)
    if array.ndim == 1:
        array = array[first * context : last * context]
        blocks = np.asarray(array[: len(array) // context * context]).reshape(-1, context)
    else:
        blocks = np.asarray(array[first:last])
    if not blocks.size or blocks.min() < 0 or blocks.max() >= arrays.MOST_IDS:
        return
    yield from _of_blocks(blocks.astype(np.int64), s, marks, backend)


def _of_blocks(blocks: np.ndarray, s: Settings, marks: Marks, backend: Any) -> Iterator[str]:
    leave_out = list(s.activations.leave_out)
    if s.corpus.tokens is not None and s.corpus.tokens.end_of_text is not None:
        marks = Marks(s.corpus.tokens.end_of_text, marks.bos, marks.padding, marks.special)
    try:
        left_out = marks.ids(leave_out, arrays.MOST_IDS)
    except InputError:
        left_out = []
    for number, share in fillers(blocks, left_out, marks.padding):
        key = "padding" if number == marks.padding else str(number)
        yield (
            f"id {number}{_name(backend, number)} is {share:.0%} of the training rows, which "
            f"looks like padding; set activations.leave_out: {_listed([*leave_out, key])}"
        )


def missing_bos(name: str) -> str:
    """A sentence that the blocks lack the token that the tokenizer puts before a text."""
    return (
        f"the tokenizer puts a token{name} before a text, but the blocks of the corpus begin "
        "without it; if the model was trained with it, set corpus.bos: true, and bos in "
        "activations.leave_out"
    )


def _name(backend: Any, number: int) -> str:
    token = None if backend is None else backend.id_to_token(number)
    return "" if token is None else f" ({token})"


def _listed(names: list[Any]) -> str:
    return "[" + ", ".join(map(str, dict.fromkeys(names))) + "]"


# What the stages measured


def of_tokens(experiment: Experiment) -> Iterator[str]:
    """Doubts about the tokens: ids that fill whole blocks, and a missing mark."""
    if not experiment.path("tokens").exists():
        return
    try:
        backend = Tokenizer.from_file(str(experiment.path("tokenizer")))
    except Exception:  # the library raises no narrower class
        backend = None  # only names are missing in this case
    held = Tokens(experiment.path("tokens"))
    first, last = held.splits["train"]
    blocks = held.take(np.arange(first, min(last, first + BLOCKS))).astype(np.int64)
    mark = held.marks.first
    if mark is not None and (blocks[:, 0] != mark).mean() > 0.5:
        yield missing_bos(_name(backend, mark))
    yield from _of_blocks(blocks, experiment.settings, held.marks, backend)


def _of_rows(experiment: Experiment) -> Iterator[str]:
    """Streams that are constant at a snapshot, and rows whose norm is unusual."""
    settings = experiment.settings
    for site in experiment.sites:
        stack = experiment.path("stack", site=site)
        if not stack.exists():
            continue
        with open_checked(stack) as file:
            steps, scales = file.attrs["steps"], file.attrs["scales"]
        constant = [int(step) for step, scale in zip(steps, scales, strict=True) if scale == 0]
        if constant:
            yield (
                f"{site} is constant at step {', '.join(map(str, constant))}: that site takes no "
                "part in training, and features are absent there (strength 0)"
            )
        yield from _of_site(experiment, site, settings)


def _of_site(experiment: Experiment, site: str, settings: Settings) -> Iterator[str]:
    by_kind: dict[tuple[str, int], list[tuple[int, dict[str, Any]]]] = {}
    for step in experiment.steps:
        path = experiment.path("held_out", site=site, step=step)
        if not path.exists():
            continue
        with open_checked(path) as file:
            told = json.loads(file.attrs.get("outliers", "[]"))
        for each in told:
            number = -1 if each["kind"] == "norm" else each["number"]
            by_kind.setdefault((each["kind"], number), []).append((step, each))
    for seen in by_kind.values():
        step, worst = max(seen, key=lambda one: one[1]["share"])
        others = f" (and at {len(seen) - 1} further snapshots)" if len(seen) > 1 else ""
        yield f"{site} at step {step}{others}: {outliers.told(worst)}; {_mend(worst, settings)}"


def _mend(found: dict[str, Any], settings: Settings) -> str:
    leave_out = list(settings.activations.leave_out)
    if found["kind"] == "id":
        return f"set activations.leave_out: {_listed([*leave_out, found['number']])}"
    if found["kind"] == "position" and found["number"] == 0:
        return f"set activations.leave_out: {_listed([*leave_out, 'first'])}"
    return f"set activations.leave_out_norm: {outliers.FAR:.0f}"


def _of_thresholds(experiment: Experiment) -> Iterator[str]:
    """Dictionaries whose L0 on held-out text differs from k."""
    for name, c in experiment.settings.crosscoders.items():
        judged = c.activation == "batch_topk" and c.train_decoder  # else a baseline
        for seed in c.seeds if judged else ():
            if not experiment.path("fidelity", crosscoder=name, seed=seed).exists():
                continue
            table = experiment.table("fidelity", name, seed=seed)
            l0 = float(table.loc[table["explained_variance"].notna(), "l0"].mean())
            if abs(l0 / c.k - 1) > (L0_OF_LONG if c.steps >= LONG else L0_MISSED):
                yield (
                    f"crosscoders.{name}.k: L0 of seed {seed} is {l0:.1f} on held-out text, but k "
                    f"is {c.k}: the threshold from training does not fit held-out text; train on "
                    "more rows (corpus.train_blocks) or for longer"
                )
