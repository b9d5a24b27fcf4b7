"""Glyphs for any text in figures: fonts that have them, and codes for letters without a glyph."""

from __future__ import annotations

from functools import cache

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

# A letter that a font lacks is taken from the next one that has it. Few systems have all of them.
FAMILIES = ["DejaVu Sans Mono", "DejaVu Sans", "Noto Sans CJK SC", "Noto Sans Mono CJK SC"]
FAMILIES += ["WenQuanYi Zen Hei", "Noto Sans Arabic", "Noto Sans Devanagari", "Noto Emoji"]


@cache
def fonts() -> tuple[list[str], list[FT2Font]]:
    """The families that are installed, and their fonts."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    names = [name for name in FAMILIES if name in installed]
    paths = [font_manager.findfont(name, fallback_to_default=False) for name in names]
    return names, [font_manager.get_font(path) for path in paths]


def drawable(text: str) -> str:
    """The text, in which letters that no installed font has are replaced by their codes."""
    return "".join(
        letter
        if any(font.get_char_index(ord(letter)) for font in fonts()[1])
        else rf"\u{{{ord(letter):x}}}"
        for letter in text
    )
