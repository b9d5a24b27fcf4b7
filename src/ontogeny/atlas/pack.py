"""Encodings of the atlas's data files: see the package's docstring for what is in which."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np

TYPES = ("u1", "u2", "u4", "i1", "i2", "f4")
NO_LEVEL = 65535  # of `levels`, where a value is NaN
NO_COSINE = -128
NO_SIGNED = -32768


def array(values: Any, kind: str) -> dict[str, str]:
    """An array as JSON can hold it, flat.

    Parameters
    ----------
    kind : one of TYPES. Values of the integer ones have to fit.
    """
    given = np.asarray(values)
    made = np.ascontiguousarray(given, dtype=f"<{kind}")
    assert kind == "f4" or (made == given).all(), f"values that are no {kind}"
    return {"t": kind, "d": base64.b64encode(made.tobytes()).decode()}


def smallest(values: Any) -> str:
    """The unsigned type that holds whole numbers."""
    most = np.max(values, initial=0)
    return "u1" if most < 1 << 8 else "u2" if most < 1 << 16 else "u4"


def unpack(packed: dict[str, str]) -> np.ndarray:
    """The values of an `array`, flat: what the page does."""
    return np.frombuffer(base64.b64decode(packed["d"]), f"<{packed['t']}")


def levels(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Values from 0 to scale as 0 … 65534; NaN is NO_LEVEL. Scale broadcasts."""
    share = np.clip(values / np.maximum(scale, 1e-30), 0, 1)
    return np.where(np.isnan(share), NO_LEVEL, np.round(np.nan_to_num(share) * (NO_LEVEL - 1)))


def signed(values: np.ndarray, scale: np.ndarray | float = 1.0) -> np.ndarray:
    """Values from −scale to scale as −32767 … 32767; NaN is NO_SIGNED."""
    share = np.clip(values / np.maximum(scale, 1e-30), -1, 1)
    return np.where(np.isnan(share), NO_SIGNED, np.round(np.nan_to_num(share) * 32767))


def cosines(values: np.ndarray) -> np.ndarray:
    """Cosines as −127 … 127; NaN is NO_COSINE."""
    share = np.clip(values, -1, 1)
    return np.where(np.isnan(share), NO_COSINE, np.round(np.nan_to_num(share) * 127))


def plain(value: Any) -> Any:
    """A value that JSON has: NumPy's numbers as Python's, floats of six digits, null for NaN."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(v) for v in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
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
