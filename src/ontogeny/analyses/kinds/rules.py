"""Kinds of feature by rule: what activations on held-out text depend on (docs/method.md 6).

Letters: f (N, F) activations at N held-out positions in text order, x_t the token at position t of
its block. The rules use shares of a feature's variance, corrected for chance (ε², held_out.py):

    current_token    ε²(x_t)                          explained by the token itself
    previous_token   ε²(x_{t−1}, x_t) − ε²(x_t)       added by the previous token
    position         ε²(t)                            explained by the offset in the block
    context          1 − ε²(x_{t−1}, x_t) − ε²(t)     left after all of these

and shares of its mass Σ_t f minus the share expected if only the pair of tokens mattered:

    induction        at t whose pair (x_{t−1}, x_t) occurs earlier in the block
    copying          at t whose token x_t occurs earlier in the block (given x_t alone)

The first position of a block has no pair. It is left out of the scores that use x_{t−1}, and
`wider` leaves out the first two positions. Otherwise "is the first" would act as a previous token
of its own: in a GPT-2 every previous-token feature was then a feature of position 0.

Each score has a null from permutations that break what it measures and keep the rest: over all
positions for current_token; within a token for previous_token, position and copying; within a pair
for induction. The context share is a remainder and has no null. To show that it is more than noise,
the residual after the pair's mean has to depend on x_{t−2} or on the block; the null of this score
permutes within a pair:

    wider            the larger of ε²(x_{t−2}) and ε²(block) of that residual

No language model is used as a judge.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy import sparse

from ontogeny.analyses.kinds.settings import Kinds
from ontogeny.progress import bar

SCORES = ("current_token", "previous_token", "position", "copying", "induction", "wider")
SHARES = ("current_token", "previous_token", "position", "context")
PIECE_ENTRIES = 1 << 20  # activations whose permutations are computed together
LEAST_DEVIATION = 1e-6  # least deviation over permutations; smaller ones are rounding
GROUP_ENTRIES = 1 << 21  # sums by group and feature in memory at a time


def _groups(values: np.ndarray) -> np.ndarray:
    return np.unique(values, return_inverse=True)[1]


def _seen(rows: np.ndarray) -> np.ndarray:
    """Whether each entry occurs earlier in its row, (R, C)."""
    order = np.argsort(rows, axis=1, kind="stable")
    sorted_ = np.take_along_axis(rows, order, 1)
    again = np.zeros(rows.shape, bool)
    same = np.zeros(rows.shape, bool)
    same[:, 1:] = sorted_[:, 1:] == sorted_[:, :-1]
    np.put_along_axis(again, order, same, 1)
    return again


class Positions:
    """What the rules need to know about N positions.

    Parameters
    ----------
    tokens : (blocks, context) ids. block, offset : (N,) of each position, in text order.

    Attributes
    ----------
    current, pair, before, block, offset : (N,) groups, numbered from 0: by x_t, by (x_{t−1}, x_t),
        by x_{t−2}, by block, by position in the block.
    second, third : (N,) bool, whether there is an x_{t−1}, and an x_{t−2}.
    token_again, pair_again : (N,) bool, whether x_t, and the pair, occur earlier in the block.
    """

    def __init__(self, tokens: np.ndarray, block: np.ndarray, offset: np.ndarray) -> None:
        ids = np.pad(tokens.astype(np.int64) + 1, ((0, 0), (2, 0)))  # 0: before the block
        x, x1, x2 = ids[block, offset + 2], ids[block, offset + 1], ids[block, offset]
        size = int(ids.max()) + 1
        self.current = _groups(x)
        self.pair = _groups(x1 * size + x)
        self.before = _groups(x2)
        self.block, self.offset = _groups(block), _groups(offset)
        self.second, self.third = offset >= 1, offset >= 2
        # All earlier positions of the block count, including those without a row.
        every = ids[:, 1:]
        self.token_again = _seen(every[:, 1:])[block, offset]
        pairs = _seen(every[:, :-1] * size + every[:, 1:])
        self.pair_again = pairs[block, offset] & self.second


class Shuffle:
    """Permutations of positions that keep each one in its group.

    Parameters
    ----------
    groups : (n,) integers.
    """

    def __init__(self, groups: np.ndarray) -> None:
        self._groups = groups
        self._place = np.argsort(groups, kind="stable")

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """(n,): the position from which each one takes its activation."""
        order = np.empty(len(self._groups), np.int32)
        order[self._place] = np.argsort(self._groups + rng.random(len(self._groups)))
        return order


class Sample:
    """Activations at some positions, and how much of their variance a grouping explains.

    Parameters
    ----------
    f : (N, F). chosen : (N,) bool.
    """

    def __init__(self, f: sparse.csr_array, chosen: np.ndarray) -> None:
        self.f, self.rows = f, np.flatnonzero(chosen)
        self.count = len(self.rows)
        part = chosen.astype(np.float64)
        self.squares = np.asarray(part @ f.power(2)).ravel()
        self.total = self.squares - np.asarray(part @ f).ravel() ** 2 / max(1, self.count)
        self.varies = self.total > 1e-12 * self.squares

    def sums(self, groups: np.ndarray, order: np.ndarray | None = None) -> sparse.csr_array:
        """Sums of the activations by group, (G, F).

        Parameters
        ----------
        groups : (n,) of the positions chosen. order : (n,) position from which each one takes its
            activation; its own if not given.
        """
        rows = self.rows if order is None else self.rows[order]
        by_group = np.argsort(groups, kind="stable")
        ends = np.r_[0, np.cumsum(np.bincount(groups))]
        shape = (len(ends) - 1, self.f.shape[0])
        return sparse.csr_array((np.ones(len(rows)), rows[by_group], ends), shape) @ self.f

    def between(self, groups: np.ndarray, order: np.ndarray | None = None) -> np.ndarray:
        """Σ_g S_g² / n_g of each feature, (F,)."""
        sums = self.sums(groups, order)
        each = np.repeat(1 / np.bincount(groups), np.diff(sums.indptr))
        return np.bincount(sums.indices, sums.data**2 * each, sums.shape[1])

    def share(self, groups: np.ndarray, order: np.ndarray | None = None) -> np.ndarray:
        """ε² of the grouping, (F,): 1 − mean square within / overall; 0 without variance."""
        left = max(1, self.count - int(groups.max()) - 1)
        within = (self.squares - self.between(groups, order)) / left
        return np.where(self.varies, 1 - within / np.maximum(self._mean_square, 1e-30), 0.0)

    @property
    def _mean_square(self) -> np.ndarray:
        return self.total / max(1, self.count - 1)


class Wider:
    """How much x_{t−2} or the block, whichever is more, explains of the residual after the pair's
    mean.

    Parameters
    ----------
    f : (N, F) activations; only positions with an x_{t−2} are used.
    """

    def __init__(self, f: sparse.csr_array, p: Positions) -> None:
        self._sample = sample = Sample(f, p.third)
        pair = _groups(p.pair[p.third])
        sizes = np.bincount(pair)
        self._total = sample.squares - sample.between(pair)
        means = sparse.diags_array(1 / sizes) @ sample.sums(pair)
        self._groups = []
        for groups in (_groups(p.before[p.third]), _groups(p.block[p.third])):
            # A group's sum of residuals subtracts each pair's mean as often as the pair occurs.
            shape = (int(groups.max()) + 1, len(sizes))
            together = sparse.csr_array((np.ones(len(groups)), (groups, pair)), shape)
            self._groups.append((groups, (together @ means).toarray()))

    def share(self, order: np.ndarray | None = None) -> np.ndarray:
        """Shares (F,); `order` has to keep each position's pair."""
        N, found = self._sample.count, np.zeros(len(self._total))
        for groups, expected in self._groups:
            left = self._sample.sums(groups, order).toarray() - expected
            within = self._total - np.einsum("gf,gf,g->f", left, left, 1 / np.bincount(groups))
            share = (within / max(1, N - len(left))) / np.maximum(self._total / (N - 1), 1e-30)
            varies = self._total > 1e-9 * self._sample.squares
            found = np.maximum(found, np.where(varies, 1 - share, 0))
        return found


