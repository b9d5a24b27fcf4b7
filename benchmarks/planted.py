"""A planted world: activations of snapshots whose features, and their births and deaths, are known.

`make(seed)` gives 300 true features at n = 16 snapshots of width d = 64, 60,000 training rows and
10,000 held-out ones. NumPy alone; the same seed gives the same world. The activation at snapshot θ
is

    x^θ = μ^θ + Σ_i c_i·e_i^θ · A_i^θ · v_i^θ + Σ_j z_j · u_j^θ + noise

    c   code: a magnitude on the tokens that feature i fires on, 0 on all others; one for all
        snapshots. Magnitudes are log-normal (σ 0.5 within a feature, 0.25 between features)
    e   jitter of 10% by token, feature and snapshot
    A   strength, from 0 (absent) to 1. Its course over snapshots is the feature's *kind*
    v   unit direction. It turns slowly, to a cosine of 0.75 from end to end; 15% of the features
        turn abruptly once, to a cosine of 0.3
    u   three dense directions, z normal: about a third of the variance. Noise: about 6%
    μ   a mean whose norm differs by snapshot, from 0.3 to 3 times √d

| kind | features | course |
|---|---|---|
| always | 80 | there at all snapshots |
| born | 40 | in one step, at snapshot 3 to 12 (snapshots are counted from 0) |
| ramp | 30 | born over three snapshots, with 1/3, 2/3 and all of its strength |
| dying | 30 | gone from snapshot 4 to 13 on |
| transient | 24 | there for 3 to 6 snapshots |
| reappearing | 16 | there, absent for 3 to 5 snapshots, there again |
| parent, child | 8, 16 | the parent ends where its two children begin, at snapshot 4 to 11; the children share out its tokens, with directions of cosine 0.5 to 0.7 to the parent's |
| elder, twin | 12, 12 | where one fires, the other does in 0.8 of the cases; the elder is there always, the twin is born later |
| settling | 16 | a code before a direction: it fires at full strength all along, in a new random direction at each snapshot, until its direction settles, at snapshot 4 to 12 |
| recoded | 16 | a code that not all snapshots share: before snapshot 4 to 12 it fires on 0.8, 0.6, 0.4 or 0.2 of its later tokens, and on others for the rest |

Frequencies are log-flat from 0.001 to 0.1 whatever the kind, so that about a quarter are *rare*,
below 0.003; a twin has its elder's, a parent the sum of its children's. Sixty features of the first
six kinds stand in thirty pairs, of which one also fires on 0.4 of the other's tokens. On a token
8 things are active at a snapshot: 5 features and the dense directions.
"""  # noqa: E501

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

N, D = 16, 64
TRAIN_ROWS, HELD_OUT_ROWS = 60_000, 10_000
KINDS = {
    "always": 80, "born": 40, "ramp": 30, "dying": 30, "transient": 24, "reappearing": 16,
    "parent": 8, "child": 16, "elder": 12, "twin": 12, "settling": 16, "recoded": 16,
}  # fmt: skip
ORDINARY = ("always", "born", "ramp", "dying", "transient", "reappearing")
LEAST, MOST, RARE = 0.001, 0.1, 0.003  # frequencies
SHARED = (0.8, 0.6, 0.4, 0.2)  # of a recoded feature's tokens, by turns
TOGETHER, PAIRED, PAIRS = 0.8, 0.4, 30
ABRUPT, SLOW_TURN, DENSE_TURN = 0.15, 0.2, 0.1
DENSE, NOISE, JITTER = (1.6, 1.1, 0.85), 0.11, 0.1


