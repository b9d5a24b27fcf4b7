"""The features stage: from decoders to histories (docs/method.md 4).

A feature's strength at a snapshot is its decoder norm there. All measures are plain NumPy functions
of strengths (F, n) or of full decoders (F, n, D). Sites have to be the snapshots of one layer and
stream, in training order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from ontogeny.crosscoder.model import Crosscoder
from ontogeny.crosscoder.sizes import DECODERS_AT_A_TIME
from ontogeny.features.matching import match
from ontogeny.files import InputError, read_table, write_json, write_table
from ontogeny.settings import Analysis, Settings

SWEEP = (0.3, 0.4, 0.5, 0.6, 0.7)
ALONE, SHARED = 0.1, 0.1  # relative norms of a feature in one of two snapshots, or in both
TOGETHER = 128  # bootstrap samples in one matrix product


def decoder_norms(decoders: np.ndarray) -> np.ndarray:
    """Strength of every feature at every snapshot, (F, n), from (F, n, D)."""
    return np.linalg.norm(decoders, axis=2)


def snapshot_numbers(settings: Settings, steps: Iterable[int]) -> np.ndarray:
    """Indices of some training steps among all the experiment's snapshots, counted from 1."""
    return np.array([settings.snapshots.number(step) for step in steps])


def normalise(strength: np.ndarray) -> np.ndarray:
    """Strength divided by its maximum over snapshots, (F, n)."""
    return strength / strength.max(1, keepdims=True)


