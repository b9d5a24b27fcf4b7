"""Ids of a tokenizer that are not text: those that end, begin and pad a text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ontogeny.files import InputError


@dataclass(frozen=True)
class Marks:
    """The marks of a tokenizer; None and () for those that it lacks.

    Attributes
    ----------
    end, bos, padding : ids of the tokens that end, begin and pad a text.
    special : ids of all special tokens, ascending.
    first : id that the tokenizer itself puts before a text, as Llama's tokenizers do.
    """

    end: int | None = None
    bos: int | None = None
    padding: int | None = None
    special: tuple[int, ...] = ()
    first: int | None = None

    def ids(self, leave_out: list[Any], vocabulary: int) -> list[int]:
        """Ids that `activations.leave_out` names, ascending; entries for positions are ignored.

        Raises
        ------
        InputError : the tokenizer has no such token, or no such id.
        """
        named = {"end_of_text": self.end, "bos": self.bos, "padding": self.padding}
        ids: set[int] = set()
        for name in leave_out:
            if name == "special":
                every = (*self.special, self.end, self.bos, self.padding)
                ids |= {mark for mark in every if mark is not None}
            elif isinstance(name, int):
                if name >= vocabulary:
                    raise InputError(
                        f"activations.leave_out: {name} is not an id of the tokenizer, which has "
                        f"only ids below {vocabulary}; correct it"
                    )
                ids.add(name)
            elif named.get(name) is not None:
                ids.add(int(named[name] or 0))
            elif name in ("bos", "padding"):
                raise InputError(
                    f"activations.leave_out: the tokenizer has no {name} token; remove {name}, or "
                    "write the id that the text has there, as in [end_of_text, 0]"
                )
        return sorted(ids)


def put_first(backend: Tokenizer) -> int | None:
    """The id that a tokenizer puts before a text, or None."""
    plain = backend.encode("a", add_special_tokens=False).ids
    marked = backend.encode("a", add_special_tokens=True).ids
    return marked[0] if marked and marked[0] not in plain[:1] else None


def of_tokenizer(tokenizer: Any) -> Marks:
    """The marks of a tokenizer of transformers.

    The end of a text is the end-of-text token or, if there is none, the token that begins or
    separates texts.
    """
    ends = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.sep_token_id)
    first = put_first(tokenizer.backend_tokenizer)
    bos = tokenizer.bos_token_id
    return Marks(
        next((end for end in ends if end is not None), None),
        first if bos is None else bos,
        tokenizer.pad_token_id,
        tuple(sorted(set(tokenizer.all_special_ids))),
        first,
    )


def of_folder(folder: Path) -> tuple[Tokenizer, Marks] | None:
    """A tokenizer.json and its marks, read without transformers; None if that is not possible.

    It serves early checks only: the corpus stage reads the tokenizer as transformers does.
    """
    try:
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
        given = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        backend.no_truncation()
        backend.no_padding()
        first = put_first(backend)
    except Exception:  # the library raises no narrower class
        return None
    added = backend.get_added_tokens_decoder()

    def of(name: str) -> int | None:
        token = given.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        return backend.token_to_id(text) if isinstance(text, str) else None

    bos = of("bos_token")
    special = tuple(sorted(number for number, token in added.items() if token.special))
    end = of("eos_token")
    return backend, Marks(end, first if bos is None else bos, of("pad_token"), special, first)