@dataclass(frozen=True)
class World:
    """Activations and the truth behind them. G true features.

    Attributes
    ----------
    train, held_out : (n, rows, d) float16 activations.
    codes : (held-out rows, G) float32 magnitudes, 0 where silent; a recoded feature's later code.
    strength : (G, n), A. directions : (G, n, d) unit, v.
    kind : (G,) names. frequency : (G,) share of the training tokens that a feature fires on.
    settles : (G,) snapshot from which direction and code last; 0 but for settling and recoded.
    shared : (G,) share of the early code that is the later one; 1 but for recoded.
    variance : shares of features, dense directions and noise, mean over snapshots.
    """

    train: np.ndarray
    held_out: np.ndarray
    codes: np.ndarray
    strength: np.ndarray
    directions: np.ndarray
    kind: np.ndarray
    frequency: np.ndarray
    settles: np.ndarray
    shared: np.ndarray
    variance: tuple[float, ...]


def make(seed: int, train_rows: int = TRAIN_ROWS, held_out_rows: int = HELD_OUT_ROWS) -> World:
    """The world of a seed."""
    rng = np.random.default_rng([seed, N, D])
    kind = np.repeat(list(KINDS), list(KINDS.values()))
    strength, settles = _courses(rng, kind)
    directions = _directions(rng, kind, settles)
    shared = np.ones(len(kind))
    recoded = np.flatnonzero(kind == "recoded")
    shared[recoded] = np.resize(SHARED, len(recoded))

    rows = train_rows + held_out_rows
    frequency = _frequencies(rng, kind)
    late = _firing(rng, kind, frequency, rows)
    early = late.copy()
    for i in recoded:
        others = frequency[i] * (1 - shared[i]) / (1 - frequency[i])
        early[:, i] = rng.random(rows) < np.where(late[:, i], shared[i], others)
    size = np.exp(rng.normal(0, 0.25, len(kind)) + rng.normal(0, 0.5, late.shape))
    codes, early_codes = (np.where(on, size, 0).astype(np.float32) for on in (late, early))
    children = np.flatnonzero(kind == "child").reshape(-1, 2)
    codes[:, kind == "parent"] = early_codes[:, kind == "parent"] = codes[:, children].sum(2)

    dense = np.stack([_walk(rng, _units(rng, 1)[0], DENSE_TURN) for _ in DENSE])  # (3, n, d)
    z = rng.normal(0, DENSE, (rows, len(DENSE)))
    lasting = _units(rng, 1)[0]
    X, parts = np.empty((N, rows, D), np.float16), []
    for s in range(N):
        there = np.where(s < settles, early_codes, codes)
        active = there != 0
        there[active] *= np.exp(rng.normal(0, JITTER, active.sum()))
        from_features = there @ (strength[:, s, None] * directions[:, s])
        from_dense = z @ dense[:, s]
        noise = rng.normal(0, NOISE, (rows, D))
        parts.append([part.var(0).sum() for part in (from_features, from_dense, noise)])
        mean = lasting + 0.5 * _units(rng, 1)[0]
        mean *= D**0.5 * np.exp(rng.uniform(np.log(0.3), np.log(3))) / np.linalg.norm(mean)
        X[s] = from_features + from_dense + noise + mean
    shares = np.mean([np.array(part) / np.sum(part) for part in parts], 0)
    return World(
        train=X[:, :train_rows],
        held_out=X[:, train_rows:],
        codes=codes[train_rows:],
        strength=strength,
        directions=directions,
        kind=kind,
        frequency=late[:train_rows].mean(0),
        settles=settles,
        shared=shared,
        variance=tuple(shares.tolist()),
    )