def peak_snapshot_index(strength: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Index of the snapshot where strength is largest, (F,), taken from `numbers`, (n,)."""
    return numbers[strength.argmax(1)]


def onset(normalised: np.ndarray, steps: np.ndarray, presence: float) -> np.ndarray:
    """Training step at which the strength first crosses `presence`, (F,).

    Interpolated in log(step + 1). If a feature is present at the first snapshot, its step is used.
    """
    log_step = np.log(np.asarray(steps, float) + 1)
    first = (normalised >= presence).argmax(1)
    before = np.maximum(first - 1, 0)
    row = np.arange(len(normalised))
    low, high = normalised[row, before], normalised[row, first]
    share = np.where(first > 0, (presence - low) / np.where(high > low, high - low, 1), 0.0)
    return np.exp(log_step[before] + share * (log_step[first] - log_step[before])) - 1


def lives(normalised: np.ndarray, presence: float, absence: float) -> np.ndarray:
    """Whether each feature is present at each snapshot, (F, n) bool.

    A feature is present from the snapshot at which its normalised strength reaches `presence` until
    the one at which it falls below the lower threshold `absence`. Two thresholds are used so that
    a strength that fluctuates around one of them does not count as many deaths and births.
    """
    present = np.empty(normalised.shape, bool)
    now = np.zeros(len(normalised), bool)
    for t, strength in enumerate(normalised.T):
        now = np.where(now, strength >= absence, strength >= presence)
        present[:, t] = now
    return present


def births(present: np.ndarray) -> np.ndarray:
    """(F, n) bool: snapshots at which a feature appears, except those present at the first."""
    return present & ~np.pad(present, ((0, 0), (1, 0)), mode="edge")[:, :-1]


def deaths(present: np.ndarray) -> np.ndarray:
    """(F, n) bool: first snapshots at which a feature is absent again, after each of its lives."""
    return births(~present)


def classes(present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether each feature is an initialisation feature (else emergent), and whether transient.

    Initialisation: present at the first snapshot. Transient: no longer present at the last.
    """
    return present[:, 0], ~present[:, -1]


def settled_step(
    decoders: np.ndarray, present: np.ndarray, steps: np.ndarray, least: float
) -> np.ndarray:
    """The first step from which a feature keeps its final direction, (F,).

    The final direction is that of the last snapshot at which the feature is present. It is kept
    as long as the cosine with it is at least `least`. NaN for a feature that is never present.

    Parameters
    ----------
    decoders : (F, n, d). present : (F, n), from `lives`.
    """
    F, n = present.shape
    unit = decoders / np.maximum(decoder_norms(decoders), 1e-12)[:, :, None]
    last = n - 1 - present[:, ::-1].argmax(1)
    cosine = np.einsum("fnd,fd->fn", unit, unit[np.arange(F), last])
    turned = (cosine < least) & (np.arange(n) < last[:, None])
    first = np.where(turned.any(1), n - turned[:, ::-1].argmax(1), 0)
    return np.where(present.any(1), np.asarray(steps, float)[first], np.nan)


def direction_cosines(decoders: np.ndarray, floor: float) -> np.ndarray:
    """Cosine between each feature's directions at all pairs of snapshots, (F, n, n).

    NaN where the normalised strength at either snapshot is below `floor`.
    """
    strength = decoder_norms(decoders)
    unit = decoders / np.maximum(strength, 1e-12)[:, :, None]
    cosines = unit @ unit.transpose(0, 2, 1)
    present = normalise(strength) >= floor
    cosines[~(present[:, :, None] & present[:, None, :])] = np.nan
    return cosines


def mean_matrix(cosines: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean over features of (F, n, n) cosines, (n, n), NaN where no feature has one.

    Parameters
    ----------
    weights : (F,) how often each feature counts; for weights (S, F) the means are (S, n, n).
    """
    w = np.ones(len(cosines)) if weights is None else weights
    known = ~np.isnan(cosines)
    total = np.tensordot(w, np.where(known, cosines, 0.0), 1)
    count = np.tensordot(w, known.astype(float), 1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def splits(snapshots: int) -> np.ndarray:
    """Possible first snapshots (from 0) of the second block, with two or more in either block."""
    return np.arange(2, snapshots - 1)


def split_contrasts(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean cosine within the two blocks (without the diagonal), and between them, for each split.

    Parameters
    ----------
    matrix : (..., n, n).

    Returns
    -------
    (..., n − 3) each, in the order of `splits`.
    """
    n = matrix.shape[-1]
    second = np.arange(n) >= splits(n)[:, None]
    same = second[:, :, None] == second[:, None, :]
    off = ~np.eye(n, dtype=bool)
    known = ~np.isnan(matrix)
    values = np.where(known, matrix, 0.0)
    axes = ([-2, -1], [1, 2])
    with np.errstate(invalid="ignore"):  # 0 / 0 where no pair is known
        within, between = (
            np.tensordot(values, chosen.astype(float), axes)
            / np.tensordot(known.astype(float), chosen.astype(float), axes)
            for chosen in (same & off, ~same)
        )
    return within, between


def contrasts(matrix: np.ndarray) -> dict[int, float]:
    """Within − between of an (n, n) matrix, by the first snapshot of the second block."""
    by_split = np.subtract(*split_contrasts(matrix))
    return dict(zip(splits(len(matrix)).tolist(), by_split.tolist(), strict=True))


def best_split(matrix: np.ndarray) -> np.ndarray:
    """First snapshot (from 0) of the second block for which within − between is largest.

    Returns an integer array with the leading shape of `matrix`, (..., n, n).
    """
    contrast = np.subtract(*split_contrasts(matrix))
    return splits(matrix.shape[-1])[np.nanargmax(contrast, axis=-1)]


def split_step(steps: np.ndarray, first_of_second: int) -> float:
    """Step between the blocks: the midpoint, in log(step + 1), of the snapshots on either side."""
    low, high = steps[first_of_second - 1], steps[first_of_second]
    return float(np.sqrt((low + 1.0) * (high + 1.0)) - 1)


def turning_point(
    cosines: np.ndarray, steps: np.ndarray, samples: int, seed: int
) -> dict[str, float]:
    """Where the two-block split of the direction matrix is best, with a bootstrap over features.

    Parameters
    ----------
    cosines : (F, n, n) from `direction_cosines`.

    Returns
    -------
    step; low, high : 2.5% and 97.5% quantiles over bootstrap samples, widened to the snapshots on
    either side of the split, since no split is known more precisely than that; snapshot_before,
    snapshot_after : those two snapshots (steps); within, between : mean cosines at the split.
    """
    steps = np.asarray(steps)
    matrix = mean_matrix(cosines)
    split = int(best_split(matrix))
    within, between = (float(of_split[split - 2]) for of_split in split_contrasts(matrix))
    rng = np.random.default_rng(seed)
    F = len(cosines)
    drawn = [
        best_split(mean_matrix(cosines, rng.multinomial(F, np.full(F, 1 / F), count)))
        for count in np.diff(np.r_[0:samples:TOGETHER, samples])
    ]
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975], method="inverted_cdf").astype(
        int
    )
    return {
        "step": split_step(steps, split),
        "low": float(steps[low - 1]),
        "high": float(steps[high]),
        "snapshot_before": float(steps[split - 1]),
        "snapshot_after": float(steps[split]),
        "within": within,
        "between": between,
    }


def class_sweep(normalised: np.ndarray, ratio: float) -> pd.DataFrame:
    """Counts of the classes for several presence thresholds; absence is `ratio` times presence."""
    rows = []
    for presence in SWEEP:
        initial, transient = classes(lives(normalised, presence, ratio * presence))
        rows.append((presence, initial.sum(), (~initial).sum(), transient.sum()))
    return pd.DataFrame(rows, columns=["presence", "initialisation", "emergent", "transient"])


