"""Silent births and deaths: the decoder appears or disappears, but what it represents does not.

If a linear map can read a feature's activation from a snapshot's activations before its birth, or
after its death, as well as during its life, then the concept was present and only the dictionary's
decoder was not. This test compares dictionaries; it does not count single errors. A concept that
other features make readable is readable all the time, and so is a code that rotates into another
direction.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy import sparse

from ontogeny.analyses.trust.settings import AROUND
from ontogeny.features.histories import births, deaths

RIDGE = 1e-3  # share of the mean variance of an activation
BEYOND = 3  # most snapshots before a birth, or from a death on, that are used


def read_out(
    f: sparse.csr_array, read: Callable[[int], np.ndarray], sites: int, first_half: np.ndarray
) -> np.ndarray:
    """R² of every feature's activation as a linear function of each site's activations, (F, n).

    The map is fitted by ridge regression on one half of the positions and scored on the other.

    Parameters
    ----------
    f : (rows, F). read : function that returns a site's activations by its index, (rows, d).
    first_half : (rows,) bool, the positions for the fit.
    """
    f = f.astype(np.float64)
    fit, score = f[first_half], f[~first_half]
    mean = np.asarray(score.mean(0)).ravel()
    square = np.asarray(score.power(2).mean(0)).ravel()
    centre = np.asarray(fit.mean(0)).ravel()
    variance = np.maximum(square - mean**2, 1e-30)
    explained = np.empty((f.shape[1], sites))
    for site in range(sites):
        a = read(site).astype(np.float64)
        offset = a[first_half].mean(0)
        x, z = a[first_half] - offset, a[~first_half] - offset
        gram = x.T @ x / len(x)
        # A constant snapshot has no variance; its W is 0 whatever is added.
        gram[np.diag_indices_from(gram)] += max(RIDGE * np.trace(gram) / len(gram), 1e-30)
        # x is centred, so the mean of f has no effect on its product with x.
        W = np.linalg.solve(gram, (fit.T @ x).T / len(x))  # (d, F)
        # mean (f − zW − centre)², without the (rows, F) predictions
        cross = np.einsum("df,df->f", W, (score.T @ z).T / len(z))
        shift = z.mean(0) @ W
        power = np.einsum("df,df->f", W, (z.T @ z / len(z)) @ W)
        lost = square - 2 * cross - 2 * centre * mean + power + 2 * centre * shift + centre**2
        explained[:, site] = 1 - lost / variance
    return explained


def judge_events(
    present: np.ndarray, explained: np.ndarray, readable: float, silent: float
) -> pd.DataFrame:
    """Every birth and death, and whether it is silent.

    Parameters
    ----------
    present : (F, n) lives. explained : (F, n) from `read_out`.
    readable : R² that a feature must reach in life for its events to be judged.
    silent : share of the best R² that the mean over snapshots beyond a silent event reaches.

    Returns
    -------
    feature; event ('birth', 'death'); snapshot, from 0; best, the largest R² in life; beyond, the
    mean R² over up to three absent snapshots next to the event; judged; silent; r2_-4 … r2_+4, R²
    by distance from the event.
    """
    best = np.where(present, explained, -np.inf).max(1)
    rows, around = [], []
    padded = np.pad(explained, ((0, 0), (-AROUND[0], AROUND[-1])), constant_values=np.nan)
    for event, at in (("birth", births(present)), ("death", deaths(present))):
        for feature, snapshot in np.argwhere(at):
            absent = ~present[feature]
            if event == "birth":
                run = range(snapshot - 1, max(-1, snapshot - 1 - BEYOND), -1)
            else:
                run = range(snapshot, min(present.shape[1], snapshot + BEYOND))
            beyond = []
            for t in run:
                if not absent[t]:
                    break
                beyond.append(explained[feature, t])
            rows.append((feature, event, snapshot, best[feature], float(np.mean(beyond))))
            around.append(padded[feature, snapshot : snapshot + len(AROUND)])
    table = pd.DataFrame(rows, columns=["feature", "event", "snapshot", "best", "beyond"])
    table["judged"] = table["best"] >= readable
    table["silent"] = table["judged"] & (table["beyond"] >= silent * table["best"])
    table[[f"r2_{offset:+d}" for offset in AROUND]] = np.reshape(around, (-1, len(AROUND)))
    return table
