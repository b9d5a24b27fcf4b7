"""Kinds of feature, by rule: what an activation on held-out text depends on (docs/method.md 6).

Letters: f (N, F) activations at N held-out positions in text order, x_t the token at position t of
its block. Shares of a feature's variance, chance corrected (ε², below), which add up to 1:

    current_token    ε²(x_t)                     explained by the token itself
    previous_token   ε²(x_{t−1}, x_t) − ε²(x_t)  what the token before it adds
    context          1 − ε²(x_{t−1}, x_t)        what both leave

and shares of its mass Σ_t f less what it would be if only the pair of tokens mattered:

    induction        at t whose pair (x_{t−1}, x_t) stands earlier in the block
    copying          at t whose token x_t stands earlier in the block (given x_t alone)

Each has its null from permutations that break what it claims and keep the rest: of all positions
for current_token, within a token for previous_token and copying, within a pair for induction. The
context share has none, since it is what is left; that it is more than noise has to show in what the
residual hangs on beside the pair, the token before them or the block, within a pair likewise:

    wider            the larger of ε²(x_{t−2}) and ε²(block), of what the pair leaves

No language model judges.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

from ontogeny import devices
from ontogeny.analyses.kinds.settings import Kinds
from ontogeny.corpus.build import Tokens
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.features.held_out import between_groups, explained, group_sums, held_out, membership
from ontogeny.files import InputError, write_table
from ontogeny.progress import bar
from ontogeny.settings import Settings

SCORES = ("current_token", "previous_token", "copying", "induction", "wider")
KINDS = ("current_token", "previous_token", "induction", "context")


class Positions:
    """What the rules need to know of N positions.

    Parameters
    ----------
    tokens : (blocks, context) ids. block, offset : (N,) of each position, in text order.

    Attributes
    ----------
    current, pair, before, block : (N,) groups, numbered from 0: of x_t, of (x_{t−1}, x_t), of
        x_{t−2}, of the block. Where a token would lie before the block, that is a group of its own.
    token_again, pair_again : (N,) bool, whether x_t, and the pair, stand earlier in the block.
    """

    def __init__(self, tokens: np.ndarray, block: np.ndarray, offset: np.ndarray) -> None:
        ids = np.pad(tokens.astype(np.int64) + 1, ((0, 0), (2, 0)))  # 0: before the block
        x, x1, x2 = ids[block, offset + 2], ids[block, offset + 1], ids[block, offset]
        size = int(ids.max()) + 1
        self.current = _groups(x)
        self.pair = _groups(x1 * size + x)
        self.before = _groups(x2)
        self.block = _groups(block)
        # All positions of the block count as earlier ones, those without a row too.
        every = ids[:, 1:]
        again = _seen(every[:, 1:])
        self.token_again = again[block, offset]
        pairs = _seen(every[:, :-1] * size + every[:, 1:])
        self.pair_again = pairs[block, offset] & (offset > 0)


def _groups(values: np.ndarray) -> np.ndarray:
    return np.unique(values, return_inverse=True)[1]


def _seen(rows: np.ndarray) -> np.ndarray:
    """Whether each entry stands earlier in its row, (R, C)."""
    order = np.argsort(rows, axis=1, kind="stable")
    sorted_ = np.take_along_axis(rows, order, 1)
    again = np.zeros(rows.shape, bool)
    same = np.zeros(rows.shape, bool)
    same[:, 1:] = sorted_[:, 1:] == sorted_[:, :-1]
    np.put_along_axis(again, order, same, 1)
    return again


def excess(f: sparse.csr_array, where: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Share of the mass at some positions, less its mean over permutations within groups, (F,)."""
    mass = np.maximum(np.asarray(f.sum(0)).ravel(), 1e-30)
    rate = np.bincount(groups, where) / np.bincount(groups)
    return np.asarray((where - rate[groups]) @ f).ravel() / mass


def wider(f: sparse.csr_array, p: Positions) -> np.ndarray:
    """The larger share that x_{t−2} or the block explains of what the pair's mean leaves, (F,)."""
    sizes = np.bincount(p.pair)
    sums = group_sums(f, p.pair)
    squares = np.asarray(f.power(2).sum(0)).ravel()
    total = squares - between_groups(sums, sizes)
    means = sparse.diags_array(1 / sizes) @ sums
    found = np.zeros(f.shape[1])
    for groups in (p.before, p.block):
        # Sums of the residual by group: of f, less as often each pair's mean as it stands there.
        together = membership(groups) @ membership(p.pair).T
        left = group_sums(f, groups) - sparse.csr_array(together) @ means
        counts = np.bincount(groups)
        within = total - between_groups(left, counts)
        N, G = len(groups), len(counts)
        share = (within / max(1, N - G)) / np.maximum(total / (N - 1), 1e-30)
        found = np.maximum(found, np.where(total > 1e-9 * squares, 1 - share, 0))
    return found


def scores(f: sparse.csr_array, p: Positions) -> dict[str, np.ndarray]:
    """All scores of every feature, each (F,)."""
    current, pair = explained(f, p.current), explained(f, p.pair)
    return {
        "current_token": current,
        "previous_token": pair - current,
        "context": 1 - pair,
        "copying": excess(f, p.token_again, p.current),
        "induction": excess(f, p.pair_again, p.pair),
        "wider": wider(f, p),
    }


