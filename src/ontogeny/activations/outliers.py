"""Rows unlike all others: attention sinks, whose large norm dominates a dictionary's training.

A few positions, such as the first of each block or a newline, can have many times the norm of the
others and hold nearly all variance. They are reported with the setting that leaves them out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ontogeny.activations.sizes import PIECE_ROWS

if TYPE_CHECKING:
    from torch import Tensor

TIMES = 4.0  # multiple of the median norm at which positions or ids count as unlike the others
FAR = 10.0  # the same for single rows, and the bound that is suggested
HELD = 0.1  # least share of the variance at which they matter
MOST = 4  # most kinds of rows that are reported


def _squares(rows: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Norm of each row (R, D), and its squared distance from their mean: (R,) float64."""
    pieces = rows.split(PIECE_ROWS)
    total = sum(piece.numpy().sum(0, dtype=np.float64) for piece in pieces)
    mean = np.asarray(total / len(rows), np.float32)
    norm = [np.linalg.norm(piece.float().numpy(), axis=1) for piece in pieces]
    away = [np.square(piece.float().numpy() - mean).sum(1) for piece in pieces]
    return np.concatenate(norm).astype(float), np.concatenate(away).astype(float)


def find(rows: Tensor, offset: np.ndarray, token: np.ndarray) -> list[dict[str, Any]]:
    """Kinds of rows that hold much of the variance with a norm unlike the others'.

    Parameters
    ----------
    rows : (R, D) on the CPU. offset : (R,) position in the block. token : (R,) id.

    Returns
    -------
    One mapping each: kind ('position', 'id', or 'norm' for single rows), number (the position or
    id, or the number of rows), times (mean norm over the median of all), share (of the variance
    that they hold, after leaving out those listed before them).
    """
    found: list[dict[str, Any]] = []
    while len(found) < MOST:
        norm, away = _squares(rows)
        whole, median = float(away.sum()), float(np.median(norm))
        if not (whole > 0 and median > 0 and np.isfinite(whole)):
            break
        best = _largest(norm / median, away / whole, offset, token)
        if best is None:
            far = norm > FAR * median
            if away[far].sum() > HELD * whole:
                share, times = away[far].sum() / whole, norm[far].mean() / median
                found.append(_as_told("norm", int(far.sum()), times, share))
            break
        found.append(best)
        left = (offset if best["kind"] == "position" else token) != best["number"]
        if not left.any():
            break
        rows, offset, token = rows[left], offset[left], token[left]
    return found


def _largest(
    times: np.ndarray, share: np.ndarray, offset: np.ndarray, token: np.ndarray
) -> dict[str, Any] | None:
    """The position or id whose rows hold most of the variance, if they are unlike the others.

    Parameters
    ----------
    times : (R,) norms over their median. share : (R,) of the variance.
    """
    best: dict[str, Any] | None = None
    for kind, numbers in (("position", offset), ("id", token)):
        count, held = np.bincount(numbers), np.bincount(numbers, share)
        # Most rows of the kind must be outliers, not just a few, as for a token that is a sink in
        # one place.
        held[2 * np.bincount(numbers, times > TIMES) < count] = 0
        number = int(held.argmax())
        if held[number] > max(HELD, best["share"] if best else 0):
            mean = times[numbers == number].mean()
            best = _as_told(kind, number, mean, held[number])
    return best


def _as_told(kind: str, number: int, times: float, share: float) -> dict[str, Any]:
    rounded = {"times": round(float(times), 2), "share": round(float(share), 4)}
    return {"kind": kind, "number": number} | rounded


def told(found: dict[str, Any]) -> str:
    """A finding of `find` in words, as part of a line."""
    what = {
        "position": f"position {found['number']} of each block has",
        "id": f"the token of id {found['number']} has",
        "norm": f"{found['number']:,} rows have",
    }[found["kind"]]
    return (
        f"{what} {found['times']:.0f} times the median norm and {found['share']:.0%} of the "
        "variance"
    )


def by_offset(rows: Tensor, offset: np.ndarray, context: int) -> np.ndarray:
    """Mean norm at each position of a block, (context,) float32; NaN where none has a row."""
    norms = [np.linalg.norm(p.float().numpy(), axis=1) for p in rows.split(PIECE_ROWS)]
    norm = np.concatenate(norms)
    count = np.bincount(offset, minlength=context)
    total = np.bincount(offset, norm, minlength=context)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)
