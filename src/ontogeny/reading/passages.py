"""Passages: text as a model reads it, and which of its positions have activations."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from ontogeny.corpus.build import Tokens
from ontogeny.corpus.pieces import read_tokenizer
from ontogeny.files import InputError
from ontogeny.settings import Settings


@dataclass(frozen=True)
class Passage:
    """Tokens that are read together, starting at the first position of a context.

    Attributes
    ----------
    ids : (T,) int64. before : number of them that precede the passage itself, such as the token
        that ends the previous text; they are read but not shown.
    rows : (T,) bool, positions with activations: those that the dictionary was trained on.
    """

    ids: np.ndarray
    before: int
    rows: np.ndarray


def of_ids(settings: Settings, tokens: Tokens, ids: np.ndarray, before: int = 0) -> Passage:
    """A passage of known tokens; `activations.leave_out` decides which have no activations.

    Parameters
    ----------
    ids : (T,). before : as for `Passage`.
    """
    section = settings.activations
    rows = ~np.isin(ids, tokens.marks.ids(section.leave_out, tokens.vocabulary))
    rows[:before] = False
    if "first" in section.leave_out:
        rows[0] = False
    return Passage(ids.astype(np.int64), before, rows)


def opening(settings: Settings, tokens: Tokens) -> list[int]:
    """Tokens that precede a text: [the one that begins a block], or [the one that ends a text].

    [] if the tokenizer has neither. With it, the first token of the text has a loss, and the text
    begins as texts begin in the model's training data.
    """
    mark = tokens.marks.bos if settings.corpus.bos else tokens.end_of_text
    return [] if mark is None else [mark]


def of_text(settings: Settings, tokens: Tokens, tokenizer: Path, text: str) -> Passage:
    """A text as a passage, after its `opening`.

    Raises
    ------
    InputError : the text is empty or longer than a context, or the tokenizer is damaged or has no
        token for a part of the text.
    """
    backend = read_tokenizer(tokenizer)
    backend.no_truncation()
    backend.no_padding()
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text is not valid Unicode ({error.reason}); write it again"
        ) from None
    encoding: Encoding = backend.encode(text, add_special_tokens=False)
    if not encoding.ids:
        raise InputError("the text has no tokens; write at least one word")
    _check_known(json.loads(backend.to_str())["model"], backend, encoding, text)
    start = opening(settings, tokens)
    room = tokens.context - len(start)
    if len(encoding.ids) > room:
        end = encoding.offsets[room - 1][1]
        raise InputError(
            f"the text has {len(encoding.ids)} tokens, but a context holds only {room}; shorten "
            f"it, for example to its first {end} characters"
        )
    return of_ids(settings, tokens, np.array(start + encoding.ids), len(start))


def _check_known(model: dict[str, Any], backend: Tokenizer, encoding: Encoding, text: str) -> None:
    """Raise InputError if the tokenizer replaced a part of the text by its unknown token."""
    name = model.get("unk_token")
    unknown = model.get("unk_id") if name is None else backend.token_to_id(name)
    if unknown is None or unknown not in encoding.ids:
        return
    first, last = encoding.offsets[encoding.ids.index(unknown)]
    raise InputError(
        f"the tokenizer has no token for {text[first:last]!r}, characters {first} to {last} of the "
        "text; leave them out"
    )
