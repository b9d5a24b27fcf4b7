"""Does the norm mean presence? Latent scaling and linear probes beside decoder norms (METHOD.md 4).

A crosscoder may set a decoder norm to zero where the concept is there, because its penalty made
that cheap, or because other features stand in for it. Two tests see past the norm. With f_i(x)
the activation of feature i at the snapshot p where its decoder W_i^p is largest, at snapshot θ:

*Latent scaling* [M]. What the other features leave is y(x) = ã^θ − â^θ + f_i^θ(x) W_i^θ. Along the
peak's direction, and along whatever direction is best, least squares over held-out positions give

    β_i^θ = Σ_x f_i y·W_i^p / (‖W_i^p‖² Σ_x f_i²)        w_i^θ = Σ_x f_i y / Σ_x f_i²

β^θ/β^p is the test of [M], made for models whose directions agree. It is near 0 for what is absent
and also for what is there in another direction, as concepts that turn are (METHOD.md 4): what it
finds along the peak's direction is there, what it does not find may have turned. ‖w^θ‖/‖w^p‖, the
*free* scaling, errs to the other side: it is near 0 only where f_i is linear in no direction of the
residual, but w also takes in what a dictionary leaves of other features that are active together
with f_i. So a norm of nothing is wrong where the first is large, right where the second is small.
‖w‖² is taken over pairs of different folds k, l of the text's blocks, so that noise, which would
make any norm positive, has mean 0:

    ‖w‖² ≈ Σ_{k≠l} g_k·g_l / Σ_{k≠l} S_k S_l,    g_k = Σ_{x∈k} f_i y,  S_k = Σ_{x∈k} f_i²

and shown as √ with its sign. Where a dictionary's decoders minimise the reconstruction error alone,
Σ_x f_i (ã − â) = 0 and w = W: norm and scaling agree by construction. What the penalty on norms
adds is what the test sees. The floor is the same with f_i's positions permuted.

*Probes*. The ridge discriminant of "f_i > 0" from ã^θ itself, fitted on half of the held-out blocks
and scored on the other half, both ways: the area under the ROC curve, 1/2 at chance. It finds what
is linearly readable, whether or not the crosscoder reads it there: a feature of the token is
readable at every snapshot whose embeddings differ, the initial one included. Hence the control
task [H]: the feature's rates by token, given to other tokens of like frequency and drawn again. A
probe says something of the feature as far as it reads it better than that (its *selectivity*).

References
----------
[M] Minder et al. 2025, arXiv 2504.02922. [H] Hewitt and Liang 2019, arXiv 1909.03368.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import sparse, stats
from torch.nn.functional import embedding_bag

from ontogeny import devices
from ontogeny.activations.store import Site, Stacks
from ontogeny.corpus.build import Tokens
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.features.histories import normalise
from ontogeny.features.kinds import explained, held_out
from ontogeny.files import InputError, write_table
from ontogeny.progress import bar
from ontogeny.settings import PresenceTests, Settings

FOLDS = 8  # of blocks; the first half of them is one half of the probes
BLOCK_ENTRIES = 1 << 26  # of Σ f y in memory at a time
RIDGE = 1e-3  # of the mean variance of a coordinate
FOUNDED = 0.5  # of the decoder's norm, which scaling at the peak itself has to find there
AGAINST = 2048  # positions that a probe's scores at active ones are ranked among, at most
NEIGHBOURS = 8  # tokens of like frequency that a control task swaps
THRESHOLDS = np.round(np.arange(0.05, 1.0001, 0.05), 2)
TOKEN_SHARE = 0.5  # of a feature's activation, from which the token makes it
TESTS = ("scaling", "free")


class Bags:
    """A sparse matrix on a device, to multiply dense ones with."""

    def __init__(self, matrix: sparse.csr_array, device: torch.device) -> None:
        self._bounds = matrix.indptr.astype(np.int64)
        self._starts = torch.from_numpy(self._bounds).to(device)
        self._columns = torch.from_numpy(matrix.indices.astype(np.int64)).to(device)
        self._values = torch.from_numpy(matrix.data.astype(np.float32)).to(device)

    def times(self, dense: torch.Tensor, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows [start, stop) of the matrix times `dense` (columns, d)."""
        last = len(self._bounds) - 1 if stop is None else stop
        low, high = self._bounds[start], self._bounds[last]
        if low == high:
            return dense.new_zeros(last - start, dense.shape[1])
        return embedding_bag(
            self._columns[low:high],
            dense,
            self._starts[start : last + 1] - low,
            mode="sum",
            per_sample_weights=self._values[low:high],
            include_last_offset=True,
        )


