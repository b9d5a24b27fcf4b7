"""How many dimensions of the residual stream features occupy, by snapshot (docs/method.md 4).

    D_i^θ = ‖W_i^θ‖² / Σ_j (Ŵ_i^θ · W_j^θ)²,    Ŵ the unit vector of W

A feature that shares its direction with no other has D = 1; one of k that share one has 1/k. The
sum over features is at most d, and its share of d shows how much of the stream is used.

References
----------
Elhage et al. 2022, Toy models of superposition.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from ontogeny.crosscoder.model import Crosscoder
from ontogeny.features.histories import (
    classes,
    lives,
    normalise,
    snapshot_numbers,
)
from ontogeny.files import InputError, read_table, write_table
from ontogeny.settings import Settings


def of_decoders(decoders: Iterable[np.ndarray]) -> np.ndarray:
    """D of every feature at every snapshot, (F, n); 0 where a decoder is 0.

    Σ_j (Ŵ_i·W_j)² = Ŵ_iᵀ G Ŵ_i, where G = Σ_j W_j W_jᵀ is d × d, so no array has F × F entries.

    Parameters
    ----------
    decoders : (F, d) of each of n snapshots.
    """
    columns = []
    for own in decoders:
        W = own.astype(np.float64)
        squared = np.square(W).sum(1)
        overlap = ((W @ (W.T @ W)) * W).sum(1)  # ‖W_i‖² Σ_j (Ŵ_i·W_j)²
        none = np.zeros(len(W))
        columns.append(np.divide(np.square(squared), overlap, out=none, where=overlap > 0))
    return np.stack(columns, 1)


def of_crosscoder(trained: Crosscoder, features: np.ndarray) -> np.ndarray:
    """D of some features, relative to each other, at every snapshot, (F', n)."""
    sites = range(len(trained.about.outputs))
    return of_decoders(trained.decoders_at(t, features).numpy() for t in sites)


def by_class(strength: np.ndarray, presence: float, absence: float) -> dict[str, np.ndarray]:
    """Which living features belong to each class, (F,) bool; no feature is in two classes.

    Transient features are a separate class here; the others are present at the last snapshot.

    Parameters
    ----------
    strength : (F, n) decoder norms.
    """
    initial, transient = classes(lives(normalise(strength), presence, absence))
    return {
        "initialisation": initial & ~transient,
        "emergent": ~initial & ~transient,
        "transient": transient,
    }


def measure(
    settings: Settings,
    crosscoders: list[Path],
    densities: list[Path],
    features: Path,
    dimensionality: Path,
) -> None:
    """Write a crosscoder's dimensionality by seed, snapshot and group of features.

    Dead features are excluded from both sums, since their decoders are left over from the start.

    Parameters
    ----------
    crosscoders : folders, one per seed. densities : their tables of features, in the same order.
    features : the features table, which has the first seed's matched features.

    Raises
    ------
    InputError : the sites have several layers or streams.
    """
    matched = read_table(features)["matched"].to_numpy()
    parts: list[pd.DataFrame] = []
    for folder, density in zip(crosscoders, densities, strict=True):
        trained = Crosscoder.load(folder)
        steps = [site[0] for site in trained.about.outputs]
        if len(set(steps)) < len(steps):
            raise InputError(
                f"{folder}: dimensionality needs snapshots of one layer and stream; choose "
                "another crosscoder"
            )
        living = ~read_table(density)["dead"].to_numpy()
        D = of_crosscoder(trained, np.flatnonzero(living))
        groups = {"all": np.ones(len(D), bool)} | by_class(
            trained.strength.numpy()[living], settings.analysis.presence, settings.analysis.absence
        )
        if not parts:
            groups["matched"] = matched[living]
        for group, chosen in groups.items():
            total, count = D[chosen].sum(0), int(chosen.sum())
            columns = {
                "seed": trained.about.seed,
                "group": group,
                "snapshot_index": snapshot_numbers(settings, steps),
                "step": steps,
                "features": count,
                "total": total,
                "share": total / trained.about.width,
                "mean": total / count if count else np.nan,
            }
            parts.append(pd.DataFrame(columns))
    write_table(dimensionality, pd.concat(parts))
