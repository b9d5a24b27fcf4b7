"""Do complex features appear late? (docs/method.md 6; the paper's figure 5)

We correlate a complexity score over features with the peak snapshot index and with the onset, as
log(step + 1): Pearson's r, Spearman's ρ, and both with density held fixed,

    r_xy·z = (r_xy − r_xz r_yz) / √((1 − r_xz²)(1 − r_yz²)),

where z is log density for r and its ranks for ρ. Intervals are bootstrap percentiles over features.
p is two-sided, from permutations of the score over features (for the partial coefficients, of its
residual after a fit on density).

The scores are the logarithms of the context spans of either run, and the grades of a grader if
there are any. The onset of every initialisation feature is the first snapshot, so over all features
the onset says little more than the class. The classes are therefore also analysed separately, and
initialisation features have no row for onset.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from ontogeny.files import InputError, read_table, write_table
from ontogeny.settings import Settings

PERMUTATIONS = 9_999
PIECE_ENTRIES = 1 << 22  # resampled scores in memory at a time
LEAST = 10  # least number of features in a group that gets coefficients
COEFFICIENTS = ("pearson", "spearman", "pearson_partial", "spearman_partial")


def pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """r over the last axis, (…, n) → (…); NaN where either does not vary."""
    x, y = (v - v.mean(-1, keepdims=True) for v in (x, y))
    scale = np.sqrt(np.square(x).sum(-1) * np.square(y).sum(-1))
    there = scale > 1e-12 * x.shape[-1]
    return np.where(there, (x * y).sum(-1) / np.where(there, scale, 1), np.nan)


def _partial(xy: np.ndarray, xz: np.ndarray, yz: np.ndarray) -> np.ndarray:
    """r_xy·z from the three correlations; equals r_xy where z does not vary."""
    xz, yz = np.nan_to_num(xz), np.nan_to_num(yz)
    left = (1 - np.square(xz)) * (1 - np.square(yz))
    return np.where(left > 1e-9, (xy - xz * yz) / np.sqrt(np.maximum(left, 1e-9)), np.nan)


def _either(*variables: np.ndarray) -> Iterator[tuple[str, list[np.ndarray]]]:
    """The variables for each type of coefficient: the values themselves, and their ranks."""
    yield "pearson", list(variables)
    yield "spearman", [rankdata(variable, axis=-1) for variable in variables]


def coefficients(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> dict[str, np.ndarray]:
    """All coefficients of x and y, (…, n) → (…) each; the partial ones hold z fixed."""
    values = {}
    for name, (a, b, c) in _either(x, y, z):
        values[name] = pearson(a, b)
        values[f"{name}_partial"] = _partial(values[name], pearson(a, c), pearson(b, c))
    return values


def bootstrap(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, samples: int, rng: np.random.Generator
) -> dict[str, tuple[float, float]]:
    """2.5% and 97.5% quantiles of each coefficient over samples of the n features."""
    step = max(1, PIECE_ENTRIES // len(x))
    parts = []
    for start in range(0, samples, step):
        drawn = rng.integers(0, len(x), (min(step, samples - start), len(x)))
        parts.append(coefficients(x[drawn], y[drawn], z[drawn]))
    intervals = {}
    for name in COEFFICIENTS:
        values = np.concatenate([part[name] for part in parts])
        values = values[~np.isnan(values)]  # NaN in samples in which a variable is constant
        low, high = np.quantile(values, [0.025, 0.975]) if len(values) else (np.nan, np.nan)
        intervals[name] = float(low), float(high)
    return intervals


def _residual(x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """The residual of x after a linear fit on z, (n,)."""
    z = z - z.mean()
    squared = float(z @ z)
    return x - x.mean() - (z * (z @ x) / squared if squared > 0 else 0)


def permutation_p(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, permutations: int, rng: np.random.Generator
) -> dict[str, float]:
    """Two-sided p of each coefficient: share of permutations of y that are at least as extreme.

    The data themselves count as one permutation, so that no p is 0.
    """
    pairs = {}
    for name, (a, b, c) in _either(x, y, z):
        pairs[name] = a - a.mean(), b - b.mean()
        pairs[f"{name}_partial"] = _residual(a, c), _residual(b, c)
    beyond = dict.fromkeys(pairs, 1)
    step = max(1, PIECE_ENTRIES // len(x))
    for start in range(0, permutations, step):
        rows = np.tile(np.arange(len(x)), (min(step, permutations - start), 1))
        order = rng.permuted(rows, axis=1)
        for name, (a, b) in pairs.items():
            limit = abs(a @ b) * (1 - 1e-9)
            beyond[name] += int((np.abs(b[order] @ a) >= limit).sum())
    return {name: count / (permutations + 1) for name, count in beyond.items()}


def correlate(
    score: np.ndarray,
    other: np.ndarray,
    density: np.ndarray,
    samples: int,
    permutations: int,
    seed: int,
) -> pd.DataFrame:
    """One row per coefficient: coefficient, value, low, high, p; no rows if a variable is constant.

    Parameters
    ----------
    score, other, density : (n,) over features; density as its logarithm.
    """
    values = coefficients(other, score, density) if len(score) >= LEAST else {}
    if not values or np.isnan(values["pearson"]):
        return pd.DataFrame(columns=["coefficient", "value", "low", "high", "p"])
    rng = np.random.default_rng(seed)
    intervals = bootstrap(other, score, density, samples, rng)
    p = permutation_p(other, score, density, permutations, rng)
    rows = [(name, float(values[name]), *intervals[name], p[name]) for name in COEFFICIENTS]
    return pd.DataFrame(rows, columns=["coefficient", "value", "low", "high", "p"])


def groups(living: pd.DataFrame) -> dict[tuple[str, str], np.ndarray]:
    """Which features are in each (class, which) group, (n,) bool."""
    every = np.ones(len(living), bool)
    classes = {"all": every}
    classes |= {name: living[name].to_numpy(bool) for name in ("initialisation", "emergent")}
    whiches = {"all": every, "matched": living["matched"].to_numpy(bool)}
    return {(kind, which): a & b for kind, a in classes.items() for which, b in whiches.items()}


def measure(
    settings: Settings, features: Path, span: Path, grades: Path | None, correlations: Path
) -> None:
    """Write the correlations of complexity with peak and onset.

    Parameters
    ----------
    features : the features table. span : the table of `span.measure`.
    grades : the table of `grader.grade`, if there is one.
    correlations : CSV, one row per coefficient, see declaration.py.

    Raises
    ------
    InputError : no feature of the span table is alive in the features table.
    """
    table = read_table(features)
    measured = read_table(span).pivot(index="feature", columns="run", values="span")
    living = table[table["alive"]].merge(measured, on="feature")
    if living.empty:
        raise InputError(
            f"{span}: has no feature that is alive in {features}; delete it to make it again"
        )
    scores = {f"span_{run}": np.log(living[run]) for run in ("alone", "replaced")}
    others = {
        "peak_snapshot_index": living["peak_snapshot_index"],
        "onset": np.log1p(living["onset_step"]),
    }
    pairs = [(score, against) for score in scores for against in others]
    if grades is not None:
        graded = read_table(grades)[["feature", "grade"]]
        others |= scores
        pairs += [("grade", against) for against in others]
        grade = living.merge(graded, on="feature", how="left")["grade"]
        scores["grade"] = grade.astype(float)
    density = np.log(np.maximum(living["density"], 1e-12))
    rows = []
    members = groups(living)
    for (score, against), (kind, which) in product(pairs, members):
        if kind == "initialisation" and against == "onset":
            continue
        chosen = members[kind, which] & scores[score].notna().to_numpy()
        made = correlate(
            scores[score][chosen].to_numpy(float),
            others[against][chosen].to_numpy(float),
            density[chosen].to_numpy(float),
            settings.analysis.bootstrap,
            PERMUTATIONS,
            settings.analysis.seed,
        )
        named = {"score": score, "against": against, "class": kind, "which": which}
        if len(made):
            rows.append(made.assign(**named, features=int(chosen.sum())))
    columns = ["score", "against", "class", "which", "features"]
    columns += ["coefficient", "value", "low", "high", "p"]
    every = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()
    write_table(correlations, every.reindex(columns=columns))