def _shuffled(groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A permutation of the positions that leaves each in its group."""
    key = rng.random(len(groups))
    target = np.argsort(groups, kind="stable")
    found = np.empty(len(groups), np.int64)
    found[target] = np.lexsort((key, groups))
    return found


def null(
    f: sparse.csr_array, p: Positions, permutations: int, quantile: float, seed: int
) -> dict[str, np.ndarray]:
    """What each score has to pass, (F,), by score: mean + z · deviation over permutations.

    z is the stated quantile, over permutations, of the largest standardised score of any feature
    (Westfall and Young's maxT): at 0.95, in one of twenty data sets without structure a single
    feature passes by chance.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, list[np.ndarray]] = {name: [] for name in SCORES}
    everywhere = np.zeros(len(p.current), np.int64)
    with bar("kinds: permutations", permutations, "permutations") as progress:
        for _ in range(permutations):
            found["current_token"].append(explained(f[_shuffled(everywhere, rng)], p.current))
            own = f[_shuffled(p.current, rng)]
            gain = explained(own, p.pair) - explained(own, p.current)
            found["previous_token"].append(gain)
            found["copying"].append(excess(own, p.token_again, p.current))
            own = f[_shuffled(p.pair, rng)]
            found["induction"].append(excess(own, p.pair_again, p.pair))
            found["wider"].append(wider(own, p))
            progress.update()
    limits = {}
    for name, values in found.items():
        each = np.stack(values)
        mean, deviation = each.mean(0), np.maximum(each.std(0, ddof=1), 1e-9)
        largest = ((each - mean) / deviation).max(1)
        limits[name] = mean + np.quantile(largest, quantile) * deviation
    return limits


def judge(found: pd.DataFrame, least: float, active: int) -> pd.Series:
    """The kind of each feature, or 'none'; that is also any that is active too seldom.

    The largest of the three shares of variance names it, where it is at least `least` and its
    score passes the null: `wider` for context. A feature of context is one of induction where
    induction passes its null and is at least `least`.
    """
    shares = found[["current_token", "previous_token", "context"]]
    kind: pd.Series[str] = shares.idxmax(axis=1).astype(str)
    passed = {name: found[name] > found[f"{name}_null"] for name in SCORES}
    induction = passed["induction"] & (found["induction"] >= least) & (kind != "current_token")
    fine = (kind == "context") & passed["wider"]
    for name in ("current_token", "previous_token"):
        fine |= (kind == name) & passed[name]
    kind = kind.where(fine & (shares.max(axis=1) >= least), "none")
    kind = kind.mask(induction, "induction")
    return kind.where(found["active"] >= active, "none")


def measure(
    settings: Settings,
    crosscoder: Path,
    activations: Path,
    tokens: Path,
    kinds: Path,
    control: Path,
) -> None:
    """Write the kinds of a crosscoder's features, and what the rules find where nothing is.

    Parameters
    ----------
    crosscoder : folder of a seed. activations : the experiment's folder. tokens : tokens.h5.
    kinds : Parquet; feature, active (positions), context, and of each other score its value and
        NAME_null; kind. Features that are active nowhere in the held-out text have no row.
    control : CSV; kind, features, permuted: how many there are, and how many the same rules find
        once every feature's activations are permuted over all positions.
    """
    section, seed = settings.section(Kinds), settings.analysis.seed
    trained = Crosscoder.load(crosscoder, devices.choose(settings.device))
    f, position = held_out(trained, activations)
    data = Tokens(tokens)
    first, last = data.splits["held_out"]
    block = position[:, 0].astype(np.int64) - first
    p = Positions(data.take(np.arange(first, last)), block, position[:, 1].astype(np.int64))
    living = np.flatnonzero(np.asarray((f > 0).sum(0)).ravel())
    if not len(living):
        raise InputError(
            f"{crosscoder}: no feature is active on the held-out text; train it for longer"
        )
    f = f[:, living].astype(np.float64)
    scored = table(f, p, section, seed)
    scored.insert(0, "feature", living)
    rng = np.random.default_rng(seed + 1)
    permuted = table(f[rng.permutation(f.shape[0])], p, section, seed)
    names = [*KINDS, "none"]
    counts = {
        column: judged["kind"].value_counts().reindex(names, fill_value=0)
        for column, judged in (("features", scored), ("permuted", permuted))
    }
    write_table(control, pd.DataFrame(counts).rename_axis("kind").reset_index())
    write_table(kinds, scored)


def table(f: sparse.csr_array, p: Positions, section: Kinds, seed: int) -> pd.DataFrame:
    """Scores, nulls and kind of every feature, one row per feature."""
    f = sparse.csr_array(f)
    limits = null(f, p, section.permutations, section.quantile, seed)
    scored = pd.DataFrame(
        {
            "active": np.asarray((f > 0).sum(0)).ravel(),
            **scores(f, p),
            **{f"{name}_null": limit for name, limit in limits.items()},
        }
    )
    scored["kind"] = judge(scored, section.share, section.active)
    return scored