class Regressor:
    """f of (N, F) as what residuals are regressed on; positions in folds that follow each other.

    Parameters
    ----------
    bounds : (K + 1,) first position of each fold, and N.

    Attributes
    ----------
    squares : (K, F) Σ f² by fold.
    """

    def __init__(self, f: sparse.csr_array, bounds: np.ndarray, device: torch.device) -> None:
        self.f = f
        self._bounds, self._device = bounds, device
        self._folds = list(pairwise(bounds))
        self._by_feature = [Bags(f[a:b].T.tocsr(), device) for a, b in self._folds]
        self.squares = self.overlap(f)

    def overlap(self, other: sparse.csr_array) -> torch.Tensor:
        """Σ f · other by fold, (K, F)."""
        both = sparse.csr_array(self.f.multiply(other))
        sums = [np.asarray(both[a:b].sum(0, dtype=np.float64)).ravel() for a, b in self._folds]
        return torch.from_numpy(np.stack(sums)).to(self._device)

    def scalings(
        self, error: torch.Tensor, own: torch.Tensor, W: torch.Tensor, peak: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """β along the peak's decoder, and √‖w‖² with its sign, both (F,).

        Parameters
        ----------
        error : (N, d) ã − â. own : (K, F) overlap with the features' own activations at the site.
        W : (F, d) decoders at the site. peak : (F, d) at each feature's peak.
        """
        F, d = W.shape
        K = len(self._folds)
        beta, free = torch.empty_like(own[0]), torch.empty_like(own[0])
        total = self.squares.sum(0)
        pairs = total.square() - self.squares.square().sum(0)
        step = max(1, BLOCK_ENTRIES // (K * d))
        for i in range(0, F, step):
            j = min(F, i + step)
            g = own[:, i:j, None].float() * W[i:j]
            for k, (first, last) in enumerate(self._folds):
                g[k] += self._by_feature[k].times(error[first:last], i, j)
            sum_, direction = g.sum(0), peak[i:j]
            beta[i:j] = (sum_ * direction).sum(1) / (total[i:j] * direction.square().sum(1))
            squared = sum_.double().square().sum(1) - g.square().sum((0, 2), dtype=torch.float64)
            free[i:j] = squared / pairs[i:j]
        return beta, free.sign() * free.abs().sqrt()


def fold_order(
    block: np.ndarray, folds: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """An order of positions that puts whole blocks into folds, (N,), and the folds' bounds.

    Parameters
    ----------
    block : (N,) of each position.
    """
    numbers, of = np.unique(block, return_inverse=True)
    folds = min(folds, len(numbers))
    fold = rng.permutation(np.arange(len(numbers)) % folds)[of]
    return np.argsort(fold, kind="stable"), np.r_[0, np.cumsum(np.bincount(fold))]


def own_activations(crosscoder: Crosscoder, f: sparse.csr_array, site: int) -> sparse.csr_array:
    """Activations at a site, (N, F), from those at each feature's peak.

    One gate serves all sites, or each lets through what passes its threshold there; the peak's
    norm is the largest, so that it lets through whatever any does.
    """
    if crosscoder.about.gate == "feature":
        return f
    r = crosscoder.strength[:, site].cpu().numpy()
    if crosscoder.about.activation == "jumprelu":
        t = crosscoder.weights.log_threshold.exp().cpu().numpy()
    else:
        t = np.full_like(r, crosscoder.about.threshold)
    there = f.data * r[f.indices] > t[f.indices]
    return sparse.csr_array((f.data * there, f.indices, f.indptr), f.shape)


def stratified(strata: np.ndarray, density: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` of the features, ascending; every stratum and density in its share.

    A systematic sample, from a random start, of the features in order of stratum and density.
    """
    order = np.lexsort((density, strata))
    if len(order) <= count:
        return np.arange(len(order))
    start = np.random.default_rng(seed).random()
    return np.sort(order[np.floor((start + np.arange(count)) * len(order) / count).astype(int)])


def control_task(
    labels: sparse.csr_array, token: np.ndarray, rng: np.random.Generator
) -> sparse.csr_array:
    """Labels (N, m) that hang on the token as often as the given ones, on other tokens.

    For each feature the tokens are turned within groups of NEIGHBOURS of like frequency; a position
    is active with the rate that the feature has at the token which now stands for its own. A
    feature of a set of tokens becomes a set of as many others; one that tokens tell nothing of
    becomes chance.
    """
    counts = np.bincount(token)
    seen = np.flatnonzero(counts)
    by_frequency = seen[np.argsort(-counts[seen], kind="stable")]
    place = np.empty(len(counts), np.int64)
    place[by_frequency] = np.arange(len(by_frequency))
    V = len(by_frequency)
    first = place[token] // NEIGHBOURS * NEIGHBOURS
    size = np.minimum(NEIGHBOURS, V - first)
    by_token = sparse.csr_array((np.ones(len(token)), (place[token], np.arange(len(token)))))
    rates = sparse.csc_array(by_token @ labels.astype(np.float64))
    frequency = counts[by_frequency]
    columns = []
    for j in range(labels.shape[1]):
        rate = rates[:, [j]].toarray().ravel() / frequency
        turn = 1 + rng.integers(NEIGHBOURS - 1)
        # A group of fewer than turn + 1 tokens turns less, and one token alone stays.
        shift = np.where(size > 1, 1 + (turn - 1) % np.maximum(size - 1, 1), 0)
        stand_in = first + (place[token] - first + shift) % size
        columns.append(sparse.csc_array(rng.random((len(token), 1)) < rate[stand_in][:, None]))
    return sparse.csr_array(sparse.hstack(columns))


class Probes:
    """Linear probes of labels (N, M), fitted on either half of the positions.

    Parameters
    ----------
    middle : where the second half begins.
    """

    def __init__(
        self, labels: sparse.csr_array, middle: int, seed: int, device: torch.device
    ) -> None:
        rng = np.random.default_rng(seed)
        N = labels.shape[0]
        self._halves = (slice(0, middle), slice(middle, N))
        self._bags, self._count, self._active, self._among = [], [], [], []
        for half in self._halves:
            own = labels[half]
            by_label = own.T.tocsr()
            self._bags.append(Bags(by_label, device))
            self._count.append(torch.from_numpy(np.diff(by_label.indptr)).float().to(device))
            self._active.append(np.split(by_label.indices, by_label.indptr[1:-1]))
            self._among.append(rng.permutation(own.shape[0])[:AGAINST])

    def score(self, a: torch.Tensor) -> np.ndarray:
        """Area under the ROC curve of every label from activations (N, d), (M,): both ways' mean.

        NaN where a half has no active position, or nothing else.
        """
        return np.mean([self._way(a, fit) for fit in (0, 1)], axis=0)

    def _way(self, a: torch.Tensor, fit: int) -> np.ndarray:
        x = a[self._halves[fit]]
        mean = x.mean(0)
        x = x - mean
        gram = x.T @ x / len(x)
        gram.diagonal().add_(RIDGE * gram.diagonal().mean())
        # Σ (x − mean) over active positions; less the labels' mean makes no difference.
        towards = self._bags[fit].times(x)
        weights = torch.linalg.solve(gram, (towards / self._count[fit].clamp_min(1)[:, None]).T)
        other = 1 - fit
        scores = (weights.T @ a[self._halves[other]].T).cpu().numpy()
        found = areas(scores, self._active[other], self._among[other])
        return np.where(self._count[fit].cpu().numpy() > 0, found, np.nan)


def areas(scores: np.ndarray, active: list[np.ndarray], among: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each row of scores (M, N), (M,).

    Parameters
    ----------
    active : by row, the positions with the label.
    among : positions of which those without the label stand for all of them.
    """
    found = np.full(len(scores), np.nan)
    chosen = np.zeros(scores.shape[1], bool)
    chosen[among] = True
    for j, at in enumerate(active):
        inside = at[chosen[at]]
        rest = len(among) - len(inside)
        if len(at) and rest:
            own = scores[j, at]
            below = _rank(own, scores[j, among]) - _rank(own, scores[j, inside])
            found[j] = below.mean() / rest
    return found


def _rank(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """How many of `among` lie below each value; ties count half."""
    ordered = np.sort(among)
    left, right = np.searchsorted(ordered, values), np.searchsorted(ordered, values, "right")
    return (left + right) / 2


class Resampled:
    """Bootstrap over features: how often each is drawn, sample by sample."""

    def __init__(self, features: int, samples: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        even = np.full(features, 1 / features)
        self._weights = rng.multinomial(features, even, samples).astype(np.float32)

    def share(self, part: np.ndarray, whole: np.ndarray) -> dict[str, float]:
        """Σ part / Σ whole, both (F,), with its 95% interval; NaN where whole is 0 throughout.

        A share that is 0 or 1 in every feature says nothing to the bootstrap; the other end of its
        interval is the exact binomial one, with features for trials.
        """
        part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
        trials = int((whole > 0).sum())
        if not trials:
            return {"value": np.nan, "low": np.nan, "high": np.nan}
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
        """Spearman's ρ over all pairs (F, n) with its 95% interval; NaN pairs are left out."""
        known = np.isfinite(x) & np.isfinite(y)
        feature = np.nonzero(known)[0]
        if len(feature) < 3:
            return {"value": np.nan, "low": np.nan, "high": np.nan}
        a, b = (np.unique(v[known], return_inverse=True)[1] for v in (x, y))
        value = _spearman(a, b, np.ones(len(feature)))
        drawn = [_spearman(a, b, w[feature]) for w in self._weights if w[feature].any()]
        low, high = np.nanquantile(drawn, [0.025, 0.975])
        return {"value": value, "low": float(low), "high": float(high)}


def _spearman(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> float:
    """Spearman's ρ of values given as places in their order, each counted `weights` times."""
    ranks = []
    for place in (x, y):
        count = np.bincount(place, weights)
        ranks.append((np.cumsum(count) - count / 2)[place])
    total = weights.sum()
    a, b = (r - (weights @ r) / total for r in ranks)
    scale = np.sqrt((weights @ a**2) * (weights @ b**2))
    return float((weights @ (a * b)) / scale) if scale > 0 else float("nan")


def within(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's ρ over snapshots of each feature, (F,); NaN where either is constant."""
    found = np.full(len(x), np.nan)
    for i, (one, other) in enumerate(zip(x, y, strict=True)):
        known = np.isfinite(one) & np.isfinite(other)
        if known.sum() > 2 and np.ptp(one[known]) > 0 and np.ptp(other[known]) > 0:
            found[i] = stats.spearmanr(one[known], other[known]).statistic
    return found


def _squares(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Each column as (F, n)."""
    n = table["feature"].value_counts().iloc[0]
    return {name: table[name].to_numpy().reshape(-1, n) for name in table.columns}


def verdicts(table: pd.DataFrame, p: PresenceTests, drawn: Resampled) -> pd.DataFrame:
    """Where norm and scaling disagree, with 95% intervals from a bootstrap over features.

    Parameters
    ----------
    table : a row a (feature, snapshot), features in order and each with all its snapshots.

    Returns
    -------
    measure, test ('scaling', 'free', and either with '_permuted'), group ('all', 'matched'),
    threshold, value, low, high, features, pairs. Measures, of pairs off the feature's own peak:
        unfounded     share of features, not pairs, whose peak scaling does not find; they are in
                      no other measure
        absent        share whose normalised strength is below `absent`
        contradicted  of those, share whose scaling is at least `threshold` of the peak's
        converse      of the pairs whose normalised strength is at least `threshold`, share whose
                      scaling is below `absent`
    features : that have such pairs. pairs : how many there are.
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
        absent = here & (norm < p.absent)
        add(absent, here, measure="absent", group=group, threshold=p.absent)
        for test in [f"{name}{floor}" for name in TESTS for floor in ("", "_permuted")]:
            value = square[test]
            about: dict[str, object] = {"test": test, "group": group}
            for threshold in np.union1d(THRESHOLDS, [p.contradicted]):
                add(
                    value >= threshold, absent, measure="contradicted", threshold=threshold, **about
                )
            there = here & (norm >= p.contradicted)
            add(value < p.absent, there, measure="converse", threshold=p.contradicted, **about)
    return pd.DataFrame(rows)


def correlations(table: pd.DataFrame, drawn: Resampled) -> pd.DataFrame:
    """Spearman's ρ of each test with normalised strength, with 95% intervals over features.

    Returns
    -------
    measure, test ('scaling', 'free', 'probe', 'control', 'selectivity'), group ('all', 'matched';
    of the probes also 'token' and 'beyond_token', by whether the token explains at least
    TOKEN_SHARE of the activation), value, low, high, features, pairs. Measures:
        spearman         over all pairs of a feature and a snapshot
        spearman_within  over snapshots, the mean over features for which it is defined
        mean             of the probes' areas over all pairs; 'shuffled' too
    """
    square = _squares(table)
    square["selectivity"] = square["probe"] - square["control"]
    token, matched = square["current_token"][:, 0] >= TOKEN_SHARE, square["matched"][:, 0]
    rows: list[dict[str, object]] = []

    def add(found: dict[str, float], features: int, pairs: int, **about: object) -> None:
        rows.append(about | found | {"features": int(features), "pairs": int(pairs)})

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
            some = int(known.any(1).sum())
            about = {"test": test, "group": group}
            if of_probes:
                found = drawn.share(np.nan_to_num(y).sum(1), known.sum(1))
                add(found, some, known.sum(), measure="mean", **about)
            if test == "shuffled":
                continue
            add(drawn.spearman(x, y), some, known.sum(), measure="spearman", **about)
            each = within(x, y)
            defined = np.isfinite(each)
            found = drawn.share(np.nan_to_num(each), defined)
            add(found, defined.sum(), known[defined].sum(), measure="spearman_within", **about)
    return pd.DataFrame(rows)


def measure(
    crosscoder: Crosscoder,
    f: sparse.csr_array,
    position: np.ndarray,
    tokens: np.ndarray,
    read: Callable[[int], np.ndarray],
    about: pd.DataFrame,
    p: PresenceTests,
    seed: int,
) -> pd.DataFrame:
    """Both tests of every feature that is active often enough, a row a feature and site.

    Parameters
    ----------
    f : (N, F) activations, of the site where each feature's decoder is largest. position : (N, 2)
        block and offset of each row. tokens : (N,) ids.
    read : gives the normalised activations of a site by its number, (N, d).
    about : a row a feature; alive, matched, density, initialisation, transient.

    Returns
    -------
    The columns of `describe`, with site, a number, for snapshot_index and step.

    Raises
    ------
    InputError : no feature is active often enough.
    """
    device = crosscoder.W_dec.device
    rng = np.random.default_rng(seed)
    order, bounds = fold_order(position[:, 0], FOLDS, rng)
    f, tokens = sparse.csr_array(f[order]), tokens[order]
    middle = int(bounds[len(bounds) // 2])
    active = np.stack([np.asarray((half > 0).sum(0)).ravel() for half in (f[:middle], f[middle:])])
    chosen = np.flatnonzero(about["alive"].to_numpy() & (active >= p.active).all(0))
    if not len(chosen):
        raise InputError(
            f"presence_tests.active: no living feature is active at {p.active} positions of either "
            "half of the held-out text; lower it, or train the crosscoder for longer"
        )
    about = about.iloc[chosen]

    regressor = Regressor(f, bounds, device)
    twin = Regressor(f[rng.permutation(len(order))], bounds, device)
    one_gate = crosscoder.about.gate == "feature"
    overlaps = (regressor.squares, twin.overlap(f)) if one_gate else None
    strength = crosscoder.strength.cpu().numpy()
    highest = strength.argmax(1)
    every = torch.arange(len(highest), device=device)
    peak = crosscoder.W_dec[every, torch.from_numpy(highest).to(device)]

    strata = 2 * about["initialisation"].to_numpy() + about["transient"].to_numpy()
    drawn = stratified(strata, about["density"].to_numpy(), p.features, seed)
    of_drawn = sparse.csr_array(f[:, chosen[drawn]])
    labels = sparse.csr_array(of_drawn > 0)
    shuffled = sparse.csr_array(labels[rng.permutation(len(order))])
    tasks = [labels, control_task(labels, tokens, rng), shuffled]
    probes = Probes(sparse.csr_array(sparse.hstack(tasks)), middle, seed, device)

    shape = (len(chosen), len(crosscoder.about.outputs))
    names = ("beta", "w", "beta_null", "w_null", "probe", "control", "shuffled")
    found = {name: np.full(shape, np.nan) for name in names}
    with bar("presence", shape[1], "snapshots") as progress:
        for n in range(shape[1]):
            a = torch.from_numpy(read(n)[order]).to(device)
            own = own_activations(crosscoder, f, n)
            W = crosscoder.W_dec[:, n].contiguous()
            error = a - Bags(own, device).times(W) - crosscoder.b_dec[n]
            real, chance = overlaps or (regressor.overlap(own), twin.overlap(own))
            values = (
                *regressor.scalings(error, real, W, peak),
                *twin.scalings(error, chance, W, peak),
            )
            for name, value in zip(names, values, strict=False):
                found[name][:, n] = value.cpu().numpy()[chosen]
            for name, part in zip(names[4:], np.split(probes.score(a), 3), strict=True):
                found[name][drawn, n] = part
            progress.update()

    by_token = np.full(len(chosen), np.nan)
    groups = np.unique(tokens, return_inverse=True)[1]
    by_token[drawn] = explained(sparse.csr_array(of_drawn.astype(np.float64)), groups)
    at = (np.arange(len(chosen)), highest[chosen])
    beta, w = found["beta"][at], found["w"][at]
    founded = (beta >= FOUNDED) & (w >= FOUNDED * strength[chosen].max(1))
    beta, w = (np.where(founded, one, np.nan)[:, None] for one in (beta, w))
    squares = {
        "peak": np.arange(shape[1]) == at[1][:, None],
        "normalised_strength": normalise(strength[chosen]),
        "beta": found["beta"],
        "scaling": found["beta"] / beta,
        "free": found["w"] / w,
        "scaling_permuted": found["beta_null"] / beta,
        "free_permuted": found["w_null"] / w,
        "current_token": np.repeat(by_token[:, None], shape[1], 1),
        **{name: found[name] for name in names[4:]},
    }
    return pd.DataFrame(
        {
            "feature": np.repeat(chosen, shape[1]),
            "site": np.tile(np.arange(shape[1]), shape[0]),
            "matched": np.repeat(about["matched"].to_numpy(), shape[1]),
            "active": np.repeat(active.sum(0)[chosen], shape[1]),
            **{name: values.ravel() for name, values in squares.items()},
        }
    )


def describe(
    s: Settings,
    crosscoder: str | Path,
    activations: str | Path,
    tokens: str | Path,
    features: str | Path,
    output: str | Path,
    verdict: str | Path,
) -> None:
    """Write the presence tests of a crosscoder's features.

    Parameters
    ----------
    crosscoder : folder of the seed that the features table is of. activations : the experiment's
        folder. tokens : tokens.h5. features : the features table.
    output : Parquet, a row a feature and snapshot: feature, snapshot_index, step, matched, active
        (positions), peak, normalised_strength; beta (1 is the peak's decoder); scaling (β/β^p) and
        free (‖w‖/‖w^p‖), each also _permuted, NaN where the peak is unfounded; current_token
        (share of the activation that the token explains); probe, control, shuffled (areas under the
        ROC curve; NaN for features that were not drawn). Living features alone that are active at
        `active` positions of either half.
    verdict : CSV; measure, test, group, threshold, value, low, high, features, pairs: see
        `verdicts` and `correlations`.

    Raises
    ------
    InputError : no feature is active often enough.
    """
    trained = Crosscoder.load(crosscoder, devices.choose(s.device))
    sites = [Site(*site) for site in trained.about.outputs]
    f, position = held_out(trained, activations)
    blocks, row = np.unique(position[:, 0], return_inverse=True)
    ids = Tokens(tokens).take(blocks)[row, position[:, 1]].astype(np.int64)

    def read(n: int) -> np.ndarray:
        return Stacks(activations, [sites[n]]).read(0, len(position), "held_out")[:, 0]

    p, a = s.presence_tests, s.analysis
    table = measure(trained, f, position, ids, read, pd.read_parquet(features), p, a.seed)
    steps = np.array([site.snapshot for site in sites])
    index = np.array([s.snapshots.chosen.index(step) + 1 for step in steps])
    site = table.pop("site").to_numpy()
    table.insert(1, "snapshot_index", index[site])
    table.insert(2, "step", steps[site])
    resampled = Resampled(table["feature"].nunique(), a.bootstrap, a.seed)
    parts = [verdicts(table, p, resampled), correlations(table, resampled)]
    columns = ["measure", "test", "group", "threshold", "value", "low", "high", "features", "pairs"]
    write_table(verdict, pd.concat(parts).reindex(columns=columns))
    write_table(output, table)
