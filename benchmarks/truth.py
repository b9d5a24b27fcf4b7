"""How well the decoder norms of learned features tell the planted truth (planted.py).

Letters as there: n snapshots, d their width, G true features; F learned ones. A feature's
*normalised norm* is its decoder norm over its largest; it reads *present* where it is at least ½.
In truth a feature is present where its strength is at least half, and absent where it is 0; the
first third of a ramp is neither and counts nowhere.

The main measures are over PLAIN features that are found: those of one code and one slowly turning
direction. Parents and children, settling and recoded features come apart, by kind.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import rankdata

from benchmarks.planted import KINDS, ORDINARY, RARE, SHARED, World
from ontogeny.features import matching
from ontogeny.features.histories import decoder_norms, normalise

PLAIN = (*ORDINARY, "elder", "twin")
FOUND = 0.7  # cosine of stacked decoders, or correlation of codes
PRESENT, QUARTER, FAINT = 0.5, 0.25, 0.1
PARALLEL, OVERLAP, WITHIN, FREQUENT = 0.8, 0.5, 2, 0.03
BINS = np.linspace(0, 1, 41)
NOT_KNOWN = float("nan")


def match(
    decoders: np.ndarray, codes: np.ndarray, world: World
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pair learned and true features one to one, with the largest sum of both likenesses.

    Parameters
    ----------
    decoders : (F, n, d). codes : (rows, F) of the world's held-out rows.

    Returns
    -------
    learned, true : (M,) indices of pairs of which the cosine of the stacked decoders, or the
        correlation of the codes, is at least FOUND. cosine : (M,).
    """
    truth = world.strength[:, :, None] * world.directions
    cosine = (
        _rows_of_norm_1(decoders.reshape(len(decoders), -1))
        @ _rows_of_norm_1(truth.reshape(len(truth), -1)).T
    )
    correlation = _standard(codes).T @ _standard(world.codes) / len(codes)
    partner, _ = matching.assign(cosine + correlation)
    learned = np.flatnonzero(partner >= 0)
    true = partner[learned]
    alike = np.maximum(cosine, correlation)[learned, true] >= FOUND
    learned, true = learned[alike], true[alike]
    return learned, true, cosine[learned, true]


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else NOT_KNOWN


