"""Heads and features: ablation is what changed weights give, and planted makers are found."""

from __future__ import annotations

import copy

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from test_circuits import small_settings
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    OPTConfig,
)

from ontogeny.analyses.makers import by_kind, figure, measure
from ontogeny.crosscoder.model import Crosscoder, Description
from ontogeny.figures import style
from ontogeny.settings import load
from ontogeny.snapshots import attention, sites

V, D, H, T = 40, 24, 3, 12
STEPS = [0, 10, 30]
HEADS = [(layer, head) for layer in (0, 1) for head in range(H)]
SIZE = {"vocab_size": V, "hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": H}
READ = ("makers", "shares", "features", "kinds")
SETTINGS = {
    "name": "planted",
    "snapshots": {"steps": [0, 10, 100, 1000], "local": {"folders": "step{step}"}},
    "crosscoders": {"one": {"inputs": {"layers": [0]}, "features": 64, "steps": 10}},
    "primary": "one",
    "activations": {"layers": [0]},
    "analyses": ["makers"],
    "analysis": {"bootstrap": 100},
}
KINDS = {
    "neox": lambda: GPTNeoXConfig(intermediate_size=48, initializer_range=0.3, **SIZE),
    "gpt2": lambda: GPT2Config(n_embd=D, n_layer=2, n_head=H, vocab_size=V, initializer_range=0.3),
    "llama": lambda: LlamaConfig(
        intermediate_size=48, num_key_value_heads=1, head_dim=6, initializer_range=0.3, **SIZE
    ),
    "opt": lambda: OPTConfig(ffn_dim=48, word_embed_proj_dim=D, init_std=0.3, **SIZE),
    "bloom": lambda: BloomConfig(initializer_range=0.3, **SIZE),
    "falcon": lambda: FalconConfig(initializer_range=0.3, **SIZE),
}
OUTPUTS = {  # of a block: the projection's name
    "neox": "attention.dense", "gpt2": "attn.c_proj", "llama": "self_attn.o_proj",
    "opt": "self_attn.out_proj", "bloom": "self_attention.dense", "falcon": "self_attention.dense",
}  # fmt: skip


