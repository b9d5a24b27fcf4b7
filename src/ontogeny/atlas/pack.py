"""Encodings of the atlas's data files; the package's docstring lists what each file contains."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np

# Codes for NaN in unsigned two-byte, signed one-byte and signed two-byte numbers.
NO_LEVEL, NO_COSINE, NO_SIGNED = 65535, -128, -32768


def array(values: Any, kind: str = "") -> dict[str, str]:
    """An array in a form that JSON can hold, flattened.

    Parameters
    ----------
    kind : u1, u2, u4, i1, i2 or f4; by default the smallest unsigned type that holds the values.
        Values have to fit an integer type.
    """
    given = np.asarray(values)
    if not kind:
        most = np.max(given, initial=0)
        kind = "u1" if most < 1 << 8 else "u2" if most < 1 << 16 else "u4"
    made = np.ascontiguousarray(given, dtype=f"<{kind}")
    assert kind == "f4" or (made == given).all(), f"values that are no {kind}"
    return {"t": kind, "d": base64.b64encode(made.tobytes()).decode()}


def unpack(packed: dict[str, str]) -> np.ndarray:
    """The values of an `array`, flattened, as the page decodes them."""
    return np.frombuffer(base64.b64decode(packed["d"]), f"<{packed['t']}")


def levels(values: Any, scale: np.ndarray | float = 1.0) -> dict[str, str]:
    """Values from 0 to scale as an array of two-byte numbers; NaN is NO_LEVEL. Scale broadcasts."""
    return array(_rounded(values / np.maximum(scale, 1e-30), NO_LEVEL - 1, NO_LEVEL), "u2")


def signed(values: Any, scale: np.ndarray | float = 1.0) -> dict[str, str]:
    """Values from −scale to scale as an array of signed two-byte numbers; NaN is NO_SIGNED."""
    return array(_rounded(values / np.maximum(scale, 1e-30), 32767, NO_SIGNED), "i2")


def cosines(values: np.ndarray) -> dict[str, str]:
    """Cosines as an array of signed one-byte numbers; NaN is NO_COSINE."""
    return array(_rounded(values, 127, NO_COSINE), "i1")


def shares(values: np.ndarray) -> dict[str, str]:
    """Numbers from 0 to 1 as an array of one-byte numbers."""
    return array(_rounded(values, 255, 0), "u1")


def _rounded(share: np.ndarray, most: int, none: int) -> np.ndarray:
    """Numbers from −1 to 1 as integers from −most to most; NaN is `none`."""
    share = np.clip(share, -1, 1)
    return np.where(np.isnan(share), none, np.round(np.nan_to_num(share) * most))


def plain(value: Any) -> Any:
    """A value in JSON types: NumPy numbers as Python's, floats of six digits, null for NaN."""
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

    The text is ASCII without '<', so no string in it can end a script or start a tag.
    """
    path = folder / "data" / f"{key}.js"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", r"\u003c")
    path.write_text(f"atlas({json.dumps(key)},{text});\n", encoding="ascii")


def read(path: Path) -> Any:
    """The value in a data file."""
    text = path.read_text(encoding="ascii")
    return json.loads(text[text.index(",") + 1 : text.rindex(");")])
