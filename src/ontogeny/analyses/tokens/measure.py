"""How the mean activations of tokens change while a model trains (docs/method.md 3).

Let δ^θ[x] = T^θ[x] − v̄^θ be the mean activation of token x at snapshot θ minus that of all rows:

    norm         mean of ‖δ^θ[x]‖
    cosine_last  mean of cos(δ^θ[x], δ^last[x])
    distinct     share of tokens with max_{y ≠ x} cos(δ^θ[x], δ^θ[y]) < 0.9

The first two are means over rows, so a token counts as often as it occurs. The last one is over
tokens with at least 20 rows, whose means are known well, and only over the most frequent of these.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from ontogeny.activations.sizes import COMPARED_TOKENS, LEAST_COUNT
from ontogeny.activations.table import open_table
from ontogeny.files import write_table
from ontogeny.settings import Settings

ALIKE = 0.9  # cosine from which on two tokens' means count as equal


def directions(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Norms (M,) of token means minus the overall mean, and the unit vectors (M, D) along them.

    Parameters
    ----------
    table : (M + 1, D), the overall mean last.
    """
    apart = table[:-1].astype(np.float64) - table[-1]
    norm = np.linalg.norm(apart, axis=1)
    return norm, apart / np.maximum(norm, 1e-30)[:, None]


def nearest(units: np.ndarray) -> np.ndarray:
    """The cosine of each unit vector (M, D) with the most similar other one, (M,)."""
    cosine = units @ units.T
    np.fill_diagonal(cosine, -1)
    return np.asarray(cosine.max(1))


def compared(count: np.ndarray) -> np.ndarray:
    """Indices of the tokens to compare: the most frequent ones with at least LEAST_COUNT rows."""
    frequent = np.argsort(-count, kind="stable")[:COMPARED_TOKENS]
    return frequent[count[frequent] >= LEAST_COUNT]


def measure(settings: Settings, tables: list[Path], token_means: Path) -> None:
    """Write how the token means change, one row per layer, stream and snapshot.

    Parameters
    ----------
    tables : HDF5 of activations/token_table.py, named by layer and stream. token_means : CSV; its
        columns are in columns.yaml.
    """
    rows: list[dict[str, object]] = []
    for path in tables:
        stream, _, layer = path.stem.rpartition(".")
        with open_table(path) as file:
            count, chosen = file["count"][:], compared(file["count"][:])
            _, last = directions(file["table"][-1])
            for i, step in enumerate(file.attrs["steps"]):
                norm, units = directions(file["table"][i])
                closest = nearest(units[chosen]) if len(chosen) > 1 else np.full(1, np.nan)
                number = settings.snapshots.number(int(step))
                measured = ("explained", "explained_by_pairs")
                rows.append(
                    {
                        "layer": int(layer),
                        "stream": stream,
                        "snapshot_index": number,
                        "step": int(step),
                        **{name: float(file[name][i]) for name in measured},
                        "norm": float(np.average(norm, weights=count)),
                        "left_norm": float(file["left_norm"][i]),
                        "cosine_last": float(np.average((units * last).sum(1), weights=count)),
                        "nearest_cosine": float(np.median(closest)),
                        "distinct": float((closest < ALIKE).mean()) if len(chosen) > 1 else np.nan,
                    }
                )
    write_table(token_means, pd.DataFrame(rows))
