"""How tokens are shown: their bytes, and readable text for any run of them.

A token of a byte-level tokenizer consists of bytes, which need not be whole characters. So a run of
tokens is decoded as a whole, a character belongs to the token with its first byte, and bytes that
are not UTF-8 are written out, as in \\xff.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from ontogeny.files import InputError, one_line

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE = "▁"  # SentencePiece's
SHOWN = {"\n": "↵", "\t": "⇥"}
HIDDEN = ("Cf", "Cs", "Cn", "Co", "Zl", "Zp")  # categories of characters without a glyph


def alphabet() -> dict[str, int]:
    """The byte for each letter of the byte-level alphabet (GPT-2's)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [*map(chr, printable), *(chr(256 + i) for i in range(len(others)))]
    return dict(zip(letters, [*printable, *others], strict=True))


def token_bytes(tokenizer: Tokenizer, vocabulary: int) -> list[bytes]:
    """The bytes of each id in text, one entry per id; an id without a token shows its number.

    Byte-level tokenizers, SentencePiece's (with or without byte tokens) and WordPiece are known;
    for others, it is the token's name.
    """
    decoders = _types(json.loads(tokenizer.to_str())["decoder"])
    added = tokenizer.get_added_tokens_decoder()
    letters = alphabet()

    def one(number: int) -> bytes:
        if number in added:
            return added[number].content.encode()
        name = tokenizer.id_to_token(number)
        if name is None:
            return f"<{number}>".encode()
        if "ByteLevel" in decoders and all(letter in letters for letter in name):
            return bytes(letters[letter] for letter in name)
        if "ByteFallback" in decoders and (byte := BYTE.fullmatch(name)):
            return bytes([int(byte[1], 16)])
        if "WordPiece" in decoders:
            return (name[2:] if name.startswith("##") else f" {name}").encode()
        return name.replace(SPACE, " ").encode()

    return [one(number) for number in range(vocabulary)]


def _types(decoder: dict[str, object] | None) -> set[str]:
    """The types of a decoder and of all its parts."""
    if decoder is None:
        return set()
    inner = decoder.get("decoders", [])
    assert isinstance(inner, list)
    return {str(decoder["type"])}.union(*map(_types, inner))


def read_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json that this package wrote; InputError if it is not one."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower class
        raise InputError(
            f"{path}: not a tokenizer; delete it to make it again ({one_line(error, 200)})"
        ) from None


def read_tokens(path: str | Path, vocabulary: int) -> list[bytes]:
    """`token_bytes` of a tokenizer.json; InputError if it is not one."""
    return token_bytes(read_tokenizer(path), vocabulary)


class Vocabulary:
    """Tokens as text; `tokens` holds the bytes of each id."""

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self.tokens = list(tokens)
        self._alone = [_whole(token) for token in self.tokens]

    def one(self, number: int) -> str:
        """A single token as text."""
        return self._alone[number] or self.texts([number])[0]

    def texts(self, numbers: Sequence[int] | np.ndarray) -> list[str]:
        """A run of tokens as strings, one per token. Joined, they are the text of the run.

        A token that only continues a character of the previous token is ''.
        """
        ids = [int(number) for number in numbers]
        alone = [self._alone[number] for number in ids]
        if None not in alone:
            return [text for text in alone if text is not None]
        texts = [""] * len(ids)
        owner = np.repeat(np.arange(len(ids)), [len(self.tokens[n]) for n in ids])
        at = 0
        whole = b"".join(self.tokens[n] for n in ids)
        for letter in whole.decode("utf-8", "surrogateescape"):
            code = ord(letter)
            lone = 0xDC80 <= code <= 0xDCFF  # a byte that belongs to no character
            texts[owner[at]] += rf"\x{code - 0xDC00:02x}" if lone else letter
            at += 1 if lone else len(letter.encode())
        return texts


def _whole(token: bytes) -> str | None:
    """A token's text if it consists of whole characters, else None."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return None


def visible(text: str) -> str:
    r"""Text in which every character is visible: controls and similar characters are written out.

    A newline is ↵ and a tab ⇥. Other controls and characters without a glyph (formats such as
    right-to-left marks, lone surrogates, unassigned) are codes such as \x1b and \u{202e}.
    """

    def shown(letter: str) -> str:
        kind = unicodedata.category(letter)
        if letter in SHOWN:
            return SHOWN[letter]
        if kind == "Cc":
            return rf"\x{ord(letter):02x}"
        return rf"\u{{{ord(letter):x}}}" if kind in HIDDEN else letter

    return "".join(map(shown, text))
