"""Kinds of feature by rule: planted features are recovered, and none is found in their twin."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from ontogeny.analyses.kinds import measure as kinds
from ontogeny.analyses.kinds.settings import Kinds
from ontogeny.features.held_out import explained

BLOCKS, CONTEXT, VOCABULARY = 64, 64, 24


@pytest.fixture(scope="module")
def text() -> tuple[np.ndarray, kinds.Positions]:
    """Random tokens, a few of them frequent, and all their positions."""
    rng = np.random.default_rng(0)
    rate = 1 / np.arange(1, VOCABULARY + 1)
    tokens = rng.choice(VOCABULARY, (BLOCKS, CONTEXT), p=rate / rate.sum())
    block, offset = (x.ravel() for x in np.indices(tokens.shape))
    return tokens, kinds.Positions(tokens, block, offset)


def planted(tokens: np.ndarray, p: kinds.Positions) -> tuple[sparse.csr_array, list[str]]:
    """Features (N, F) of every kind, with noise on each activation, and what they are."""
    rng = np.random.default_rng(1)
    x = tokens.ravel()
    before = np.pad(tokens, ((0, 0), (1, 0)), constant_values=-1)[:, :-1].ravel()
    made: dict[str, list[np.ndarray]] = {
        "current_token": [x == 2, x == 7, np.isin(x, (1, 5)), x == 20],
        "previous_token": [before == 3, before == 0, (before == 1) & (x != 1), before == 8],
        "induction": [p.pair_again, p.pair_again & (x < 6), p.pair_again & (before == 1)],
        "context": [p.block % 4 == 0, p.block < 9, p.block == 30],
        "none": [rng.random(len(x)) < 0.1, rng.random(len(x)) < 0.02, np.arange(len(x)) == 77],
    }
    columns = [f for each in made.values() for f in each]
    f = np.stack(columns, 1) * (1 + 0.2 * rng.random((len(x), len(columns))))
    return sparse.csr_array(f), [name for name, each in made.items() for _ in each]


def judged(f: sparse.csr_array, p: kinds.Positions) -> tuple[pd.DataFrame, list[str]]:
    found = kinds.table(f, p, Kinds(permutations=60), seed=0)
    return found, list(found["kind"])


def test_planted_features_are_recovered(text):
    f, truth = planted(*text)
    found, kind = judged(f, text[1])
    assert kind == truth
    assert found["active"].tolist() == (f > 0).sum(0).tolist()
    shares = found[["current_token", "previous_token", "context"]]
    assert shares.sum(axis=1).to_numpy() == pytest.approx(1)


def test_nothing_is_found_once_activations_are_permuted(text):
    """But for what the quantile lets pass: one feature in one of twenty texts, for each score."""
    f, _ = planted(*text)
    found = []
    for seed in range(8):
        twin = f[np.random.default_rng(seed).permutation(f.shape[0])]
        found.append(sum(kind != "none" for kind in judged(twin, text[1])[1]))
    assert sum(found) <= 3, found
    assert found.count(0) >= 5


def test_a_feature_of_a_pair_is_not_one_of_induction(text):
    """A pair's second occurrence is where its first is, as often as not."""
    tokens, p = text
    before = np.pad(tokens, ((0, 0), (1, 0)), constant_values=-1)[:, :-1].ravel()
    pair = sparse.csr_array(((tokens.ravel() == 1) & (before == 2))[:, None].astype(float))
    found, (kind,) = judged(pair, p)
    assert abs(found["induction"][0]) < 1e-9
    assert kind == "previous_token"


def test_positions(text):
    tokens = np.array([[5, 6, 5, 6, 6, 5], [6, 6, 6, 5, 5, 6]])
    block = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1])  # positions 0 and 2 of block 1 have no row
    offset = np.array([0, 1, 2, 3, 5, 1, 3, 4, 5])
    p = kinds.Positions(tokens, block, offset)
    assert p.token_again.tolist() == [False, False, True, True, True, True, False, True, True]
    assert p.pair_again.tolist() == [False, False, False, True, True] + [False] * 4
    assert p.current.tolist() == [0, 1, 0, 1, 0, 1, 0, 0, 1]
    same = p.pair[:, None] == p.pair[None, :]
    assert same[1, 3]
    assert same[2, 6]
    assert same[1, 8]
    assert not same[0, 2]  # the first of a block follows nothing
    assert p.before[0] == p.before[1] == p.before[5]


def test_explained_is_the_direct_formula(text):
    rng = np.random.default_rng(3)
    f = rng.random((300, 4)) * (rng.random((300, 4)) < 0.3)
    groups = rng.integers(0, 12, 300)
    f[:, 0] = groups == 4
    f[:, 3] = 0
    found = explained(sparse.csr_array(f), np.unique(groups, return_inverse=True)[1])
    for j in range(3):
        within = sum(((f[groups == g, j] - f[groups == g, j].mean()) ** 2).sum() for g in range(12))
        total = ((f[:, j] - f[:, j].mean()) ** 2).sum()
        assert found[j] == pytest.approx(1 - (within / (300 - 12)) / (total / 299))
    assert found[0] == pytest.approx(1)
    assert found[3] == 0


def test_wider_is_the_direct_formula(text):
    tokens, p = text
    f, _ = planted(tokens, p)
    dense = f.toarray()
    means = np.stack([np.bincount(p.pair, dense[:, j]) for j in range(dense.shape[1])], 1)
    rest = dense - (means / np.bincount(p.pair)[:, None])[p.pair]
    found = kinds.wider(f, p)
    N = len(rest)
    for j in range(rest.shape[1]):
        total = np.square(rest[:, j]).sum()
        if total < 1e-9:
            assert found[j] == 0
            continue
        shares = []
        for groups in (p.before, p.block):
            sizes = np.bincount(groups)
            between = (np.bincount(groups, rest[:, j]) ** 2 / sizes).sum()
            shares.append(1 - ((total - between) / (N - len(sizes))) / (total / (N - 1)))
        assert found[j] == pytest.approx(max(0, *shares), abs=1e-9)
