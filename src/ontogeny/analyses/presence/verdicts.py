"""Where decoder norms and the tests of presence disagree, with intervals over features."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from ontogeny.analyses.presence.settings import Presence

THRESHOLDS = np.round(np.arange(0.05, 1.0001, 0.05), 2)
TOKEN_SHARE = 0.5  # least share of the activation that the token explains in a token feature
TESTS = ("scaling", "free")
UNKNOWN = {"value": np.nan, "low": np.nan, "high": np.nan}
COLUMNS = ["measure", "test", "group", "threshold", "value", "low", "high", "features", "pairs"]


class Resampled:
    """Bootstrap over features: how often each sample draws each feature."""

    def __init__(self, features: int, samples: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        even = np.full(features, 1 / features)
        self._weights = rng.multinomial(features, even, samples).astype(np.float32)

    def share(self, part: np.ndarray, whole: np.ndarray) -> dict[str, float]:
        """Σ part / Σ whole, both (F,), with its 95% interval; NaN where whole is 0 throughout.

        If the share is 0 or 1 in every feature, the bootstrap has no spread; the other end of the
        interval is then the exact binomial one, with features as trials.
        """
        part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
        trials = int((whole > 0).sum())
        if not trials:
            return UNKNOWN
        value = float(part.sum() / whole.sum())
        end = 0.025 ** (1 / trials)
        if not part.any():
            return {"value": value, "low": 0.0, "high": 1 - end}
        if (part == whole).all():
            return {"value": value, "low": end, "high": 1.0}
        total = self._weights @ whole
        drawn = (self._weights @ part)[total > 0] / total[total > 0]
        low, high = np.quantile(drawn, [0.025, 0.975])
        return {"value": value, "low": float(low), "high": float(high)}

    def spearman(self, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
        """Spearman's ρ over all pairs (F, n) with its 95% interval; NaN pairs are excluded."""
        known = np.isfinite(x) & np.isfinite(y)
        feature = np.nonzero(known)[0]
        if len(feature) < 3:
            return UNKNOWN
        a, b = (np.unique(v[known], return_inverse=True)[1] for v in (x, y))
        value = _spearman(a, b, np.ones(len(feature)))
        drawn = [_spearman(a, b, w[feature]) for w in self._weights if w[feature].any()]
        low, high = np.nanquantile(drawn, [0.025, 0.975])
        return {"value": value, "low": float(low), "high": float(high)}


