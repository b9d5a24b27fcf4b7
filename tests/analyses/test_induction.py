"""Heads and the order of onsets: planted heads are told apart, and noise forms nothing."""

from __future__ import annotations

import json
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, MambaConfig, MambaForCausalLM

from ontogeny.analyses.induction import figure as drawing
from ontogeny.analyses.induction import heads, onsets
from ontogeny.figures import style
from ontogeny.files import InputError
from ontogeny.settings import load

V, T, B = 80, 64, 12
PLAN = heads.plan(T)
PLANTED = ("uniform", "previous", "fixed", "induction", "duplicate", "popular")


@pytest.fixture(scope="module")
def blocks() -> heads.Blocks:
    """Text of a Markov chain, where pairs repeat, and the passages of the measures."""
    rng = np.random.default_rng(0)
    text = np.zeros((B, T), np.int64)
    follows = rng.integers(1, V, (V, 3))
    for t in range(1, T):
        fresh = rng.random(B) < 0.3
        text[:, t] = np.where(
            fresh, rng.integers(1, V, B), follows[text[:, t - 1], rng.integers(0, 3, B)]
        )
    text[0, 0] = 0
    spread = np.tile(np.arange(V), 2)[: B * T // B * 2]  # every token occurs
    text[1], text[2] = spread[:T], spread[V - T : V]
    return heads.make_blocks(text, PLAN, 0, seed=0)


def planted(ids: torch.Tensor, name: str) -> torch.Tensor:
    """Attention of a head of a kind, (B, T, T); 0.8 where its kind says, else uniform."""
    n, size = ids.shape
    even = heads.uniform(size)[0].float().expand(n, -1, -1).clone()
    same = (ids[:, :, None] == ids[:, None, :]).tril(-1)
    where = torch.zeros(n, size, size)
    if name == "previous":
        where = torch.diag(torch.ones(size - 1), -1).expand(n, -1, -1)
    if name == "fixed":
        where = torch.diag(torch.ones(size - PLAN.half + 1), -(PLAN.half - 1)).expand(n, -1, -1)
    if name == "duplicate":
        where = same.float()
    if name == "induction":
        where[:, :, 1:] = same[:, :, :-1].float()
        where = where.tril(-1)
    if name == "popular":  # looks for tokens, whatever they follow
        where = (ids % 4 == 1).float()[:, None, :].expand(n, size, -1).tril(-1)
    total = where.sum(2, keepdim=True)
    return torch.where(total > 0, 0.2 * even + 0.8 * where / total.clamp(min=1), even)


class Planted(torch.nn.Module):
    """A model whose only layer has one head of each kind; copies raise its logits if it is told."""

    def __init__(self, copies: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.copies = copies
        text = SimpleNamespace(num_hidden_layers=1, num_attention_heads=6, vocab_size=V)
        self.config = SimpleNamespace(get_text_config=lambda: text)

    def forward(self, input_ids, use_cache, output_attentions):
        found = torch.stack([planted(input_ids, name) for name in PLANTED], 1)
        onto = torch.nn.functional.one_hot(input_ids, V).float()
        logits = 10 * (found[:, PLANTED.index("induction")] @ onto) * self.copies
        return SimpleNamespace(attentions=(found,) if output_attentions else None, logits=logits)


def sums_of(models: list, blocks: heads.Blocks, steps: list[int]) -> onsets.Sums:
    found = [heads.measure_model(m, blocks, PLAN, True) for m in models]
    stacked = [np.stack([getattr(m, name) for m in found]) for name in ("value", "control")]
    chance, count = heads.chances(blocks, PLAN)
    gain = np.stack([m.gain for m in found])
    return onsets.Sums(
        *stacked, chance, count, gain, np.array(steps), PLAN.scores, list(PLAN.distances), PLAN.half
    )


def test_planted_heads_are_told_apart(blocks):
    sums = sums_of([Planted()], blocks, [0])
    once = np.ones((1, B))

    def above(score: str, distances: list[int]) -> dict[str, float]:
        found = onsets.excess(sums, score, once, distances)[0, 0]
        return dict(zip(PLANTED, found, strict=True))

    each = {
        "previous": above("previous_token", [1]),
        "fixed": above("fixed_distance", [PLAN.half]),
        "induction": above("induction", sums.distances),
        "duplicate": above("duplicate_token", sums.distances),
    }
    for kind, found in each.items():
        assert found[kind] > 0.7, kind
        others = {name: value for name, value in found.items() if name != kind}
        assert max(others.values()) < 0.05, (kind, others)
    natural = above("natural_induction", [0])
    assert natural["induction"] > 0.3
    assert max(value for name, value in natural.items() if name != "induction") < 0.06, natural
    # At its own distance, a head of a fixed distance is seen as one of induction, but for control.
    i = PLAN.scores.index(("induction", PLAN.half))
    per = sums.value[0, i, 0, PLANTED.index("fixed")].sum() / sums.count[i].sum()
    assert per > 0.7


def test_uniform_attention_is_exactly_at_chance(blocks):
    sums = sums_of([Planted()], blocks, [0])
    uniform = PLANTED.index("uniform")
    for i, (name, distance) in enumerate(PLAN.scores):
        assert sums.value[0, i, 0, uniform] == pytest.approx(sums.chance[i], rel=1e-5), name
        t = np.arange(PLAN.second, T - 1)
        if name == "previous_token":
            assert sums.chance[i] == pytest.approx([sum(1 / (t + 1) for t in range(1, T))] * B)
            assert (sums.count[i] == T - 1).all()
        if name in ("induction", "duplicate_token"):
            assert sums.chance[i] == pytest.approx([(1 / (t + 1)).sum()] * B)
            assert (sums.count[i] == PLAN.length - 1).all()
        if name == "fixed_distance":
            for b, row in enumerate(blocks.text):
                free = [u for u in range(distance, T) if row[u - distance] != row[u]]
                assert sums.count[i, b] == len(free)
                assert sums.chance[i, b] == pytest.approx(sum(1 / (u + 1) for u in free))


def test_natural_copies_are_brute_force(blocks):
    rng = np.random.default_rng(1)
    ids = torch.from_numpy(blocks.text)
    A = torch.from_numpy(rng.random((B, 2, T, T))).tril()
    A = (A / A.sum(-1, keepdim=True)).float()
    value, count, control = heads.text_scores(A, ids, PLAN)["natural_induction", 0]
    total = 0
    for b, x in enumerate(blocks.text):
        mean = [A[b].diagonal(-back, 1, 2).mean(1).numpy() for back in range(T)]
        found, level, number = np.zeros(2), np.zeros(2), 0
        for t in range(T - 1):
            copies = [j + 1 for j in range(t - 1) if x[j] == x[t] and x[j + 1] == x[t + 1]]
            others = [s for s in range(t) if x[s] == x[t + 1] and s not in copies]
            if not copies or not others:
                continue
            number += 1
            for s in copies:
                found += A[b, :, t, s].numpy()
                level += mean[t - s]
                for o in others:
                    level += (A[b, :, t, o].numpy() - mean[t - o]) / len(others)
        assert count[b] == number
        assert value[b].numpy() == pytest.approx(found, rel=1e-4, abs=1e-6)
        assert control[b].numpy() == pytest.approx(level, rel=1e-4, abs=1e-5)
        total += number
    assert total > 10


def test_passages_stand_where_the_plan_says(blocks):
    assert PLAN.distances == (8, 16, 24, 32, 48)
    assert PLAN.half == 32
    for row in blocks.random:
        assert len(set(row)) == T  # one earlier copy of a token, and no other
        assert 0 not in row
    for d in PLAN.distances:
        for name in ("random", "passage"):
            before, after = getattr(blocks, name), blocks.copied(name, PLAN, d)
            first = T - 8 - d
            assert (after[:, first : first + 8] == after[:, T - 8 :]).all()
            changed = np.flatnonzero((before != after).any(0))
            assert set(changed) <= set(range(first, first + 8))
            assert not np.shares_memory(before, after)
    assert (blocks.passage[:, -8:] == np.roll(blocks.text, 1, 0)[:, :8]).all()


def test_gain_is_the_loss_that_a_copy_takes_away(blocks):
    model = Planted(copies=True)
    gain = heads.measure_model(model, blocks, PLAN, attention=False).gain
    for i, d in enumerate(PLAN.distances):
        losses = []
        for ids in (blocks.random, blocks.copied("random", PLAN, d)):
            logits = model(torch.from_numpy(ids), False, False).logits.log_softmax(-1).numpy()
            at = [[-logits[b, t, ids[b, t + 1]] for t in range(T - 8, T - 1)] for b in range(B)]
            losses.append(np.mean(at, 1))
        assert gain[1, i] == pytest.approx(losses[0] - losses[1], abs=1e-5)
    assert gain[1].mean() > 2


def curve(steps: list[int], rises: int) -> list[bool]:
    return [step >= rises for step in steps]


def test_order_of_onsets(blocks):
    """A model that copies from step 8 on, its heads there from the start."""
    steps = [0, 2, 8, 32]
    models = [Planted(copies=copies) for copies in curve(steps, 8)]
    sums = sums_of(models, blocks, steps)
    weights = np.random.default_rng(0).multinomial(B, np.full(B, 1 / B), 40).astype(float)
    found = {
        (e.name, e.detail): e
        for e in (
            *onsets.head_events(sums, weights, 0.1),
            *onsets.gain_events(sums, weights, 0.1),
        )
    }
    assert {e.detail for e in found.values() if e.name == "induction_head"} == {"0.3"}
    assert {e.detail for e in found.values() if e.name == "fixed_distance_head"} == {"0.2"}
    assert all(e.forms for e in found.values())
    gain = found["copying_gain_random", str(PLAN.half)]
    at = onsets.onsets(gain.curve[None], sums.steps)[0]
    assert at == pytest.approx(np.sqrt(3 * 9) - 1)  # halfway from step 2 to 8 in log(step + 1)
    assert onsets.onsets(found["induction_head", "0.3"].curve[None], sums.steps)[0] == 0


@pytest.fixture(scope="module")
def noise(tmp_path_factory) -> onsets.Sums:
    """Four models at random, as different seeds start."""
    rng = np.random.default_rng(3)
    text = rng.integers(1, V, (B, T))
    blocks = heads.make_blocks(text, PLAN, 0, seed=1)
    models = []
    for seed in range(4):
        torch.manual_seed(seed)
        config = GPTNeoXConfig(
            vocab_size=V, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=64, max_position_embeddings=T,
        )  # fmt: skip
        models.append(GPTNeoXForCausalLM(config).eval())
        assert heads.attends(models[-1])
    return sums_of(models, blocks, [0, 1, 2, 4])


def test_nothing_forms_in_random_models(noise):
    weights = np.random.default_rng(0).multinomial(B, np.full(B, 1 / B), 40).astype(float)
    events = [*onsets.head_events(noise, weights, 0.1)]
    events += onsets.gain_events(noise, weights, 0.1)
    assert len(events) == 5 + 2 * 6
    assert [e.name for e in events if e.forms] == []
    assert noise.value.shape == (4, 17, 2, 4, B)


def test_a_model_without_attention_weights(blocks, capsys):
    config = MambaConfig(vocab_size=V, hidden_size=16, num_hidden_layers=1, state_size=4)
    model = MambaForCausalLM(config).eval()
    assert not heads.attends(model)
    said = capsys.readouterr().err
    assert said.startswith("MambaForCausalLM gives no attention weights")
    assert said.endswith("heads are left out\n")
    found = heads.measure_model(model, blocks, PLAN, attention=False)
    assert found.value.shape == (17, 0, 0, B)
    assert np.isfinite(found.gain).all()


SETTINGS = {
    "name": "planted",
    "device": "cpu",
    "snapshots": {"steps": [0, 4, 16], "local": {"folders": "step{step}"}},
    "activations": {"layers": [0]},
    "crosscoders": {"one": {"inputs": {"layers": [0]}, "features": 200, "steps": 10}},
    "primary": "one",
    "analyses": ["induction"],
    "analysis": {"bootstrap": 40},
    "induction": {"blocks": 8},
}


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """The stages' files for three snapshots of random models, transformer and state space."""
    folder = tmp_path_factory.mktemp("induction")
    rng = np.random.default_rng(0)
    with h5py.File(folder / "tokens.h5", "w") as file:
        file["tokens"] = rng.integers(1, V, (20, T)).astype("<u2")
        bounds = {"held_out": (0, 10), "train": (10, 15), "pretrain": (15, 20)}
        about = {"vocabulary": V, "end_of_text": 0, "tokenizer": "", "corpus": "", "digest": ""}
        file.attrs.update(bounds | about)
    for i, step in enumerate((0, 4, 16)):
        torch.manual_seed(i)
        size = {"vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2}
        heads_ = {"num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": T}
        GPTNeoXForCausalLM(GPTNeoXConfig(**size, **heads_)).save_pretrained(
            folder / "neox" / f"step{step}"
        )
        MambaForCausalLM(MambaConfig(**size, state_size=4)).save_pretrained(
            folder / "mamba" / f"step{step}"
        )
    s = load(SETTINGS)
    for name in ("neox", "mamba"):
        out = folder / name
        heads.measure(s, out, folder / "tokens.h5", out / "heads.h5", out / "heads.csv")
    levels = {"unigram_cross_entropy": 5.5, "bigram_cross_entropy": 2.0}
    levels |= {"unigram_crossing_step": 3.5, "bigram_crossing_step": None}
    (folder / "levels.json").write_text(json.dumps(levels))
    losses = {"snapshot_index": [1, 2, 3], "step": [0, 4, 16], "loss": [7.0, 5.0, 3.0]}
    pd.DataFrame(losses).to_csv(folder / "phases.csv", index=False)
    n = 30
    features = pd.DataFrame({"feature": range(n), "alive": True, "onset_step": 0.0})
    features.loc[:9, "onset_step"] = np.arange(10.0)
    features["kind"] = ["previous_token"] * 10 + ["context"] * 3 + ["current_token"] * 17
    features["matched"], features["matched_cosine"] = features["feature"] % 2 == 0, 0.8
    features.loc[29, "alive"] = False
    features[["feature", "kind"]].to_parquet(folder / "kinds.parquet")
    features.drop(columns="kind").to_parquet(folder / "features.parquet")
    strengths = pd.DataFrame({"feature": np.repeat(range(n), 3), "step": np.tile([0, 4, 16], n)})
    strengths["snapshot_index"] = np.tile([1, 2, 3], n)
    strengths["normalised_strength"] = np.tile([0.1, 0.5, 1.0], n)
    strengths.to_parquet(folder / "strengths.parquet")
    return folder


def described(stages, name: str, with_features: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    out = stages / name
    paths = [stages / "features.parquet", stages / "kinds.parquet"] if with_features else [None] * 2
    places = [out / "heads.h5", stages / "levels.json", *paths]
    onsets.measure(load(SETTINGS), *places, out / "order.csv", out / "curves.csv")
    return pd.read_csv(out / "order.csv"), pd.read_csv(out / "curves.csv")


def test_tables(stages):
    table, curves = described(stages, "neox", True)
    first = table[table["verdict"] == "forms"]
    # Of models at random nothing else forms.
    assert set(first["event"]) == {"features", "loss_unigram"}
    assert first.loc[first["event"] == "loss_unigram", "onset_step"].tolist() == [3.5]
    row = first[(first["detail"] == "previous_token") & (first["group"] == "all")].iloc[0]
    assert (row["onset_step"], row["count"]) == (4.5, 10)
    assert (row["quartile_low"], row["quartile_high"]) == (2.25, 6.75)
    assert 1 < row["low"] < 4.5 < row["high"] < 8
    matched = first[(first["detail"] == "previous_token") & (first["group"] == "matched")]
    assert matched["onset_step"].tolist() == [4.0]
    token = table[(table["detail"] == "current_token") & (table["group"] == "all")].iloc[0]
    assert (token["count"], token["onset_step"]) == (16, 0)  # the dead one is none
    context = table[(table["detail"] == "context") & (table["group"] == "all")].iloc[0]
    assert context["verdict"] == "none"  # of three features there is no median
    none = table[table["verdict"] == "none"]
    assert none[["onset_step", "low", "high"]].isna().all().all()
    assert (table["verdict"] == "none").sum() == 17 + 1 + 2 * 3  # position has no features
    assert len(curves) == 17 * 3
    assert curves.groupby("event")["detail"].nunique()["induction_head"] == 1

    heads_table = pd.read_csv(stages / "neox" / "heads.csv")
    assert len(heads_table) == 3 * 2 * 2 * 17
    best = curves[curves["event"] == "previous_token_head"].iloc[-1]
    layer, head = str(best["detail"]).split(".")
    at = heads_table.query(
        f"step == 16 and layer == {layer} and head == {head} and score == 'previous_token'"
    ).iloc[0]
    assert best["value"] == pytest.approx(at["value"] - at["chance"], abs=1e-6)


def test_tables_of_a_model_without_attention(stages):
    table, curves = described(stages, "mamba", False)
    gains = table[~table["event"].str.startswith("loss_")]
    assert set(gains["event"]) == {"copying_gain", "copying_gain_random"}
    assert (gains["verdict"] == "none").all()
    assert len(curves) == 12 * 3
    assert pd.read_csv(stages / "mamba" / "heads.csv").empty


def test_figure(stages, monkeypatch):
    monkeypatch.setattr(style, "PNG_DPI", 40)
    described(stages, "neox", True)
    described(stages, "mamba", False)
    parts = {n: stages / f"{n}.parquet" for n in ("features", "strengths", "kinds")}
    for name, more in (("neox", parts), ("mamba", dict.fromkeys(parts))):
        out = stages / name
        tables = [out / "order.csv", out / "curves.csv", stages / "phases.csv"]
        drawing.draw(*tables, stages / "levels.json", **more, output=out / "induction")
        drawn = pd.read_csv(out / "induction.csv")
        assert (out / "induction.pdf").stat().st_size > 5000
        assert (out / "induction.png").stat().st_size > 5000
        assert set(drawn["panel"]) >= {"gain", "onset"}
    shown = pd.read_csv(stages / "neox" / "induction.csv")
    assert set(shown["panel"]) == {"heads", "gain", "loss", "features", "onset"}
    losses = shown[(shown["panel"] == "loss") & (shown["event"] == "model")]
    assert losses["value"].tolist() == [7.0, 5.0, 3.0]
    level = shown[(shown["panel"] == "onset") & shown["event"].str.startswith("loss_")]
    assert level["event"].tolist() == ["loss_unigram", "loss_bigram"]
    assert level["value"].tolist()[0] == 3.5
    assert np.isnan(level["value"].tolist()[1])  # it stays above the bigrams
    strength = shown.query("panel == 'features' and detail == 'context' and group == 'all'")
    assert strength["value"].tolist() == pytest.approx([0.1, 0.5, 1.0])
    onset = shown.query("panel == 'onset' and detail == 'previous_token' and group == 'all'")
    assert onset["value"].tolist() == [4.5]
    assert shown.query("panel == 'onset' and event == 'induction_head'")["value"].isna().all()


def test_sums_of_other_snapshots_are_refused(stages):
    other = load(SETTINGS | {"snapshots": {"steps": [0, 4], "local": {"folders": "step{step}"}}})
    path = stages / "neox" / "heads.h5"
    with pytest.raises(
        InputError, match=r"heads\.h5: made from other snapshots than snapshots\.steps"
    ):
        onsets.measure(
            other, path, stages / "levels.json", None, None, stages / "a.csv", stages / "b.csv"
        )
    with pytest.raises(InputError, match="not a file of heads"):
        onsets.read(stages / "tokens.h5")