def _rows_of_norm_1(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _standard(codes: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and variance 1; of a silent feature, of zeros."""
    centred = codes - codes.mean(0)
    return centred / np.maximum(centred.std(0), 1e-9)


def scores(norms: np.ndarray, strength: np.ndarray, cut: float) -> dict[str, float]:
    """Precision, recall and F1 of 'normalised norm ≥ cut' as presence, both (M, n)."""
    says, present, absent = norms >= cut, strength >= PRESENT, strength == 0
    right, false = int((says & present).sum()), int((says & absent).sum())
    missed = int((~says & present).sum())
    return {
        "precision": right / max(1, right + false),
        "recall": right / max(1, right + missed),
        "f1": 2 * right / max(1, 2 * right + false + missed),
    }


def auc(norms: np.ndarray, strength: np.ndarray) -> float:
    """ROC AUC of the normalised norm for presence; NaN where one class is empty."""
    present, counted = strength >= PRESENT, (strength >= PRESENT) | (strength == 0)
    ranks, is_present = rankdata(norms[counted]), present[counted]
    ones, zeros = int(is_present.sum()), int((~is_present).sum())
    if not ones or not zeros:
        return NOT_KNOWN
    return float((ranks[is_present].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def turning_snapshots(present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last snapshot at which each feature is present, (M,), from (M, n) bool."""
    return present.argmax(1), present.shape[1] - 1 - present[:, ::-1].argmax(1)


def timing(norms: np.ndarray, strength: np.ndarray) -> dict[str, float]:
    """Errors of births and deaths in snapshots, of features that are born, or die, in truth."""
    true_birth, true_death = turning_snapshots(strength >= PRESENT)
    birth, death = turning_snapshots(norms >= PRESENT)
    found: dict[str, float] = {}
    for name, happens, error in (
        ("birth", true_birth > 0, np.abs(birth - true_birth)),
        ("death", true_death < norms.shape[1] - 1, np.abs(death - true_death)),
    ):
        errors = error[happens]
        found[f"{name}_within_one"] = _mean(errors <= 1)
        found[f"{name}_error_median"] = float(np.median(errors)) if len(errors) else NOT_KNOWN
        found[f"{name}_error_90"] = float(np.quantile(errors, 0.9)) if len(errors) else NOT_KNOWN
    return found


def holes(norms: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """(M,) features that read absent, between two snapshots of presence, where they are present."""
    says = norms >= PRESENT
    first, last = turning_snapshots(says)
    at = np.arange(says.shape[1])
    inside = (at > first[:, None]) & (at < last[:, None])
    return np.asarray((inside & ~says & (strength >= PRESENT)).any(1))


def relays(decoders: np.ndarray, codes: np.ndarray) -> list[tuple[int, int, int]]:
    """Pairs of learned features of which one takes over the other's part.

    The norm of one falls through ½ while that of the other rises through it, at most WITHIN
    snapshots apart; their decoders there have a cosine of PARALLEL or more; and on tokens where
    either is active their codes correlate by OVERLAP or more.

    Parameters
    ----------
    decoders : (F, n, d). codes : (rows, F).

    Returns
    -------
    (falling, rising, the snapshot at which the first reads absent) of each.
    """
    strength = decoder_norms(decoders)
    unit = _rows_of_norm_1(decoders)
    living = np.asarray((codes > 0).any(0))
    present = living[:, None] & (strength >= PRESENT * strength.max(1, keepdims=True))
    fall, falls_at = np.nonzero(present[:, :-1] & ~present[:, 1:])
    rise, rises_at = np.nonzero(~present[:, :-1] & present[:, 1:])
    near = np.abs(falls_at[:, None] - rises_at[None]) <= WITHIN
    one, other = np.nonzero(near & (fall[:, None] != rise[None]))
    # The last direction of the falling one beside the first of the rising one.
    cosine = np.einsum(
        "pd,pd->p", unit[fall[one], falls_at[one]], unit[rise[other], rises_at[other] + 1]
    )
    found = []
    for p in np.flatnonzero(cosine >= PARALLEL):
        i, j = int(fall[one[p]]), int(rise[other[p]])
        either = (codes[:, i] > 0) | (codes[:, j] > 0)
        a, b = codes[either, i], codes[either, j]
        if a.std() > 0 and b.std() > 0 and np.corrcoef(a, b)[0, 1] >= OVERLAP:
            found.append((i, j, int(falls_at[one[p]]) + 1))
    return found


def measure(decoders: np.ndarray, codes: np.ndarray, world: World) -> dict[str, Any]:
    """All measures of one training.

    Parameters
    ----------
    decoders : (F, n, d). codes : (rows, F), a feature's activation on each of the world's held-out
        rows, at whichever snapshot its gate is open.

    Returns
    -------
    Numbers by name, NaN where there is nothing to count; by_kind has a mapping for each kind of
    feature; `present` and `absent` count the plain features' normalised norms in BINS; `relay` is
    an example, or None.
    """
    learned, true, cosine = match(decoders, codes, world)
    norms = normalise(np.maximum(decoder_norms(decoders), 1e-12))
    kind, own = world.kind[true], norms[learned]
    plain = np.isin(kind, PLAIN)
    main, course = own[plain], world.strength[true][plain]
    rare = world.frequency[true][plain] < RARE
    with_splits = plain | np.isin(kind, ("parent", "child"))
    found = np.isin(np.arange(len(world.kind)), true)
    pairs = relays(decoders, codes)
    taking_part = np.unique([pair[:2] for pair in pairs]).astype(int)
    rate = (codes > 0).mean(0)
    return {
        **scores(main, course, PRESENT),
        "f1_quarter": scores(main, course, QUARTER)["f1"],
        "f1_rare": scores(main[rare], course[rare], PRESENT)["f1"],
        "f1_with_splits": scores(own[with_splits], world.strength[true][with_splits], PRESENT)[
            "f1"
        ],
        "f1_all": scores(own, world.strength[true], PRESENT)["f1"],
        "auc": auc(main, course),
        **timing(main, course),
        "holes": _mean(holes(main, course)),
        "absent_below_tenth": _mean(main[course == 0] < FAINT),
        "recovered": _mean(found),
        "recovered_rare": _mean(found[world.frequency < RARE]),
        "cosine_median": float(np.median(cosine)) if len(cosine) else NOT_KNOWN,
        "relays": len(taking_part),
        "relays_frequent": int((rate[taking_part] > FREQUENT).sum()),
        "dead": _mean(rate == 0),
        "by_kind": {
            name: {"found": _mean(found[world.kind == name])}
            | _of_kind(own[kind == name], true[kind == name], world)
            for name in KINDS
        },
        "settling": _settling(decoders[learned], own, true, world),
        "recoded": _recoded(own, true, world),
        "present": np.histogram(main[course >= PRESENT], BINS)[0].tolist(),
        "absent": np.histogram(main[course == 0], BINS)[0].tolist(),
        "relay": _example(pairs, norms, learned, true, world),
    }


def _of_kind(norms: np.ndarray, true: np.ndarray, world: World) -> dict[str, float]:
    """F1, and the shares of absences that read present and of presences that read absent.

    norms, true : of the found features of a kind. A settling feature is present once it has
    settled, absent before.
    """
    strength = world.strength[true] * (np.arange(norms.shape[1]) >= _since(true, world))
    says = norms >= PRESENT
    return {
        "f1": scores(norms, strength, PRESENT)["f1"] if len(norms) else NOT_KNOWN,
        "false": _mean(says[strength == 0]),
        "missed": _mean(~says[strength >= PRESENT]),
    }


def _since(true: np.ndarray, world: World) -> np.ndarray:
    """(M, 1) the snapshot from which a direction lasts."""
    return np.where(world.kind[true] == "settling", world.settles[true], 0)[:, None]


def _settling(
    decoders: np.ndarray, norms: np.ndarray, true: np.ndarray, world: World
) -> dict[str, float]:
    """Settling features: their norms before, and F1 of a cosine of ½ to the last decoder."""
    of_kind = world.kind[true] == "settling"
    since = _since(true[of_kind], world)
    settled = (np.arange(norms.shape[1]) >= since).astype(float)
    unit = _rows_of_norm_1(decoders[of_kind])
    to_last = np.einsum("fnd,fd->fn", unit, unit[:, -1])
    return {
        "norm_before": _mean(norms[of_kind][settled == 0]),
        "f1_direction": scores(to_last, settled, PRESENT)["f1"] if of_kind.any() else NOT_KNOWN,
    }


def _recoded(norms: np.ndarray, true: np.ndarray, world: World) -> dict[str, float]:
    """Mean norm before a recoded feature's later code, by the share of tokens that is shared."""
    early = np.arange(norms.shape[1]) < world.settles[true][:, None]
    of_kind = world.kind[true] == "recoded"
    return {
        f"{share:g}": _mean(norms[early & (of_kind & (world.shared[true] == share))[:, None]])
        for share in SHARED
    }


def _example(
    pairs: list[tuple[int, int, int]],
    norms: np.ndarray,
    learned: np.ndarray,
    true: np.ndarray,
    world: World,
) -> dict[str, Any] | None:
    """The relay whose shorter part is longest, of those of a plain feature that was found."""
    owner = dict(zip(learned.tolist(), true.tolist(), strict=True))
    lasts = (norms >= PRESENT).sum(1)
    for i, j, _ in sorted(pairs, key=lambda pair: -min(lasts[pair[0]], lasts[pair[1]])):
        known = [owner[one] for one in (i, j) if one in owner and world.kind[owner[one]] in PLAIN]
        if known:
            return {
                "falling": norms[i].tolist(),
                "rising": norms[j].tolist(),
                "strength": world.strength[known[0]].tolist(),
                "kind": str(world.kind[known[0]]),
                "frequency": float(world.frequency[known[0]]),
            }
    return None