def _spearman(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> float:
    """Spearman's ρ of values given by their rank order, each counted `weights` times."""
    ranks = []
    for order in (x, y):
        count = np.bincount(order, weights)
        ranks.append((np.cumsum(count) - count / 2)[order])
    total = weights.sum()
    a, b = (r - (weights @ r) / total for r in ranks)
    scale = np.sqrt((weights @ a**2) * (weights @ b**2))
    return float((weights @ (a * b)) / scale) if scale > 0 else float("nan")


def within(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's ρ over snapshots for each feature, (F,); NaN if either is constant."""
    rho = np.full(len(x), np.nan)
    for i, (one, other) in enumerate(zip(x, y, strict=True)):
        known = np.isfinite(one) & np.isfinite(other)
        if known.sum() > 2 and np.ptp(one[known]) > 0 and np.ptp(other[known]) > 0:
            rho[i] = stats.spearmanr(one[known], other[known]).statistic
    return rho


def _squares(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Each column as (F, n)."""
    n = table["feature"].value_counts().iloc[0]
    return {name: table[name].to_numpy().reshape(-1, n) for name in table.columns}


def find_verdicts(table: pd.DataFrame, section: Presence, drawn: Resampled) -> pd.DataFrame:
    """Where norm and scaling disagree, with 95% intervals from a bootstrap over features.

    Parameters
    ----------
    table : one row per feature and snapshot, features in order, each with all its snapshots.

    Returns
    -------
    measure, test ('scaling', 'free', and either with '_permuted'), group ('all', 'matched'),
    threshold, value, low, high, features, pairs. Measures, over pairs away from the feature's peak:
        unfounded     share of features, not pairs, whose peak scaling does not find; no other
                      measure includes them
        absent        share whose normalised strength is below `absent`
        contradicted  of those, share whose scaling is at least `threshold` of the peak's
        converse      of the pairs whose normalised strength is at least `threshold`, share whose
                      scaling is below `absent`
    features : number of features with such pairs. pairs : number of pairs.
    """
    square = _squares(table)
    norm, matched = square["normalised_strength"], square["matched"]
    founded = np.isfinite(square["scaling"])
    rows: list[dict[str, object]] = []

    def add(part: np.ndarray, whole: np.ndarray, **about: object) -> None:
        of_each = whole.sum(1)
        counts = {"features": int((of_each > 0).sum()), "pairs": int(of_each.sum())}
        rows.append(about | drawn.share((part & whole).sum(1), of_each) | counts)

    everywhere = np.ones_like(founded)
    for group, chosen in (("all", everywhere), ("matched", matched)):
        if not chosen.any():
            continue
        add(~founded, chosen & square["peak"], measure="unfounded", group=group)
        here = chosen & founded & ~square["peak"]
        absent = here & (norm < section.absent)
        add(absent, here, measure="absent", group=group, threshold=section.absent)
        for test in [f"{name}{floor}" for name in TESTS for floor in ("", "_permuted")]:
            value = square[test]
            about: dict[str, object] = {"test": test, "group": group}
            for threshold in np.union1d(THRESHOLDS, [section.contradicted]):
                about["threshold"] = threshold
                add(value >= threshold, absent, measure="contradicted", **about)
            there = here & (norm >= section.contradicted)
            about["threshold"] = section.contradicted
            add(value < section.absent, there, measure="converse", **about)
    return pd.DataFrame(rows)


def correlations(table: pd.DataFrame, drawn: Resampled) -> pd.DataFrame:
    """Spearman's ρ between each test and normalised strength, with 95% intervals over features.

    Returns
    -------
    measure, test ('scaling', 'free', 'probe', 'control', 'selectivity'), group ('all', 'matched';
    for the probes also 'token' and 'beyond_token', by whether the token explains at least
    TOKEN_SHARE of the activation), value, low, high, features, pairs. Measures:
        spearman         over all pairs of a feature and a snapshot
        spearman_within  over snapshots; mean over the features for which it is defined
        mean             mean of the probes' areas over all pairs; also for 'shuffled'
    """
    square = _squares(table)
    square["selectivity"] = square["probe"] - square["control"]
    token, matched = square["current_token"][:, 0] >= TOKEN_SHARE, square["matched"][:, 0]
    rows: list[dict[str, object]] = []

    def add(value: dict[str, float], of: np.ndarray, **about: object) -> None:
        counts = {"features": int(of.any(1).sum()), "pairs": int(of.sum())}
        rows.append(about | value | counts)

    for test in (*TESTS, "probe", "control", "selectivity", "shuffled"):
        of_probes = test not in TESTS
        groups = {"all": np.ones(len(token), bool), "matched": matched}
        if of_probes:
            groups |= {"token": token, "beyond_token": ~token}
        for group, chosen in groups.items():
            x = square["normalised_strength"]
            y = np.where(chosen[:, None], square[test], np.nan)
            known = np.isfinite(y)
            if not known.any():
                continue
            about = {"test": test, "group": group}
            if of_probes:
                mean = drawn.share(np.nan_to_num(y).sum(1), known.sum(1))
                add(mean, known, measure="mean", **about)
            if test == "shuffled":
                continue
            add(drawn.spearman(x, y), known, measure="spearman", **about)
            each = within(x, y)
            defined = np.isfinite(each)
            mean = drawn.share(np.nan_to_num(each), defined)
            add(mean, known & defined[:, None], measure="spearman_within", **about)
    return pd.DataFrame(rows)
