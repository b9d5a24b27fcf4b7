"""Encodings of the atlas's data files: see the package's docstring for what is in which."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np

# What stands for NaN, in numbers of two bytes, of one byte with a sign, and of two with a sign.
NO_LEVEL, NO_COSINE, NO_SIGNED = 65535, -128, -32768


def array(values: Any, kind: str = "") -> dict[str, str]:
    """An array as JSON can hold it, flat.

    Parameters
    ----------
    kind : u1, u2, u4, i1, i2 or f4; if not given, the smallest of the unsigned ones that holds the
        values. Values of the integer ones have to fit.
    """
    given = np.asarray(values)
    if not kind:
        most = np.max(given, initial=0)
        kind = "u1" if most < 1 << 8 else "u2" if most < 1 << 16 else "u4"
    made = np.ascontiguousarray(given, dtype=f"<{kind}")
    assert kind == "f4" or (made == given).all(), f"values that are no {kind}"
    return {"t": kind, "d": base64.b64encode(made.tobytes()).decode()}


def unpack(packed: dict[str, str]) -> np.ndarray:
    """The values of an `array`, flat: what the page does."""
    return np.frombuffer(base64.b64decode(packed["d"]), f"<{packed['t']}")


def levels(values: Any, scale: np.ndarray | float = 1.0) -> dict[str, str]:
    """Values from 0 to scale as an array of two bytes; NaN is NO_LEVEL. Scale broadcasts."""
    return array(_rounded(values / np.maximum(scale, 1e-30), NO_LEVEL - 1, NO_LEVEL), "u2")


def signed(values: Any, scale: np.ndarray | float = 1.0) -> dict[str, str]:
    """Values from −scale to scale as an array of two bytes with a sign; NaN is NO_SIGNED."""
    return array(_rounded(values / np.maximum(scale, 1e-30), 32767, NO_SIGNED), "i2")


def cosines(values: np.ndarray) -> dict[str, str]:
    """Cosines as an array of one byte with a sign; NaN is NO_COSINE."""
    return array(_rounded(values, 127, NO_COSINE), "i1")


def shares(values: np.ndarray) -> dict[str, str]:
    """Numbers from 0 to 1 as an array of one byte."""
    return array(_rounded(values, 255, 0), "u1")


def _rounded(share: np.ndarray, most: int, none: int) -> np.ndarray:
    """Shares from −1 to 1 as whole numbers from −most to most; NaN is `none`."""
    share = np.clip(share, -1, 1)
    return np.where(np.isnan(share), none, np.round(np.nan_to_num(share) * most))


def plain(value: Any) -> Any:
    """A value that JSON has: NumPy's numbers as Python's, floats of six digits, null for NaN."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value


def write(folder: Path, key: str, value: Any) -> None:
    """Write the data file of a key.

    In ASCII, and without '<': no text of it can end a script or start a tag, whatever reads it.
    """
    path = folder / "data" / f"{key}.js"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", r"\u003c")
    path.write_text(f"atlas({json.dumps(key)},{text});\n", encoding="ascii")


def read(path: Path) -> Any:
    """The value that a data file holds."""
    text = path.read_text(encoding="ascii")
    return json.loads(text[text.index(",") + 1 : text.rindex(");")])