def model_of(kind: str, seed: int = 0):
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(KINDS[kind]()).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_heads_are_found_in_any_architecture(kind):
    model = model_of(kind)
    heads = attention.find(model, 1)
    assert isinstance(heads, attention.Heads), heads
    assert heads.projection is sites.blocks(model)[1].get_submodule(OUTPUTS[kind])
    assert (heads.count, heads.width) == (H, 6 if kind == "llama" else D // H)


def test_a_slice_is_one_head():
    """Another query of one head changes its slice and no other's."""
    model = model_of("llama")
    heads = attention.find(model, 0)
    ids, seen = torch.arange(2 * T).view(2, T), []
    with attention.changed(heads, lambda z: seen.append(z.clone())), torch.no_grad():
        model(input_ids=ids)
        weight = sites.blocks(model)[0].self_attn.q_proj.weight
        weight[heads.slice(1)] *= -3
        model(input_ids=ids)
    changed = (seen[0] - seen[1]).abs().amax((0, 1)).view(H, -1).amax(1)
    assert changed[1] > 0.1
    assert changed[0] == changed[2] == 0


def test_models_without_heads_say_so(capsys):
    config = MambaConfig(vocab_size=V, hidden_size=16, num_hidden_layers=1, state_size=4)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert measure.find_heads(model, 0) == {}
    said = capsys.readouterr().err
    assert said == (
        "MambaForCausalLM: its configuration counts no attention heads: heads are left out\n"
    )


def crosscoder_of(layers: list[int], features: int = 20) -> Crosscoder:
    where = [(step, layer, "residual") for layer in layers for step in STEPS]
    N = len(where)
    torch.manual_seed(5)
    about = Description(
        "jumprelu", "snapshot", features, D, where, where, "full", 0.0, 0,
        {"dead_after_rows": 10}, "text", "0", "0",
    )  # fmt: skip
    tensors = {
        "W_enc": torch.randn(features, N * D) / (N * D) ** 0.5, "b_enc": torch.zeros(features),
        "W_dec": torch.randn(features, N * D) / 8, "b_dec": torch.zeros(N * D),
        "log_threshold": torch.full((features,), -1.5), "mean_in": 0.1 * torch.randn(N * D),
        "mean_out": torch.zeros(N * D), "silent_rows": torch.zeros(features),
        "scales_in": torch.linspace(0.5, 1, N), "scales_out": torch.ones(N),
    }  # fmt: skip
    return Crosscoder(about, tensors)


def removed(model, layer: int, head: int, blocks: torch.Tensor) -> None:
    """Take a head out of a model's weights: its mean output goes into the projection's bias."""
    dense = sites.blocks(model)[layer].attention.dense
    width, seen = D // H, []
    handle = dense.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.no_grad():
        model(input_ids=blocks)
        handle.remove()
        part = slice(head * width, (head + 1) * width)
        dense.bias += dense.weight[:, part] @ seen[0].mean((0, 1))[part]
        dense.weight[:, part] = 0


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Three snapshots; in the first, head 2 of layer 1 writes nothing. The folder, and blocks."""
    folder = tmp_path_factory.mktemp("makers")
    for i, step in enumerate(STEPS):
        model = model_of("neox", i)
        if i == 0:
            with torch.no_grad():
                sites.blocks(model)[1].attention.dense.weight[:, 16:] = 0
        model.save_pretrained(folder / f"step{step}")
    return folder, np.random.default_rng(0).integers(0, V, (5, T))


def read(model, ids: torch.Tensor) -> dict:
    """The residual stream after either layer, (B·T, D)."""
    wanted = [(0, "residual"), (1, "residual")]
    return {key: value.flatten(0, 1) for key, value in sites.read(model, ids, wanted).items()}


@pytest.fixture(scope="module")
def values(planted) -> dict:
    """Activations by snapshot and head taken out, None for none of them."""
    folder, blocks = planted
    ids, every = torch.from_numpy(blocks), {}
    for step in STEPS:
        whole = AutoModelForCausalLM.from_pretrained(folder / f"step{step}").eval()
        every[step, None] = read(whole, ids)
        for head in HEADS:
            model = copy.deepcopy(whole)
            removed(model, *head, ids)
            every[step, head] = read(model, ids)
    return every


def pre_activations(values: dict, crosscoder: Crosscoder, head=None, only=None) -> torch.Tensor:
    """h of every position, (B·T, F), with a head taken out at all snapshots or at one."""
    rows = [
        values[step, head if only in (None, step) else None][layer, stream]
        for step, layer, stream in crosscoder.about.inputs
    ]
    return crosscoder.pre_activations(torch.stack(rows, 1) * crosscoder.scales_in[:, None])


@pytest.mark.parametrize("layers", [[1], [0, 1]])
def test_losses_are_those_of_models_without_the_head(
    planted, values, layers, monkeypatch, tmp_path
):
    folder, blocks = planted
    crosscoder = crosscoder_of(layers)
    monkeypatch.setattr(measure, "BATCH_TOKENS", 2 * T)  # three batches
    h = pre_activations(values, crosscoder)

    def gated(h: torch.Tensor) -> torch.Tensor:
        score = h[:, :, None] * crosscoder.strength
        return h * (score > crosscoder.weights.log_threshold.exp()[:, None]).any(2)

    f = gated(h).numpy()
    position = np.stack(np.divmod(np.arange(5 * T), T), 1)
    measured = measured_by_stage(crosscoder, folder, blocks, f, position, monkeypatch, tmp_path)
    every, share = measured
    features = share["feature"]
    active = (f > 0)[:, features]
    assert set(features) == set(np.flatnonzero((f > 0).sum(0) >= 5))
    assert len(features) > 10
    total = f[:, features].sum(0)
    assert list(zip(share["layer"], share["head"], strict=True)) == HEADS
    for k, (layer, head) in enumerate(HEADS):
        without = pre_activations(values, crosscoder, (layer, head))
        left = (gated(without).numpy()[:, features] * active).sum(0)
        own = every[(every["layer"] == layer) & (every["head"] == head)]
        assert own["loss"].to_numpy() == pytest.approx(1 - left / total, abs=2e-4)
        assert own["active"].to_numpy() == pytest.approx(active.sum(0))
        for n, step in enumerate(STEPS):
            one = pre_activations(values, crosscoder, (layer, head), step)
            lost = ((h - one).numpy()[:, features] * active).sum(0) / total
            assert share["share"][:, k, n] == pytest.approx(lost, abs=2e-4)
        assert own["share"].to_numpy() == pytest.approx(share["share"][:, k].sum(1), abs=1e-5)
    # What writes nothing makes nothing; what does, something.
    assert (share["share"][:, 5, 0] == 0).all()
    assert np.abs(share["share"][:, 5, 1]).max() > 0.05
    best = every.loc[every.groupby("feature")["loss"].idxmax()]
    assert best["strongest"].all()
    assert every["strongest"].sum() == len(features)


def measured_by_stage(crosscoder, folder, blocks, f, position, monkeypatch, tmp_path):
    """What the stage writes, of these activations on held-out text that begins at block 7."""
    with h5py.File(tmp_path / "tokens.h5", "w") as file:
        file["tokens"] = np.concatenate([np.zeros((7, T), int), blocks]).astype("<u2")
        bounds = {"train": (0, 6), "pretrain": (6, 7), "held_out": (7, 12)}
        about = {"vocabulary": V, "end_of_text": 0, "tokenizer": "", "corpus": "", "digest": ""}
        file.attrs.update(bounds | about)
    crosscoder.save(tmp_path / "crosscoder")
    where = position + np.array([7, 0])
    monkeypatch.setattr(measure, "held_out", lambda *_: (sparse.csr_array(f), where))
    places = [tmp_path / "crosscoder", tmp_path, folder, tmp_path / "tokens.h5"]
    measure.measure(small_settings(), *places, tmp_path / "makers.parquet", tmp_path / "shares.h5")
    with h5py.File(tmp_path / "shares.h5") as file:
        share = {name: file[name][()] for name in file}
    return pd.read_parquet(tmp_path / "makers.parquet"), share


def test_the_standard_error_covers_the_loss():
    """Of texts with as many blocks drawn again, the spread of the loss is what one text says."""
    rng = np.random.default_rng(0)
    losses, errors = [], []
    for _ in range(200):
        block = np.repeat(np.arange(30), 10)
        f = rng.gamma(2, 1, 300)
        without = f * (0.4 + 0.3 * np.repeat(rng.random(30), 10))
        pairs = measure.Pairs(block, np.tile(np.arange(10), 30), np.zeros(300, int))
        row = measure.table(f, without[None], np.zeros((1, 1, 2)), pairs, [(0, 0)]).iloc[0]
        losses.append(row["loss"])
        errors.append(row["standard_error"])
    assert np.mean(losses) == pytest.approx(0.45, abs=0.005)
    assert np.mean(errors) == pytest.approx(np.std(losses), rel=0.15)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """Ten induction features by head 1.1 from step 100 on, ten of context by head 0.0."""
    folder = tmp_path_factory.mktemp("by_kind")
    rng = np.random.default_rng(0)
    steps, names = [0, 10, 100, 1000], [(0, 0), (0, 1), (1, 0), (1, 1)]
    share = 0.01 * rng.random((24, 4, 4))
    share[:10, 3, 2:] += 0.4
    share[10:20, 0] += 0.1
    with h5py.File(folder / "shares.h5", "w") as file:
        file["share"], file["feature"], file["step"] = share, np.arange(24) * 2, steps
        file["layer"], file["head"] = np.array(names).T
    rows = {"feature": np.repeat(np.arange(24) * 2, 4), "loss": share.sum(2).ravel()}
    pd.DataFrame(rows).to_parquet(folder / "makers.parquet")
    alive = pd.DataFrame({"feature": np.arange(48), "alive": True})
    alive.loc[0, "alive"] = False
    alive.to_parquet(folder / "features.parquet")
    kind = ["induction"] * 10 + ["context"] * 10
    pd.DataFrame({"feature": np.arange(20) * 2, "kind": kind}).to_parquet(folder / "kinds.parquet")
    s = load(SETTINGS)
    read = [folder / f"{n}.{'h5' if n == 'shares' else 'parquet'}" for n in READ]
    by_kind.measure(s, *read, folder / "by_kind.csv", folder / "curves.csv")
    return folder, share, read


def test_makers_of_a_kind_and_since_when(kinds):
    folder, share, _ = kinds
    table = pd.read_csv(folder / "by_kind.csv").set_index(["kind", "layer", "head"])
    assert set(table.index.get_level_values(0)) == {"all", "induction", "context"}  # 4 of none
    best = table[table["strongest"]]
    assert [("induction", 1, 1), ("context", 0, 0)] == list(best.index[-2:])
    row = best.loc[("induction", 1, 1)]
    assert row["features"] == 9  # one is dead
    assert row["loss"] == pytest.approx(share[1:10, 3].sum(1).mean())
    assert row["low"] < row["loss"] < row["high"]
    # Half of the largest share lies halfway between steps 10 and 100.
    assert row["onset_step"] == pytest.approx(np.sqrt(11 * 101) - 1, rel=0.03)
    assert best.loc[("context", 0, 0), "onset_step"] == 0
    curves = pd.read_csv(folder / "curves.csv").set_index(["kind", "layer", "head", "step"])
    assert curves.loc[("context", 0, 0, 100), "share"] == pytest.approx(share[10:20, 0, 2].mean())
    assert curves.loc[("induction", 1, 1, 1000), "snapshot_index"] == 4


def test_figure_of_makers(kinds, tmp_path, monkeypatch):
    monkeypatch.setattr(style, "PNG_DPI", 40)
    folder, share, _ = kinds
    event = {"event": ["induction_head"], "detail": "1.1", "verdict": "forms"}
    pd.DataFrame(event).to_csv(tmp_path / "induction.csv", index=False)
    points = {"event": "induction_head", "detail": "1.1", "snapshot_index": range(1, 5)}
    points |= {"step": [0, 10, 100, 1000], "value": [0, 0.1, 0.3, 0.6], "low": 0.0, "high": 0.7}
    pd.DataFrame(points).to_csv(tmp_path / "curves.csv", index=False)
    heads = [tmp_path / "induction.csv", tmp_path / "curves.csv"]
    tables = [folder / "by_kind.csv", folder / "curves.csv"]
    figure.draw(*tables, *heads, tmp_path / "makers")
    drawn = pd.read_csv(tmp_path / "makers.csv")
    assert set(drawn["panel"]) == {"loss", "share", "attention"}
    attention_ = drawn[drawn["panel"] == "attention"]
    assert attention_["value"].tolist() == pytest.approx([0, 1 / 6, 0.5, 1])
    assert set(attention_["role"]) == {"induction"}
    shares = drawn[drawn["panel"] == "share"]
    assert set(shares["kind"]) == {"induction"}  # context loses less than half
    curve = share[1:10, 3].mean(0)
    assert shares["value"].tolist() == pytest.approx(list(curve / curve.max()))
    figure.draw(*tables, None, None, tmp_path / "alone")
    assert "attention" not in set(pd.read_csv(tmp_path / "alone.csv")["panel"])


def test_without_heads_tables_and_figure_are_empty(kinds, tmp_path, monkeypatch):
    monkeypatch.setattr(style, "PNG_DPI", 40)
    _, _, read = kinds
    pairs = measure.Pairs(*np.zeros((3, 0), int))
    nothing = measure.table(np.zeros(0), np.zeros((0, 0)), np.zeros((0, 0, 4)), pairs, [])
    nothing.to_parquet(tmp_path / "makers.parquet")
    with h5py.File(tmp_path / "shares.h5", "w") as file:
        file["share"], file["step"] = np.zeros((0, 0, 4)), [0, 10, 100, 1000]
        for name in ("feature", "layer", "head"):
            file[name] = np.zeros(0, int)
    own = [tmp_path / "makers.parquet", tmp_path / "shares.h5", *read[2:]]
    tables = [tmp_path / "by_kind.csv", tmp_path / "curves.csv"]
    by_kind.measure(load(SETTINGS), *own, *tables)
    assert all(pd.read_csv(path).empty for path in tables)
    figure.draw(*tables, None, None, tmp_path / "makers")
    assert pd.read_csv(tmp_path / "makers.csv").empty