def _courses(rng: np.random.Generator, kind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Strengths (G, n), and the snapshot that direction and code last from, (G,)."""
    strength, settles = np.ones((len(kind), N)), np.zeros(len(kind), int)
    s = np.arange(N)
    children = iter(np.flatnonzero(kind == "child").reshape(-1, 2))
    for i, name in enumerate(kind):
        if name in ("born", "twin"):
            strength[i] = s >= rng.integers(3, 13)
        elif name == "ramp":
            strength[i] = np.clip((s - rng.integers(2, 12) + 1) / 3, 0, 1)
        elif name == "dying":
            strength[i] = s < rng.integers(4, 14)
        elif name == "transient":
            birth = rng.integers(1, 9)
            strength[i] = (s >= birth) & (s < birth + rng.integers(3, 7))
        elif name == "reappearing":
            death = rng.integers(3, 8)
            strength[i] = (s < death) | (s >= death + rng.integers(3, 6))
        elif name == "parent":
            split = rng.integers(4, 12)
            strength[i] = s < split
            strength[next(children)] = s >= split
        elif name in ("settling", "recoded"):
            settles[i] = rng.integers(4, 13)
    return strength, settles


def _units(rng: np.random.Generator, count: int) -> np.ndarray:
    """Random unit vectors, (count, d)."""
    v = rng.normal(size=(count, D))
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def _walk(rng: np.random.Generator, start: np.ndarray, turn: float, abrupt: int = -1) -> np.ndarray:
    """Unit directions (n, d) from `start` on; `turn` is the tangent of a step's angle.

    abrupt : the snapshot of a turn to a cosine of 0.3; −1 is none.
    """
    found = [start]
    for s in range(1, N):
        by, kept = (1 - 0.3**2) ** 0.5 if s == abrupt else turn, 0.3 if s == abrupt else 1.0
        step = kept * found[-1] + by * _units(rng, 1)[0]
        found.append(step / np.linalg.norm(step))
    return np.stack(found)


def _directions(rng: np.random.Generator, kind: np.ndarray, settles: np.ndarray) -> np.ndarray:
    """(G, n, d) unit."""
    starts = _units(rng, len(kind))
    parents = np.repeat(np.flatnonzero(kind == "parent"), 2)
    for child, parent in zip(np.flatnonzero(kind == "child"), parents, strict=True):
        starts[child] += starts[parent]
        starts[child] /= np.linalg.norm(starts[child])
    turns = np.where(rng.random(len(kind)) < ABRUPT, rng.integers(4, 13, len(kind)), -1)
    found = np.stack([_walk(rng, v, SLOW_TURN, t) for v, t in zip(starts, turns, strict=True)])
    for i in np.flatnonzero(kind == "settling"):
        found[i] = _walk(rng, starts[i], SLOW_TURN)
        found[i, : settles[i]] = _units(rng, int(settles[i]))
    return found


def _frequencies(rng: np.random.Generator, kind: np.ndarray) -> np.ndarray:
    """(G,), log-flat, before pairs add to them."""
    at = (rng.permutation(len(kind)) + 0.5) / len(kind)
    frequency = MOST * (LEAST / MOST) ** at
    frequency[kind == "twin"] = frequency[kind == "elder"]
    frequency[kind == "parent"] = frequency[kind == "child"].reshape(-1, 2).sum(1)
    return frequency


def _firing(
    rng: np.random.Generator, kind: np.ndarray, frequency: np.ndarray, rows: int
) -> np.ndarray:
    """Which features fire on which tokens, (rows, G)."""
    on = rng.random((rows, len(kind)), np.float32) < frequency
    of = {name: np.flatnonzero(kind == name) for name in KINDS}
    for parent, (one, other) in zip(of["parent"], of["child"].reshape(-1, 2), strict=True):
        on[:, other] &= ~on[:, one]
        on[:, parent] = on[:, one] | on[:, other]
    for elder, twin in zip(of["elder"], of["twin"], strict=True):
        alone = frequency[twin] * (1 - TOGETHER) / (1 - frequency[twin])
        on[:, twin] = rng.random(rows) < np.where(on[:, elder], TOGETHER, alone)
    ordinary = rng.permutation(np.flatnonzero(np.isin(kind, ORDINARY)))
    for one, other in ordinary[: 2 * PAIRS].reshape(-1, 2):
        on[:, other] |= on[:, one] & (rng.random(rows) < PAIRED)
    return on
