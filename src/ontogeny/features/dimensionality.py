"""How many dimensions of the residual stream features take up, by snapshot (METHOD.md 4).

    D_i^θ = ‖W_i^θ‖² / Σ_j (Ŵ_i^θ · W_j^θ)²,    Ŵ the unit vector of W

A feature that shares its direction with none has D = 1, one of k that share one has 1/k. The sum
over features is at most d, and its share of d says how far the stream is used.

References
----------
Elhage et al. 2022, Toy models of superposition.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from ontogeny.crosscoder.model import Crosscoder
from ontogeny.features.evolution import classes, normalise
from ontogeny.files import InputError, write_table
from ontogeny.settings import Analysis


def dimensionality(decoders: np.ndarray) -> np.ndarray:
    """D of every feature at every snapshot, (F, n); 0 where a decoder is 0.

    Σ_j (Ŵ_i·W_j)² = Ŵ_iᵀ G Ŵ_i with G = Σ_j W_j W_jᵀ of d × d: nothing has F × F entries.

    Parameters
    ----------
    decoders : (F, n, d).
    """
    found = np.zeros(decoders.shape[:2])
    for t in range(decoders.shape[1]):
        W = decoders[:, t].astype(np.float64)
        squared = np.square(W).sum(1)
        overlap = ((W @ (W.T @ W)) * W).sum(1)  # ‖W_i‖² Σ_j (Ŵ_i·W_j)²
        np.divide(np.square(squared), overlap, out=found[:, t], where=overlap > 0)
    return found


def by_class(a: Analysis, decoders: np.ndarray) -> dict[str, np.ndarray]:
    """Which living features are of each class, (F,) bool; the classes overlap in no feature.

    Transient features are a class of their own here; the others stand at the last snapshot.
    """
    normalised = normalise(np.linalg.norm(decoders, axis=2))
    initial, transient = classes(normalised, a.presence)
    return {
        "initialisation": initial & ~transient,
        "emergent": ~initial & ~transient,
        "transient": transient,
    }


def describe(
    a: Analysis,
    crosscoders: list[Path],
    densities: list[Path],
    features: str | Path,
    snapshots: list[int],
    output: str | Path,
) -> None:
    """Write a crosscoder's dimensionality by seed, snapshot and class.

    Dead features are left out of both sums: their decoders are what the start left.

    Parameters
    ----------
    crosscoders : folders, one a seed. densities : the features tables of fidelity, alike.
    features : the features table, which knows the first seed's matched features.
    snapshots : all steps of the experiment, for numbering.
    output : CSV; seed, group ('all', a class, and of the first seed 'matched'), snapshot_index,
        step, features, total (Σ D), share (total / d), mean (total / features).
    """
    rows: list[dict[str, object]] = []
    for folder, density in zip(crosscoders, densities, strict=True):
        trained = Crosscoder.load(folder)
        steps = [site[0] for site in trained.about.outputs]
        if len(set(steps)) < len(steps):
            raise InputError(
                f"{folder}: dimensionality needs snapshots of one layer and stream; choose "
                "another crosscoder"
            )
        living = ~pd.read_parquet(density)["dead"].to_numpy()
        W = trained.W_dec.numpy()[living]
        D = dimensionality(W)
        groups = {"all": np.ones(len(W), bool)} | by_class(a, W)
        if not rows:
            groups["matched"] = pd.read_parquet(features)["matched"].to_numpy()[living]
        for group, chosen in groups.items():
            total, count = D[chosen].sum(0), int(chosen.sum())
            for t, step in enumerate(steps):
                rows.append(
                    {
                        "seed": trained.about.seed,
                        "group": group,
                        "snapshot_index": snapshots.index(step) + 1,
                        "step": step,
                        "features": count,
                        "total": total[t],
                        "share": total[t] / W.shape[2],
                        "mean": total[t] / count if count else np.nan,
                    }
                )
    write_table(output, pd.DataFrame(rows))