def relative_norm(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Last strength over the sum of both, (F,): 0 if only in the first, 1 if only in the last."""
    return last / np.maximum(first + last, 1e-12)


def compare(decoders: np.ndarray, steps: np.ndarray, features: pd.DataFrame) -> pd.DataFrame:
    """Compare the first and the last snapshot: one row for each living feature.

    The two snapshots may also be two models, such as a base model and a fine-tuned one. As usual in
    model diffing, a feature is in only one of them if its relative norm is at most `ALONE` or at
    least 1 - `ALONE`, and in both if it is within `SHARED` of one half.

    Parameters
    ----------
    decoders : (F, n, d). features : the features table with `alive`, `matched` and `density`.
    """
    strength = decoder_norms(decoders)[:, [0, -1]]
    unit = decoders[:, [0, -1]] / np.maximum(strength, 1e-12)[:, :, None]
    relative = relative_norm(*strength.T)
    group = np.select(
        [relative <= ALONE, relative >= 1 - ALONE, np.abs(relative - 0.5) <= SHARED],
        ["only_first", "only_last", "shared"],
        "between",
    )
    table = features[["feature", "density", "matched"]].assign(
        first_step=steps[0],
        last_step=steps[-1],
        first_strength=strength[:, 0],
        last_strength=strength[:, 1],
        relative_norm=relative,
        cosine=np.einsum("fd,fd->f", unit[:, 0], unit[:, 1]),
        group=group,
    )
    return table[features["alive"].to_numpy()]


def describe(
    settings: Settings,
    crosscoders: list[Path],
    densities: list[Path],
    features: Path,
    strengths: Path,
    directions: Path,
    comparison: Path,
    classes: Path,
    matches: Path,
    turning_point: Path,
) -> None:
    """Write the tables of one crosscoder: its first seed's features, matched with the others'.

    ontogeny.stages declares the columns. Histories of dead features are NaN or false. The columns
    about a feature's partner exist only with several seeds.

    Parameters
    ----------
    crosscoders : folders, one per seed. densities : their tables of features, in the same order.

    Raises
    ------
    InputError : the sites are not two or more snapshots of one layer and stream.
    """
    trained = [Crosscoder.load(folder) for folder in crosscoders]
    steps = np.array([site[0] for site in trained[0].about.outputs])
    if len(set(steps)) < len(steps) or len(steps) < 2:
        raise InputError(
            f"{crosscoders[0]}: histories need two or more snapshots of one layer and stream; "
            "choose another primary crosscoder"
        )
    numbers = snapshot_numbers(settings, steps)
    of_seeds = [read_table(path) for path in densities]
    first, analysis = trained[0], settings.analysis
    strength = by_features(first, decoder_norms)
    normalised = normalise(strength)
    present = lives(normalised, analysis.presence, analysis.absence)
    table = _histories(strength, of_seeds[0], steps, numbers, analysis.presence, present)
    table["settled_step"] = by_features(
        first, lambda W, of: settled_step(W, of, steps, analysis.settled_cosine), present
    )
    pairs = _pairs(trained, of_seeds, numbers, table)
    table = _with_partners(table, pairs, analysis.matched_cosine)
    alive = table["alive"].to_numpy()
    write_table(features, table)
    histories = {
        "feature": np.repeat(table["feature"], len(steps)),
        "snapshot_index": np.tile(numbers, len(table)),
        "step": np.tile(steps, len(table)),
        "strength": strength.ravel(),
        "normalised_strength": normalised.ravel(),
        "present": present.ravel(),
    }
    write_table(strengths, pd.DataFrame(histories))
    write_table(matches, pairs)
    write_table(classes, class_sweep(normalised[alive], analysis.absence / analysis.presence))
    groups = {"all": alive, "matched": table["matched"].to_numpy()}
    cosines = by_features(first, lambda W: direction_cosines(W, analysis.direction_floor))
    of_groups = {group: cosines[chosen] for group, chosen in groups.items() if chosen.any()}
    matrices = [_matrix(group, own, steps, numbers) for group, own in of_groups.items()]
    write_table(directions, pd.concat(matrices))
    ends = by_features(first, lambda W: W[:, [0, -1]])
    write_table(comparison, compare(ends, steps, table))
    write_json(turning_point, _turns(of_groups, steps, analysis))


def _histories(
    strength: np.ndarray,
    density: pd.DataFrame,
    steps: np.ndarray,
    numbers: np.ndarray,
    presence: float,
    present: np.ndarray,
) -> pd.DataFrame:
    """Columns of the features table that follow from a seed's strengths and lives, both (F, n)."""
    alive = ~density["dead"].to_numpy()
    initial, transient = classes(present)
    born = births(present).sum(1)
    return pd.DataFrame(
        {
            "feature": np.arange(len(strength)),
            "alive": alive,
            "density": density["density"],
            "peak_snapshot_index": peak_snapshot_index(strength, numbers),
            "peak_step": steps[strength.argmax(1)],
            "peak_strength": strength.max(1),
            "onset_step": onset(normalise(strength), steps, presence),
            "lifetime": present.mean(1),
            "initialisation": initial & alive,
            "emergent": ~initial & alive,
            "transient": transient & alive,
            "reappearing": (born + initial > 1) & alive,
        }
    )


def _pairs(
    trained: list[Crosscoder],
    densities: list[pd.DataFrame],
    numbers: np.ndarray,
    table: pd.DataFrame,
) -> pd.DataFrame:
    """The first seed's living features, each with its partner in every other seed."""
    first, own = trained[0], table[table["alive"]]
    living = own["feature"].to_numpy()
    columns = ["seed", "other_seed", "feature", "partner", "cosine", "density"]
    pairs = [pd.DataFrame(columns=[*columns, "peak_snapshot_index", "partner_peak_index"])]
    for other, density in zip(trained[1:], densities[1:], strict=True):
        other_living = np.flatnonzero(~density["dead"].to_numpy())
        index, cosine = match(stacked(first, living), stacked(other, other_living))
        partner = np.where(index >= 0, other_living[index], -1)
        pair = own[["feature", "density", "peak_snapshot_index"]].assign(
            seed=first.about.seed,
            other_seed=other.about.seed,
            partner=partner,
            cosine=cosine,
            partner_peak_index=peak_snapshot_index(other.strength.numpy(), numbers)[partner],
        )
        pairs.append(pair[list(pairs[0])])
    return pd.concat(pairs[1:] or pairs, ignore_index=True)


def _with_partners(table: pd.DataFrame, pairs: pd.DataFrame, least: float) -> pd.DataFrame:
    """The features with their partner in the second seed and the least cosine over all seeds."""
    if len(pairs):
        second = pairs.drop_duplicates("feature").set_index("feature")
        second = second[["partner", "partner_peak_index"]].reindex(table["feature"], fill_value=-1)
        partner, peak = second.to_numpy().T
        table = table.assign(partner=partner, partner_peak_index=np.where(partner >= 0, peak, -1))
    cosine = pairs.groupby("feature")["cosine"].min().reindex(table["feature"])
    table["matched_cosine"] = cosine.to_numpy(float)
    return table.assign(matched=table["matched_cosine"].fillna(-1) >= least)


def by_features(
    crosscoder: Crosscoder, measure: Callable[..., np.ndarray], *by_feature: np.ndarray
) -> np.ndarray:
    """Apply a measure to full decoders (F', n, D) and arrays (F', ...), some features at a time."""
    parts = []
    for start in range(0, crosscoder.about.features, DECODERS_AT_A_TIME):
        some = slice(start, start + DECODERS_AT_A_TIME)
        given = (array[some] for array in by_feature)
        parts.append(measure(crosscoder.decoders(some).numpy(), *given))
    return np.concatenate(parts)


def stacked(crosscoder: Crosscoder, features: np.ndarray) -> np.ndarray:
    """(F', M) decoders of some features in the coordinates of training, which all seeds share."""
    return crosscoder.weights.W_dec.numpy()[features]


def _turns(
    cosines: dict[str, np.ndarray], steps: np.ndarray, analysis: Analysis
) -> dict[str, dict[str, float]]:
    """The turning point of each group of features; none with fewer than four snapshots."""
    if not len(splits(len(steps))):
        return {}
    samples, seed = analysis.bootstrap, analysis.seed
    return {
        group: {"features": len(own), **turning_point(own, steps, samples, seed)}
        for group, own in cosines.items()
    }


def _matrix(
    group: str, cosines: np.ndarray, steps: np.ndarray, numbers: np.ndarray
) -> pd.DataFrame:
    """Mean cosine between a group's directions at all pairs of snapshots."""
    i, j = (index.ravel() for index in np.indices((len(steps), len(steps))))
    matrix = {"group": group, "snapshot_index": numbers[i], "other_index": numbers[j]}
    matrix |= {"step": steps[i], "other_step": steps[j], "cosine": mean_matrix(cosines).ravel()}
    return pd.DataFrame(matrix)