def excess(where: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Indicator of some positions minus its mean in each position's group, (n,)."""
    rate = np.bincount(groups, where) / np.bincount(groups)
    return where - rate[groups]


class Rules:
    """Scores of features, for their own activations and for permuted ones.

    Parameters
    ----------
    f : (N, F) activations, float64.
    """

    def __init__(self, f: sparse.csr_array, p: Positions) -> None:
        self._f, self._p = f, p
        self._all, self._second = Sample(f, np.ones(f.shape[0], bool)), Sample(f, p.second)
        self._wider = Wider(f, p)
        self._token = _groups(p.current[p.second])
        self._pair = _groups(p.pair[p.second])
        self._by_token = self._second.share(self._token)
        self._mass = np.maximum(self._all.f.sum(0), 1e-30)

    def scores(self) -> dict[str, np.ndarray]:
        """All scores of all features, each (F,)."""
        p, pair = self._p, self._second.share(self._pair)
        position = self._all.share(p.offset)
        rest = 1 - pair - np.maximum(position, 0)
        return {
            "current_token": self._all.share(p.current),
            "previous_token": pair - self._by_token,
            "position": position,
            # A feature that varies only at the first position has no context.
            "context": np.where(self._second.varies, np.maximum(rest, 0), 0),
            **self._by_mass([np.arange(self._all.count)], [np.arange(self._second.count)]),
            "wider": self._wider.share(),
        }

    def permuted(self, orders: dict[str, list[np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
        """Yield the scores that have a null for each permutation; orders as from `permutations`."""
        p = self._p
        linear = self._by_mass(orders["token"], orders["pair"])
        for i in range(len(orders["token"])):
            gain = self._second.share(self._pair, orders["second"][i]) - self._by_token
            yield {
                "current_token": self._all.share(p.current, orders["everywhere"][i]),
                "previous_token": gain,
                "position": self._all.share(p.offset, orders["token"][i]),
                "wider": self._wider.share(orders["third"][i]),
                **{name: values[i] for name, values in linear.items()},
            }

    def _by_mass(self, token: list[np.ndarray], pair: list[np.ndarray]) -> dict[str, np.ndarray]:
        """The scores by mass for all orders, in one product: (orders, F), or (F,) for one order."""
        p, found = self._p, {}
        again = excess(p.token_again, p.current)
        found["copying"] = self._mass_at(again, self._all.rows, token)
        again = excess(p.pair_again[p.second], self._pair)
        found["induction"] = self._mass_at(again, self._second.rows, pair)
        return {
            name: np.squeeze(each, 0) if len(each) == 1 else each for name, each in found.items()
        }

    def _mass_at(
        self, weights: np.ndarray, rows: np.ndarray, orders: list[np.ndarray]
    ) -> np.ndarray:
        at = np.zeros((len(orders), self._f.shape[0]))
        for row, order in zip(at, orders, strict=True):
            row[rows[order]] = weights
        return (self._f.T @ at.T).T / self._mass


def permutations(p: Positions, count: int, seed: int) -> dict[str, list[np.ndarray]]:
    """Permutations of positions, by what they keep; `count` of each.

    `everywhere` keeps nothing. `token` keeps x_t; so does `second`, over positions with an x_{t−1}.
    `pair` keeps (x_{t−1}, x_t); so does `third`, over positions with an x_{t−2}.
    """
    rng = np.random.default_rng(seed)
    kept = {
        "everywhere": np.zeros(len(p.current), np.int64),
        "token": p.current,
        "second": p.current[p.second],
        "pair": p.pair[p.second],
        "third": p.pair[p.third],
    }
    return {
        name: [shuffle.draw(rng) for _ in range(count)]
        for name, shuffle in ((name, Shuffle(groups)) for name, groups in kept.items())
    }


def null(
    f: sparse.csr_array, p: Positions, count: int, quantile: float, active: int, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The scores of all features, and the thresholds that they have to pass: both (F,), by score.

    The threshold is mean + z · deviation over permutations. z is the stated quantile, over
    permutations, of the largest standardised score among features that are active at `active`
    positions or more (Westfall and Young's maxT): at 0.95, in data without structure any feature
    passes by chance in only one of twenty data sets. Each permutation is standardised by the mean
    and deviation of the others, as a feature's own score is by those of all permutations. If it
    were included, z could not exceed the square root of their number.

    Features are taken in pieces, and all pieces see the same permutations.
    """
    orders = permutations(p, count, seed)
    F = f.shape[1]
    groups = max(int(each.max()) + 1 for each in (p.before, p.block, p.offset))
    step = max(1, min(GROUP_ENTRIES // groups, int(PIECE_ENTRIES * F / max(1, f.nnz))))
    columns = sparse.csc_array(f)
    own: list[dict[str, np.ndarray]] = []
    found = {name: np.empty((count, F)) for name in SCORES}
    with bar("kinds: permutations", count * F, "features") as progress:
        for start in range(0, F, step):
            part = slice(start, min(F, start + step))
            rules = Rules(sparse.csr_array(columns[:, part]).astype(np.float64), p)
            own.append(rules.scores())
            for i, each in enumerate(rules.permuted(orders)):
                for name, values in each.items():
                    found[name][i, part] = values
                progress.update(part.stop - part.start)
    judged = np.asarray((f > 0).sum(0)).ravel() >= active
    limits = {}
    for name, values in found.items():
        mean, deviation = values.mean(0), np.maximum(values.std(0, ddof=1), LEAST_DEVIATION)
        z = _left_out(values[:, judged]).max(1, initial=0)
        limits[name] = mean + np.quantile(z, quantile) * deviation
    return {name: np.concatenate([each[name] for each in own]) for name in own[0]}, limits


def _left_out(values: np.ndarray) -> np.ndarray:
    """Each value minus the mean of its column's other values, over their deviation: (m, F)."""
    m = len(values)
    values = values - values.mean(0)
    square = (values**2).sum(0)
    others = -values / (m - 1)  # the mean of the others
    variance = (square - values**2 - (m - 1) * others**2) / (m - 2)
    return (values - others) / np.sqrt(np.maximum(variance, LEAST_DEVIATION**2))


def judge(found: pd.DataFrame, least: float, active: int) -> pd.Series:
    """The kind of each feature by rule, or 'none', which includes features that are rarely active.

    The largest share of variance names the kind, if it is at least `least` and its score passes its
    null (`wider` for context). A previous_token or context feature becomes an induction feature if
    its induction score passes its null and is at least `least`.
    """
    shares = found[list(SHARES)]
    kind: pd.Series[str] = shares.idxmax(axis=1).astype(str)
    passed = {name: found[name] > found[f"{name}_null"] for name in SCORES}
    induction = passed["induction"] & (found["induction"] >= least)
    induction &= ~kind.isin(["current_token", "position"])
    fine = (kind == "context") & passed["wider"]
    for name in ("current_token", "previous_token", "position"):
        fine |= (kind == name) & passed[name]
    kind = kind.where(fine & (shares.max(axis=1) >= least), "none")
    kind = kind.mask(induction, "induction")
    return kind.where(found["active"] >= active, "none")


def table(f: sparse.csr_array, p: Positions, section: Kinds, seed: int) -> pd.DataFrame:
    """Scores, nulls and kind by rule (`rule`) of every feature, one row per feature.

    Parameters
    ----------
    f : (N, F) activations at the positions.
    """
    f = sparse.csr_array(f)
    scores, limits = null(f, p, section.permutations, section.quantile, section.active, seed)
    scored = pd.DataFrame(
        {
            "active": np.asarray((f > 0).sum(0)).ravel(),
            **scores,
            **{f"{name}_null": limit for name, limit in limits.items()},
        }
    )
    scored["rule"] = judge(scored, section.share, section.active)
    return scored
