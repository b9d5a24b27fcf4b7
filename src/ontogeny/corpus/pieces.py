"""What tokens look like: their bytes, and how a run of them reads, whatever stands in them.

A token of a byte-level tokenizer is bytes, and need not be whole characters: a run of tokens is
decoded as one, a character stands with the token that its first byte is in, and bytes that are no
UTF-8 are written out, as in \\xff.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from ontogeny.files import InputError

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE = "▁"  # SentencePiece's
SHOWN = {"\n": "↵", "\t": "⇥"}


def _alphabet() -> dict[str, int]:
    """The byte that each letter of the byte-level alphabet stands for (GPT-2's)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [*map(chr, printable), *(chr(256 + i) for i in range(len(others)))]
    return dict(zip(letters, [*printable, *others], strict=True))


def byte_letters(raw: bytes) -> str:
    """The name that bytes have among the pieces of a byte-level tokenizer."""
    letters = {byte: letter for letter, byte in _alphabet().items()}
    return "".join(letters[byte] for byte in raw)


def token_bytes(tokenizer: Tokenizer, vocabulary: int) -> list[bytes]:
    """The bytes that each id stands for in text, one an id; an id without token shows its number.

    Known are byte-level tokenizers, SentencePiece's (with or without bytes of their own), and
    WordPiece; of others, a token's own name.
    """
    parts = _types(json.loads(tokenizer.to_str())["decoder"])
    added = tokenizer.get_added_tokens_decoder()
    alphabet = _alphabet()
    found = []
    for number in range(vocabulary):
        name = added[number].content if number in added else tokenizer.id_to_token(number)
        if name is None:
            found.append(f"<{number}>".encode())
        elif number in added:
            found.append(name.encode())
        elif "ByteLevel" in parts and all(letter in alphabet for letter in name):
            found.append(bytes(alphabet[letter] for letter in name))
        elif "ByteFallback" in parts and (byte := BYTE.fullmatch(name)):
            found.append(bytes([int(byte[1], 16)]))
        elif "WordPiece" in parts:
            found.append((name[2:] if name.startswith("##") else f" {name}").encode())
        else:
            found.append(name.replace(SPACE, " ").encode())
    return found


def _types(decoder: dict[str, object] | None) -> set[str]:
    """The types of a decoder and of all that it is made of."""
    if decoder is None:
        return set()
    inner = decoder.get("decoders", [])
    assert isinstance(inner, list)
    return {str(decoder["type"])}.union(*map(_types, inner))


def read_tokens(path: str | Path, vocabulary: int) -> list[bytes]:
    """`token_bytes` of a tokenizer.json.

    Raises
    ------
    InputError : it is not one.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower class
        why = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not a tokenizer; delete it to make it again ({why})") from None
    return token_bytes(tokenizer, vocabulary)


class Vocabulary:
    """Tokens as text.

    Parameters
    ----------
    tokens : the bytes of each id.
    """

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self.tokens = list(tokens)
        self._alone = [_whole(token) for token in self.tokens]

    def one(self, number: int) -> str:
        """A token by itself."""
        return self._alone[number] or self.texts([number])[0]

    def texts(self, numbers: Sequence[int] | np.ndarray) -> list[str]:
        """A run of tokens, a string each. Together they are the text that the run stands for.

        A token that only goes on with a character of the one before is ''.
        """
        ids = [int(number) for number in numbers]
        alone = [self._alone[number] for number in ids]
        if None not in alone:
            return [text for text in alone if text is not None]
        found = [""] * len(ids)
        owner = np.repeat(np.arange(len(ids)), [len(self.tokens[n]) for n in ids])
        at = 0
        whole = b"".join(self.tokens[n] for n in ids)
        for letter in whole.decode("utf-8", "surrogateescape"):
            size = len(letter.encode("utf-8", "surrogateescape"))
            found[owner[at]] += _written(letter)
            at += size
        return found


def _whole(token: bytes) -> str | None:
    """A token's text where it is whole characters, else None."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return None


def _written(letter: str) -> str:
    """A character, or, for a byte that is part of none, the byte written out."""
    code = ord(letter)
    return rf"\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else letter


def visible(text: str) -> str:
    r"""Text of which every character shows: controls and what moves other text are written out.

    A newline is ↵, a tab ⇥; other controls, and what has no glyph of its own (formats such as
    right-to-left marks, lone surrogates, unassigned), are codes such as \x1b and \u{202e}.
    """
    return "".join(_visible(letter) for letter in text)


def _visible(letter: str) -> str:
    if letter in SHOWN:
        return SHOWN[letter]
    kind = unicodedata.category(letter)
    if kind == "Cc":
        return rf"\x{ord(letter):02x}"
    if kind in ("Cf", "Cs", "Cn", "Co", "Zl", "Zp"):
        return rf"\u{{{ord(letter):x}}}"
    return letter
