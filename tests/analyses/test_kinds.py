"""Kinds of feature: planted ones are recovered by rule and by cause, and none in their twin."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny
from scipy import sparse
from torch import nn

from ontogeny import settings
from ontogeny.analyses.kinds import causes, measure, numbers, rules
from ontogeny.analyses.kinds.settings import Kinds
from ontogeny.crosscoder.model import Crosscoder, Description
from ontogeny.features import replay
from ontogeny.features.held_out import explained

BLOCKS, CONTEXT, VOCABULARY = 64, 64, 24


@pytest.fixture(scope="module")
def text() -> tuple[np.ndarray, rules.Positions]:
    """Random tokens, a few of them frequent, and all their positions."""
    rng = np.random.default_rng(0)
    rate = 1 / np.arange(1, VOCABULARY + 1)
    tokens = rng.choice(VOCABULARY, (BLOCKS, CONTEXT), p=rate / rate.sum())
    block, offset = (x.ravel() for x in np.indices(tokens.shape))
    return tokens, rules.Positions(tokens, block, offset)


def planted(tokens: np.ndarray, p: rules.Positions) -> tuple[sparse.csr_array, list[str]]:
    """Features (N, F) of every kind, with noise on each activation, and what they are."""
    rng = np.random.default_rng(1)
    x = tokens.ravel()
    before = np.pad(tokens, ((0, 0), (1, 0)), constant_values=-1)[:, :-1].ravel()
    made: dict[str, list[np.ndarray]] = {
        "current_token": [x == 2, x == 7, np.isin(x, (1, 5)), x == 20],
        "previous_token": [before == 3, before == 0, (before == 1) & (x != 1), before == 8],
        "induction": [p.pair_again, p.pair_again & (x < 6), p.pair_again & (before == 1)],
        "context": [p.block % 4 == 0, p.block < 9, p.block == 30],
        "position": [p.offset == 0, p.offset < 3, p.offset == 17, (p.offset < 8) & (x != 1)],
        "none": [rng.random(len(x)) < 0.1, rng.random(len(x)) < 0.02, np.arange(len(x)) == 77],
    }
    columns = [f for each in made.values() for f in each]
    f = np.stack(columns, 1) * (1 + 0.2 * rng.random((len(x), len(columns))))
    return sparse.csr_array(f), [name for name, each in made.items() for _ in each]


def judged(f: sparse.csr_array, p: rules.Positions) -> tuple[pd.DataFrame, list[str]]:
    found = rules.table(f, p, Kinds(permutations=40), seed=0)
    return found, list(found["rule"])


def test_planted_features_are_recovered(text):
    f, truth = planted(*text)
    found, kind = judged(f, text[1])
    assert kind == truth
    assert found["active"].tolist() == (f > 0).sum(0).tolist()


def test_the_first_position_is_no_previous_token(text):
    """A feature of offset 0 alone, which has no previous token: nothing is left to explain."""
    f, truth = planted(*text)
    found, _ = judged(f, text[1])
    first = found.iloc[truth.index("position")]
    assert first["position"] > 0.9
    assert first[["previous_token", "context", "wider"]].tolist() == [0, 0, 0]
    third = found.iloc[truth.index("position") + 2]  # of offset 17: the pair explains none of it
    assert abs(third["previous_token"]) < 0.1
    assert third["context"] < 0.1


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
    p = rules.Positions(tokens, block, offset)
    assert p.token_again.tolist() == [False, False, True, True, True, True, False, True, True]
    assert p.pair_again.tolist() == [False, False, False, True, True] + [False] * 4
    assert p.current.tolist() == [0, 1, 0, 1, 0, 1, 0, 0, 1]
    same = p.pair[:, None] == p.pair[None, :]
    assert same[1, 3]
    assert same[2, 6]
    assert same[1, 8]
    assert not same[0, 2]  # the first of a block follows nothing
    assert p.second.tolist() == (offset >= 1).tolist()
    assert p.third.tolist() == (offset >= 2).tolist()


def test_scores_are_the_direct_formulas(text):
    """ε² of the tokens, the offset and the pair, the last without the first positions."""
    tokens, p = text
    f, truth = planted(tokens, p)
    found = rules.Rules(f, p).scores()
    second = np.flatnonzero(p.second)
    for name, rows, groups in (
        ("current_token", np.arange(f.shape[0]), p.current),
        ("position", np.arange(f.shape[0]), p.offset),
    ):
        direct = explained(sparse.csr_array(f[rows]), groups)
        assert found[name] == pytest.approx(direct, abs=1e-12), name
    own = sparse.csr_array(f[second])
    by_pair, by_token = (
        explained(own, np.unique(groups[second], return_inverse=True)[1])
        for groups in (p.pair, p.current)
    )
    assert found["previous_token"] == pytest.approx(by_pair - by_token, abs=1e-12)
    rest = np.maximum(1 - by_pair - np.maximum(found["position"], 0), 0)
    rest[truth.index("position")] = 0  # it is active at the first positions alone
    assert found["context"] == pytest.approx(rest, abs=1e-12)
    rate = np.bincount(p.current, p.token_again) / np.bincount(p.current)
    mass = f.toarray() / f.toarray().sum(0)
    assert found["copying"] == pytest.approx((p.token_again - rate[p.current]) @ mass)


def test_permuted_scores_are_those_of_permuted_activations(text):
    """Sums that permutations leave alone are not made again, and the scores are the same."""
    tokens, p = text
    f, _ = planted(tokens, p)
    ours = rules.Rules(f, p)
    orders = rules.permutations(p, 2, seed=3)
    kept = {"token": p.current, "second": p.current[p.second], "pair": p.pair[p.second]}
    for name, groups in kept.items():
        assert (groups[orders[name][0]] == groups).all(), name
        assert (orders[name][0] != orders[name][1]).any()
    found = list(ours.permuted(orders))[1]
    dense = f.toarray()
    wanted = {
        "current_token": ("everywhere", np.ones(len(dense), bool)),
        "wider": ("third", p.third),
    }
    wanted |= {"previous_token": ("second", p.second), "induction": ("pair", p.second)}
    wanted |= dict.fromkeys(("position", "copying"), ("token", np.ones(len(dense), bool)))
    for name, (order, rows) in wanted.items():
        moved = dense.copy()
        moved[rows] = dense[rows][orders[order][1]]
        again = rules.Rules(sparse.csr_array(moved), p).scores()
        assert found[name] == pytest.approx(again[name], abs=1e-9), name


def test_wider_is_the_direct_formula(text):
    tokens, p = text
    f, _ = planted(tokens, p)
    dense = f.toarray()[p.third]
    pair = np.unique(p.pair[p.third], return_inverse=True)[1]
    means = np.stack([np.bincount(pair, dense[:, j]) for j in range(dense.shape[1])], 1)
    rest = dense - (means / np.bincount(pair)[:, None])[pair]
    found = rules.Wider(f, p).share()
    N = len(rest)
    for j in range(rest.shape[1]):
        total = np.square(rest[:, j]).sum()
        if total < 1e-9:
            assert found[j] == 0
            continue
        shares = []
        for every in (p.before, p.block):
            groups = np.unique(every[p.third], return_inverse=True)[1]
            sizes = np.bincount(groups)
            between = (np.bincount(groups, rest[:, j]) ** 2 / sizes).sum()
            shares.append(1 - ((total - between) / (N - len(sizes))) / (total / (N - 1)))
        assert found[j] == pytest.approx(max(0, *shares), abs=1e-9)


# By cause


def test_copies_of_a_pair_and_what_follows_them():
    #               0  1  2  3  4  5  6  7  8  9
    ids = np.array([1, 2, 7, 1, 2, 8, 2, 9, 1, 2])
    assert causes.copies(ids).tolist() == [1, 4]
    assert causes.followers(ids).tolist() == [2, 5]
    assert causes.others(ids).tolist() == [6, 7]
    # What follows a copy may be x_{t−1}, or x_t: these stay.
    assert causes.copies(np.array([4, 4, 4, 4])).tolist() == [1, 2]
    assert causes.followers(np.array([4, 4, 4, 4])).tolist() == []
    assert causes.followers(np.array([4, 4, 4, 4, 4])).tolist() == [2]


def test_each_run_replaces_its_tokens_and_no_others():
    rng = np.random.default_rng(0)
    pool = rng.integers(0, 6, 400)
    other = rng.integers(10, 20, 60)
    several = 0
    for _ in range(200):
        ids = rng.integers(0, 6, rng.integers(3, 60))
        runs = causes.replaced(ids, other, pool, rng)
        changed = {name: np.flatnonzero(made != ids).tolist() for name, made in runs.items()}
        assert changed["previous_token"] == [len(ids) - 2]
        assert changed["context"] == list(range(len(ids) - 2))
        assert runs["context"][:-2].tolist() == other[: len(ids) - 2].tolist()
        after = causes.followers(ids).tolist()
        assert changed.get("induction", after) == after
        if "control" in changed:
            assert len(changed["control"]) == max(1, len(after))
            assert set(changed["control"]) <= set(causes.others(ids).tolist())
        assert ("induction" in changed) <= ("control" in changed)
        several += len(changed.get("induction", [])) > 1
    assert several > 20


def test_the_sample_has_enough_positions_of_rare_features():
    rng = np.random.default_rng(0)
    rate = np.array([0.3, 0.1, 0.004, 0.004, 0.0005])
    dense = rng.random((20_000, 5)) * (rng.random((20_000, 5)) < rate)
    copied, fit = rng.random(20_000) < 0.5, rng.random(20_000) < 0.9
    rows = causes.sample(sparse.csr_array(dense), copied, fit, 100, 20, np.random.default_rng(1))
    assert len(rows) == len(set(rows)) == 100
    assert (np.diff(rows) > 0).all()
    assert fit[rows].all()
    assert copied[rows].sum() >= 50
    active = (dense[rows] > 0).sum(0)
    assert (active[:4] >= 20).all()
    assert active[4] <= 1  # active at fewer than 20 positions in all: not looked for
    few = causes.sample(sparse.csr_array(dense[:50]), copied, fit, 1000, 1, rng)
    active_rows = np.flatnonzero((dense[:50] > 0).any(1) & fit[:50])
    assert few.tolist() == active_rows.tolist()


STEPS, SIGNALS = [0, 8], ("current_token", "previous_token", "induction", "context", "position")


def signals(ids: np.ndarray) -> np.ndarray:
    """What planted features see at the end of a text, (5,), as SIGNALS names them."""
    after = causes.copies(ids) + 1
    return np.array(
        [
            ids[-1] == 2,
            ids[-2] == 1,
            (ids[after] == 0).any(),
            ids[:-2].sum() % 3 == 0,
            len(ids) < 9,
        ],
        float,
    )


def planted_model(monkeypatch: pytest.MonkeyPatch, table: np.ndarray) -> None:
    """Snapshots whose activations are the signals and an entry of a table (V, 5) of tokens."""

    class Model(nn.Module):
        pass

    def read(model: nn.Module, ids: torch.Tensor, wanted: Any) -> Any:
        values = np.stack(
            [
                [signals(row[: t + 1]) if t > 1 else np.zeros(5) for t in range(len(row))]
                for row in ids.numpy()
            ]
        )
        return dict.fromkeys(wanted, torch.from_numpy(values + table[ids]).float())

    monkeypatch.setattr(replay.sites, "load_model", lambda *_, **__: Model())
    monkeypatch.setattr(replay.sites, "read", read)


def planted_crosscoder(table: np.ndarray) -> Crosscoder:
    """A dead feature, then one of each signal; a gate opens only where both snapshots have it."""
    D, n = len(SIGNALS), len(STEPS)
    F = D + 1
    reads = torch.eye(F)[:, 1:]
    tensors = {
        "W_enc": torch.cat([reads, reads], 1),
        "b_enc": torch.zeros(F),
        "W_dec": torch.cat([reads, reads / 2], 1),
        "b_dec": torch.zeros(n * D),
        "log_threshold": torch.zeros(F),
        "scales_in": torch.ones(n),
        "scales_out": torch.ones(n),
        "mean_in": torch.zeros(n * D),
        "mean_out": torch.zeros(n * D),
        "silent_rows": torch.zeros(F, dtype=torch.long),
        "token": torch.arange(len(table)),
        "token_table": torch.from_numpy(np.stack([np.vstack([table, table[:1]])] * n)).float(),
    }
    sites = [(step, 0, "residual") for step in STEPS]
    about = Description(
        activation="batch_topk", gate="snapshot", features=F, width=D, inputs=sites, outputs=sites,
        basis="full", threshold=1.5, seed=0, settings={"dead_after_rows": 10}, tokens="tokens",
        ontogeny="", torch="", token_table=True,
    )  # fmt: skip
    return Crosscoder(about, tensors)


@pytest.fixture
def planted_text(monkeypatch):
    """Settings, crosscoder, blocks, activations (N, F) and their block and offset, all planted."""
    rng = np.random.default_rng(0)
    table = rng.normal(0, 3, (6, len(SIGNALS)))
    planted_model(monkeypatch, table)
    monkeypatch.setitem(causes.BATCH_TOKENS, "cpu", 256)
    blocks = rng.integers(0, 6, (40, 20))
    block, offset = (x.ravel() for x in np.indices(blocks.shape))
    whole = np.zeros((blocks.size, len(SIGNALS) + 1))
    for row, (b, t) in enumerate(zip(block, offset, strict=True)):
        whole[row, 1:] = 2 * signals(blocks[b, : t + 1]) if t > 1 else 0  # two snapshots
    changes = {"activations.dtype": "float32", "kinds.positions": 2000}
    given = settings.load(tiny({"snapshots.steps": STEPS, "device": "cpu"} | changes))
    return given, planted_crosscoder(table), blocks, sparse.csr_array(whole), block, offset


def test_planted_causes_are_found(planted_text, monkeypatch, tmp_path):
    """Features of the token, the one before, an earlier copy, the context and the offset."""
    given, trained, blocks, f, block, offset = planted_text
    text = SimpleNamespace(splits={"held_out": (7, 47)}, take=lambda numbers: blocks[numbers - 7])
    monkeypatch.setattr(causes.Crosscoder, "load", lambda *_: trained)
    monkeypatch.setattr(causes, "held_out", lambda *_: (f, np.stack([block + 7, offset], 1)))
    monkeypatch.setattr(causes, "Tokens", lambda _: text)
    paths = [tmp_path / name for name in ("c", "a", "s", "t", "causes.parquet")]
    causes.measure(given, *paths)
    table = pd.read_parquet(paths[-1])
    assert sorted(set(table["feature"])) == [1, 2, 3, 4, 5]  # not the dead one
    found = table.set_index(["replaced", "feature"])
    assert (found["loss_low"] <= found["loss"]).all()
    assert (found["loss"] <= found["loss_high"]).all()
    assert (table["positions"] >= 9).all()
    loss = found["loss"].unstack("replaced")
    assert loss.loc[1].abs().max() < 1e-5
    assert loss.loc[2, "previous_token"] == pytest.approx(1)
    assert loss.loc[2, ["induction", "context"]].abs().max() < 1e-5
    assert loss.loc[3, "induction"] > 0.6
    assert loss.loc[4, "context"] == pytest.approx(2 / 3, abs=0.1)
    assert loss.loc[5].abs().max() < 1e-5
    kind = measure.by_cause(table, Kinds())
    assert kind.tolist() == ["none", "previous_token", "induction", "context", "none"]
    few = table.assign(positions=4)
    assert set(measure.by_cause(few, Kinds())) == {measure.UNTESTED}


def test_where_nothing_is_replaced_nothing_is_lost(planted_text):
    given, trained, blocks, f, block, offset = planted_text
    order = np.argsort(offset, kind="stable")
    same = [blocks[block[i], : offset[i] + 1] for i in order]
    unchanged = causes.Texts(same, order, np.zeros(len(order), int))
    again = causes.rerun(given, trained, Path(), f, unchanged)
    assert again["induction"].data == pytest.approx(f.data, abs=1e-4)
    assert np.isnan(again["control"].data).all()


def losses_table(rows: list[tuple[float, float, float, float, float]]) -> pd.DataFrame:
    """Losses of features: induction and its control, previous_token and its control, context."""
    parts = []
    for feature, (induction, control, previous, other, context) in enumerate(rows):
        for name, loss, of in (
            ("induction", induction, control),
            ("previous_token", previous, other),
            ("context", context, np.nan),
        ):
            about = {"feature": feature, "replaced": name, "positions": 9}
            parts.append(about | {"loss": loss, "control": of})
    return pd.DataFrame(parts)


def test_causes_are_judged_in_order():
    """Induction, then the previous token, then context; where a control loses as well, none."""
    table = losses_table(
        [
            (0.9, 0.0, 0.9, 0.0, 1.0),  # an induction feature needs all of them
            (0.9, 0.2, 0.0, 0.0, 0.9),  # any other tokens do as well: context
            (0.4, 0.0, 0.9, 0.0, 0.6),
            (0.4, 0.0, 0.4, 0.0, 0.9),
            (0.4, 0.0, 0.9, 0.2, 0.4),  # any other token does as well
            (0.1, 0.0, -0.5, 0.0, 0.1),
        ]
    )
    kind = measure.by_cause(table, Kinds())
    assert kind.tolist() == ["induction", "context", "previous_token", "context", "none", "none"]
    table.loc[(table["feature"] == 0) & (table["replaced"] == "induction"), "positions"] = 4
    assert measure.by_cause(table, Kinds())[0] == "previous_token"  # too few with a copy


def test_the_kind_is_the_cause_where_it_can_be_told():
    limits = {"current_token_null": 0.1, "position_null": 0.1, "active": 20}
    table = pd.DataFrame(
        [  # cause, rule, current_token, position
            ("induction", "context", 0.1, 0.0, "induction"),
            ("untested", "context", 0.1, 0.0, "context"),
            ("none", "current_token", 0.6, 0.0, "current_token"),
            ("none", "previous_token", 0.3, 0.0, "current_token"),  # keeps it without: no such one
            ("none", "context", 0.05, 0.0, "none"),
            ("none", "position", 0.3, 0.6, "position"),
            ("none", "none", 0.2, 0.0, "none"),
        ],
        columns=["cause", "rule", "current_token", "position", "wanted"],
    ).assign(**limits)
    assert measure.kind_of(table, Kinds()).tolist() == table["wanted"].tolist()
    agree = measure.agreement(table).set_index(["rule", "cause"])["features"]
    assert agree.sum() == len(table)
    assert agree["context", "induction"] == agree["context", "untested"] == 1
    assert agree["position", "context"] == 0


def test_onsets_of_a_kind():
    at = pd.Series(np.arange(101.0))
    found = numbers.onsets(at, 500, np.random.default_rng(0))
    assert (found["q25"], found["median"], found["q75"]) == (25, 50, 75)
    assert 30 < found["low"] < 45
    assert 55 < found["high"] < 70
    assert set(numbers.onsets(at[:0], 500, np.random.default_rng(0)).values()) == {None}
