"""The features stage: from decoders to histories (METHOD.md 4).

A feature's strength at a snapshot is its decoder norm there, s = r. All measures are plain NumPy
functions of strengths (F, n) or of full decoders (F, n, D), for sites that are the snapshots of
one layer and stream, in training order.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from ontogeny.crosscoder.model import Crosscoder
from ontogeny.features.matching import match
from ontogeny.files import InputError, write_json, write_table
from ontogeny.settings import Analysis

SWEEP = (0.3, 0.4, 0.5, 0.6, 0.7)


def normalise(strength: np.ndarray) -> np.ndarray:
    """Strength over its maximum over snapshots, (F, n)."""
    return strength / strength.max(1, keepdims=True)


def peak_snapshot_index(strength: np.ndarray) -> np.ndarray:
    """argmax over snapshots, counted from 1, (F,)."""
    return strength.argmax(1) + 1


def onset(normalised: np.ndarray, steps: np.ndarray, presence: float) -> np.ndarray:
    """Training step of the first crossing of `presence`, (F,).

    Interpolated in log(step + 1); the first step itself for a feature that is present there.
    """
    place = np.log(np.asarray(steps, float) + 1)
    first = (normalised >= presence).argmax(1)
    before = np.maximum(first - 1, 0)
    row = np.arange(len(normalised))
    low, high = normalised[row, before], normalised[row, first]
    share = np.where(first > 0, (presence - low) / np.where(high > low, high - low, 1), 0.0)
    return np.exp(place[before] + share * (place[first] - place[before])) - 1


def lifetime(normalised: np.ndarray, presence: float) -> np.ndarray:
    """Share of the snapshots at which normalised strength is at least `presence`, (F,)."""
    return (normalised >= presence).mean(1)


def classes(normalised: np.ndarray, presence: float) -> tuple[np.ndarray, np.ndarray]:
    """Whether each feature is an initialisation feature (else emergent), and whether transient.

    Initialisation: present at the first snapshot. Transient: no longer present at the last.
    """
    return normalised[:, 0] >= presence, normalised[:, -1] < presence


def direction_cosines(decoders: np.ndarray, floor: float) -> np.ndarray:
    """Cosine between each feature's directions at all pairs of snapshots, (F, n, n).

    NaN where the normalised strength at either snapshot is below `floor`.
    """
    strength = np.linalg.norm(decoders, axis=2)
    unit = decoders / np.maximum(strength, 1e-12)[:, :, None]
    cosines = unit @ unit.transpose(0, 2, 1)
    present = normalise(strength) >= floor
    cosines[~(present[:, :, None] & present[:, None, :])] = np.nan
    return cosines


def mean_matrix(cosines: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean over features of (F, n, n) cosines, (n, n); weights (F,) count a feature repeatedly."""
    w = np.ones(len(cosines)) if weights is None else weights
    there = ~np.isnan(cosines)
    total = np.tensordot(w, np.where(there, cosines, 0.0), 1)
    count = np.tensordot(w, there.astype(float), 1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def split_contrast(matrix: np.ndarray, first_of_second: int) -> tuple[float, float]:
    """Mean cosine within the two blocks (diagonal left out), and between them."""
    n = len(matrix)
    second = np.arange(n) >= first_of_second
    same = second[:, None] == second[None, :]
    off = ~np.eye(n, dtype=bool)
    return float(np.nanmean(matrix[same & off])), float(np.nanmean(matrix[~same]))


def best_split(matrix: np.ndarray) -> int:
    """First snapshot (from 0) of the second block where within − between is largest.

    Both blocks have at least two snapshots, so that each has a pair to compare.
    """
    splits = range(2, len(matrix) - 1)
    contrasts = [np.subtract(*split_contrast(matrix, s)) for s in splits]
    return splits[int(np.nanargmax(contrasts))]


def split_step(steps: np.ndarray, first_of_second: int) -> float:
    """The step between the blocks: the middle of their neighbouring snapshots in log(step + 1)."""
    low, high = steps[first_of_second - 1], steps[first_of_second]
    return float(np.sqrt((low + 1.0) * (high + 1.0)) - 1)


def turning_point(
    cosines: np.ndarray, steps: np.ndarray, samples: int, seed: int
) -> dict[str, float]:
    """Where the two-block split of the direction matrix is best, with a bootstrap over features.

    Parameters
    ----------
    cosines : (F, n, n) of `direction_cosines`.

    Returns
    -------
    step; low, high : 2.5% and 97.5% quantiles over bootstrap samples, widened to the snapshots
    that bound the split (no split is known more finely than that); snapshot_before,
    snapshot_after : those of the split itself (step); within, between : mean cosines there.
    """
    steps = np.asarray(steps)
    matrix = mean_matrix(cosines)
    split = best_split(matrix)
    within, between = split_contrast(matrix, split)
    rng = np.random.default_rng(seed)
    found = np.array(
        [
            best_split(mean_matrix(cosines, rng.multinomial(len(cosines), _even(len(cosines)))))
            for _ in range(samples)
        ]
    )
    low, high = np.quantile(found, [0.025, 0.975], method="inverted_cdf").astype(int)
    return {
        "step": split_step(steps, split),
        "low": float(steps[low - 1]),
        "high": float(steps[high]),
        "snapshot_before": float(steps[split - 1]),
        "snapshot_after": float(steps[split]),
        "within": within,
        "between": between,
    }


def _even(count: int) -> np.ndarray:
    return np.full(count, 1 / count)


def class_sweep(normalised: np.ndarray) -> pd.DataFrame:
    """How the classes' counts move with the presence threshold."""
    rows = []
    for presence in SWEEP:
        initial, transient = classes(normalised, presence)
        rows.append(
            {
                "presence": presence,
                "initialisation": int(initial.sum()),
                "emergent": int((~initial).sum()),
                "transient": int(transient.sum()),
            }
        )
    return pd.DataFrame(rows)


def describe(
    a: Analysis,
    crosscoders: list[Path],
    densities: list[Path],
    snapshots: list[int],
    output: str | Path,
) -> None:
    """Write the tables of one crosscoder: its first seed's features, matched with the others'.

    Parameters
    ----------
    crosscoders : folders, one a seed. densities : the features tables of fidelity, alike.
    snapshots : all steps of the experiment, for numbering.
    output : folder; features.parquet, strengths.parquet, directions.csv, classes.csv,
        matches.csv, turning_point.json.

    features.parquet, a row a feature: alive, density, peak_snapshot_index, peak_step,
    onset_step, lifetime, initialisation, emergent, transient, and with several seeds
    matched_cosine (the least over the other seeds), matched, partner, partner_peak_index (of the
    second seed). Histories of dead features are NaN or false.
    """
    output = Path(output)
    trained = [Crosscoder.load(folder) for folder in crosscoders]
    first = trained[0]
    steps = np.array([s[0] for s in first.about.outputs])
    if len(set(steps)) < len(steps) or len(steps) < 4:
        raise InputError(
            f"{crosscoders[0]}: histories need four or more snapshots of one layer and stream; "
            "choose another primary crosscoder"
        )
    number = np.array([snapshots.index(step) + 1 for step in steps])
    density = pd.read_parquet(densities[0])
    alive = ~density["dead"].to_numpy()
    living = np.flatnonzero(alive)
    W = first.W_dec.numpy()
    strength = np.linalg.norm(W, axis=2)
    normalised = normalise(strength)
    initial, transient = classes(normalised, a.presence)
    peak = peak_snapshot_index(strength)
    table = pd.DataFrame(
        {
            "feature": np.arange(len(W)),
            "alive": alive,
            "density": density["density"],
            "peak_snapshot_index": number[peak - 1],
            "peak_step": steps[peak - 1],
            "peak_strength": strength.max(1),
            "onset_step": onset(normalised, steps, a.presence),
            "lifetime": lifetime(normalised, a.presence),
            "initialisation": initial & alive,
            "emergent": ~initial & alive,
            "transient": transient & alive,
        }
    )

    matches = []
    worst = np.full(len(W), np.inf if len(trained) > 1 else np.nan)
    for other, path in zip(trained[1:], densities[1:], strict=True):
        there = np.flatnonzero(~pd.read_parquet(path)["dead"].to_numpy())
        partner, cosine = match(W[living], other.W_dec.numpy()[there])
        other_peak = peak_snapshot_index(other.strength.numpy())
        worst[living] = np.fmin(worst[living], cosine)
        named = np.where(partner >= 0, there[partner], -1)
        if "partner" not in table:
            table["partner"] = -1
            table.loc[living, "partner"] = named
            table["partner_peak_index"] = -1
            table.loc[living, "partner_peak_index"] = np.where(
                partner >= 0, number[other_peak[named] - 1], -1
            )
        matches.append(
            pd.DataFrame(
                {
                    "seed": first.about.seed,
                    "other_seed": other.about.seed,
                    "feature": living,
                    "partner": named,
                    "cosine": cosine,
                    "density": density["density"].to_numpy()[living],
                    "peak_snapshot_index": number[peak[living] - 1],
                    "partner_peak_index": number[other_peak[named] - 1],
                }
            )
        )
    worst[~alive] = np.nan
    table["matched_cosine"] = np.where(np.isinf(worst), np.nan, worst)
    table["matched"] = table["matched_cosine"].fillna(-1) >= a.matched_cosine

    write_table(output / "features.parquet", table)
    write_table(
        output / "strengths.parquet",
        pd.DataFrame(
            {
                "feature": np.repeat(np.arange(len(W)), len(steps)),
                "snapshot_index": np.tile(number, len(W)),
                "step": np.tile(steps, len(W)),
                "strength": strength.ravel(),
                "normalised_strength": normalised.ravel(),
            }
        ),
    )
    columns = ["seed", "other_seed", "feature", "partner", "cosine", "density"]
    columns += ["peak_snapshot_index", "partner_peak_index"]
    write_table(
        output / "matches.csv",
        pd.concat(matches) if matches else pd.DataFrame(columns=columns),
    )
    write_table(output / "classes.csv", class_sweep(normalised[alive]))

    cosines = direction_cosines(W, a.direction_floor)
    groups = {"all": alive, "matched": table["matched"].to_numpy()}
    directions, turning = [], {}
    for group, chosen in groups.items():
        if not chosen.any():
            continue
        matrix = mean_matrix(cosines[chosen])
        i, j = np.indices(matrix.shape)
        directions.append(
            pd.DataFrame(
                {
                    "group": group,
                    "snapshot_index": number[i.ravel()],
                    "other_index": number[j.ravel()],
                    "step": steps[i.ravel()],
                    "other_step": steps[j.ravel()],
                    "cosine": matrix.ravel(),
                }
            )
        )
        turning[group] = {
            "features": int(chosen.sum()),
            **turning_point(cosines[chosen], steps, a.bootstrap, a.seed),
        }
    write_table(output / "directions.csv", pd.concat(directions))
    write_json(output / "turning_point.json", turning)
