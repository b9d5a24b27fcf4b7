"""Context span on planted truth, its correlations, and the grader against a loopback server."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny
from scipy import sparse, stats
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from ontogeny import settings
from ontogeny.activations import extract, store
from ontogeny.activations.sites import Site
from ontogeny.analyses.complexity import correlations, figure, grader, span
from ontogeny.analyses.complexity.settings import Grader
from ontogeny.crosscoder.model import Crosscoder, Description
from ontogeny.crosscoder.readout import Readout
from ontogeny.experiment import Experiment
from ontogeny.figures import style
from ontogeny.files import InputError

STEPS = [0, 1, 2, 3]
VOCABULARY, CONTEXT, WIDTH = 48, 64, 32


def experiment(**changes: Any) -> settings.Settings:
    return settings.load(tiny({"snapshots.steps": STEPS, "device": "cpu", **changes}))


def crosscoder(
    inputs: list[tuple[int, int, str]], features: int, width: int, **about: Any
) -> Crosscoder:
    """Random weights; principal: in a random subspace of half the dimensions."""
    about = {"activation": "batch_topk", "gate": "feature", "basis": "full", "threshold": 1} | about
    rng = torch.Generator().manual_seed(0)
    sites, size = len(inputs), len(inputs) * width
    tensors = {}
    inside = size
    if about["basis"] == "principal":
        inside = size // 2
        tensors["basis"] = torch.linalg.qr(torch.randn(size, inside, generator=rng))[0]
    tensors |= {
        "W_enc": torch.randn(features, inside, generator=rng) / size**0.5,
        "b_enc": torch.randn(features, generator=rng) / 8,
        "W_dec": torch.randn(features, inside, generator=rng),
        "b_dec": torch.zeros(inside),
        "log_threshold": torch.rand(features, generator=rng) - 1,
        "scales_in": 0.5 + torch.rand(sites, generator=rng),
        "scales_out": torch.ones(sites),
        "mean_in": torch.randn(size, generator=rng) / 4,
        "mean_out": torch.zeros(size),
        "silent_rows": torch.zeros(features, dtype=torch.long),
    }
    described = Description(
        features=features, width=width, inputs=inputs, outputs=inputs, seed=0,
        settings={"dead_after_rows": 10}, tokens="tokens", ontogeny="", torch="", **about,
    )  # fmt: skip
    return Crosscoder(described, tensors)


KINDS = [
    {},
    {"basis": "principal"},
    {"activation": "jumprelu"},
    {"activation": "jumprelu", "gate": "snapshot"},
    {"activation": "relu"},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_readout_of_single_sites_is_the_crosscoder(kind):
    made = crosscoder([(step, 0, "residual") for step in STEPS], 12, 6, **kind)
    x = torch.randn(40, len(STEPS), 6, generator=torch.Generator().manual_seed(1))
    full = made.encode(x)
    full = full if full.ndim == 2 else full.amax(2)
    assert 0.05 < (full > 0).float().mean() < 0.95
    chosen = torch.tensor([7, 2, 11])
    readout = Readout(made, chosen)
    assert readout.scales.tolist() == made.scales_in.tolist()
    sums = torch.zeros(40, 3)
    for n in range(len(STEPS)):
        sums += (x[:, n] - readout.centre(n)) @ readout.weights(n).T
    found = readout.activations(sums, torch.arange(3))
    torch.testing.assert_close(found, full[:, chosen], atol=1e-5, rtol=1e-4)


def test_grid():
    assert span.grid(1) == [1]
    assert span.grid(3) == [1, 2, 3]
    assert span.grid(32) == [1, 2, 3, 4, 8, 16, 32]
    assert span.grid(50) == [1, 2, 3, 4, 8, 16, 32, 50]


def test_span_is_where_it_stays():
    lengths = [1, 2, 4, 8]
    f = np.array(
        [
            [9, 9, 9, 9],  # at once
            [0, 0, 9, 9],  # from 4 on
            [20, 9, 5, 9],  # passes, fails, passes: 8
            [9, 9, 9, 8.9],  # the longest fails: censored, whatever passed before
            [0, 0, 0, 0],  # censored, and there are but 11 tokens
            [0, 0, 9, 0],  # there are but 4 tokens: 4 and 8 are not run
            [0, 0, 0, 0],  # the first of its block
        ]
    ).T
    available = np.array([99, 99, 99, 99, 11, 4, 1])
    found = span.spans(f, np.full(7, 10.0), available, lengths, 0.9)
    assert found["span"].tolist() == [1, 4, 8, 16, 11, 4, 1]
    assert found["censored"].tolist() == [False, False, False, True, True, False, False]
    assert found["monotone"].tolist() == [True, True, False, False, True, True, True]


def test_a_score_is_the_geometric_mean_of_its_contexts():
    each = pd.DataFrame({"feature": [3, 3, 3, 5], "run": "alone", "span": [1, 2, 32, 7]})
    found = span.by_feature(each.assign(censored=[0, 0, 1, 0], monotone=[1, 1, 0, 1]))
    assert found["span"].tolist() == pytest.approx([4, 7])
    assert found["contexts"].tolist() == [3, 1]
    assert found["censored"].tolist() == pytest.approx([1 / 3, 0])
    assert found["span_low"].tolist() == [1.5, 7]


def test_contexts_are_of_the_upper_half_and_late_where_there_are_enough():
    rng = np.random.default_rng(0)
    offset = np.tile(np.arange(64), 100)
    dense = rng.random((6400, 7)) * (rng.random((6400, 7)) < [0.3, 0.1, 0.02, 0.01, 0.004, 0, 0])
    dense[:, 5] = (offset < 8) * (1 + rng.random(6400))  # at the start of blocks alone
    dense[77, 6] = 1
    dense[:, 0] += 2 * (dense[:, 1:].sum(1) > 0)  # strong wherever another is active
    f = sparse.csr_array(dense)
    living = np.arange(7)
    pairs = span.sample(f, offset, living, 4, 32, np.random.default_rng(1))
    assert (np.diff(pairs.row) >= 0).all()
    assert pairs.activation.tolist() == dense[pairs.row, pairs.feature].tolist()
    count = np.bincount(pairs.feature, minlength=7)
    assert (count[:6] >= 4).all()
    assert count[6] == 1
    for feature in range(5):
        own = pairs.feature == feature
        values = dense[dense[:, feature] > 0, feature]
        assert (pairs.activation[own] >= np.median(values)).all()
        assert (offset[pairs.row[own]] >= 32).all()
    # what is run for one feature serves all that are strong there
    assert count[0] > 10
    assert len(pairs.row) == len(set(zip(pairs.row, pairs.feature, strict=True)))
    again = span.sample(f, offset, living, 4, 32, np.random.default_rng(1))
    assert again.row.tolist() == pairs.row.tolist()


# Planted: snapshots whose activations hang on known tokens


class Planted(nn.Module):
    """Stands for a model; `read` below makes what it would give."""


BACK = [0, 1, 2, 5, 20]


def planted(model, ids, wanted):
    """Of each of BACK, the one-hot token so many places back; and as attention would have it, the
    mean over all tokens of a number that each has. (B, T, ·); only the last T is right."""
    one_hot = torch.eye(VOCABULARY)
    parts = [
        one_hot[ids[:, -1 - j]] if ids.shape[1] > j else torch.zeros(len(ids), VOCABULARY)
        for j in BACK
    ]
    number = torch.linspace(-1, 1, VOCABULARY)[ids].mean(1, keepdim=True)
    value = torch.cat([*parts, number], 1)
    return dict.fromkeys(wanted, value[:, None])


def test_planted_spans_are_found(monkeypatch):
    """One token back needs 2 tokens, and so on. One that is disturbed by the mean over tokens is
    one of the token alone all the same."""
    monkeypatch.setattr(span.sites, "load_model", lambda *_, **__: Planted())
    monkeypatch.setattr(span.sites, "read", planted)
    width = len(BACK) * VOCABULARY + 1
    inputs = [(step, 0, "residual") for step in STEPS]
    made = crosscoder(inputs, len(BACK) + 1, width)
    W = torch.zeros(len(BACK) + 1, len(STEPS), width)
    ours = 1 - 2.0 * (torch.arange(VOCABULARY) % 2)  # even tokens are this text's, odd ones not
    for i in range(len(BACK)):
        W[i, :, i * VOCABULARY : (i + 1) * VOCABULARY] = ours
    W[-1, :, :VOCABULARY] = ours
    W[-1, :, -1] = 2
    made.weights.W_enc[:] = W.flatten(1)
    made.weights.b_enc[:] = 0
    made._mean[:] = 0
    made.scales_in[:] = 1
    rng = np.random.default_rng(0)
    blocks = 2 * rng.integers(0, VOCABULARY // 2, (300, 400))
    block, offset = np.arange(300), rng.integers(150, 400, 300)
    full = torch.stack(
        [
            planted(None, torch.from_numpy(blocks[b : b + 1, : o + 1]), [0])[0][0]
            for b, o in zip(block, offset, strict=True)
        ]
    ).expand(-1, len(STEPS), -1)
    f = made.encode(full).numpy()
    assert (f > 0).all()
    row, feature = (x.ravel() for x in np.indices(f.shape))
    pairs = span.Pairs(row, feature, f.ravel())
    lengths = span.grid(32)
    prefix = np.arange(300) % 3
    prefixes = 1 + 2 * rng.integers(0, VOCABULARY // 2, (3, 100))
    found = span.on_suffixes(
        experiment(), made, Path(), blocks, block, offset, pairs, lengths, prefix, prefixes
    )
    each = [
        span.spans(x, pairs.activation, offset[row] + 1, lengths, 0.9).assign(feature=feature)
        for x in found
    ]
    for run, spans in zip(span.RUNS, each, strict=True):
        for i, truth in enumerate([1, 2, 3, 8, 32]):
            assert (spans.loc[spans["feature"] == i, "span"] == truth).all(), (run, i)
    alone, replaced = (x.loc[x["feature"] == len(BACK), "span"] for x in each)
    assert replaced.median() == 1
    assert alone.median() >= 8


# Real architectures, against passes one by one


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory) -> Path:
    """Random GPT-NeoX models (rotary positions) as steps 0 to 3, and a GPT-2 in gpt2/step0."""
    from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

    folder = tmp_path_factory.mktemp("snapshots")
    for step in STEPS:
        torch.manual_seed(step)
        config = GPTNeoXConfig(
            vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=3, num_attention_heads=2,
            intermediate_size=64, max_position_embeddings=128, initializer_range=0.2,
        )  # fmt: skip
        GPTNeoXForCausalLM(config).save_pretrained(folder / f"step{step}")
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=2, n_head=2, n_positions=128,
        initializer_range=0.2,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder / "gpt2" / "step0")
    return folder


@pytest.mark.parametrize("continued", [True, False])
@pytest.mark.parametrize("model", ["neox", "gpt2"])
def test_suffixes_are_passes_of_the_model_one_by_one(model, continued, snapshots, monkeypatch):
    """With and without keys and values that are computed once."""
    if not continued:
        monkeypatch.setattr(span, "_continues", lambda *_: False)
    from transformers import AutoModelForCausalLM

    folder = snapshots / "gpt2" if model == "gpt2" else snapshots
    steps = [0] if model == "gpt2" else STEPS
    inputs = [(step, layer, "residual") for layer in (0, 1) for step in steps]
    made = crosscoder(inputs, 20, WIDTH, basis="principal")
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, VOCABULARY, (3, CONTEXT))
    block, offset = np.repeat(np.arange(3), CONTEXT), np.tile(np.arange(CONTEXT), 3)
    row = np.sort(rng.choice(len(block), 9, replace=False)).repeat(4)
    feature = np.concatenate([np.sort(rng.choice(20, 4, replace=False)) for _ in range(9)])
    pairs = span.Pairs(row, feature, np.ones(36))
    prefix, prefixes = rng.integers(0, 2, 9), rng.integers(0, VOCABULARY, (2, 24))
    lengths = [1, 2, 16]
    s = experiment(**{"activations.dtype": "float32"})
    monkeypatch.setattr(span, "BATCH_TOKENS", 100)
    found = span.on_suffixes(
        s, made, folder, blocks, block, offset, pairs, lengths, prefix, prefixes
    )
    loaded = [AutoModelForCausalLM.from_pretrained(folder / f"step{step}") for step in steps]

    def brute(ids: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            states = [
                m(torch.from_numpy(ids)[None], output_hidden_states=True).hidden_states
                for m in loaded
            ]
        x = torch.stack([states[steps.index(i[0])][i[1] + 1][0, -1] for i in inputs])
        if model == "gpt2":  # its last hidden state is after the final norm
            x[1] = last_block(loaded[0], ids)
        return made.encode((x * made.scales_in[:, None])[None])[0].numpy()

    rows = np.unique(row)
    for p in range(36):
        r, q = row[p], int(np.searchsorted(rows, row[p]))
        for k, length in enumerate(lengths):
            if offset[r] < length:
                assert (found[:, k, p] == 0).all() or made.weights.b_enc[feature[p]] > 0
                continue
            ids = blocks[block[r], offset[r] - length + 1 : offset[r] + 1]
            replaced = np.concatenate([prefixes[prefix[q]], ids])
            for run, alike in enumerate((ids, replaced)):
                wanted = brute(alike)[feature[p]]
                assert found[run, k, p] == pytest.approx(wanted, abs=2e-4), (run, length)
    assert (found > 0).mean() > 0.1


def last_block(model: Any, ids: np.ndarray) -> torch.Tensor:
    kept = []
    handle = model.transformer.h[-1].register_forward_hook(
        lambda m, a, out: kept.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        model(torch.from_numpy(ids)[None])
    handle.remove()
    return kept[0].reshape(len(ids), -1)[-1]


def test_keys_and_values_are_used_where_they_can_be(snapshots, monkeypatch):
    """A pass over 1 token after a text of 24 has 1 token."""
    model = span.sites.load_model(snapshots / "step0", torch.device("cpu"), torch.float32)
    prefix, ids = torch.arange(24), torch.tensor([[3], [5]])
    with torch.no_grad():
        assert span._continues(model, prefix, ids, (1, "residual"))
        other = span.sites.load_model(snapshots / "step1", torch.device("cpu"), torch.float32)
        # a model whose keys and values do not help is noticed, however it fails
        monkeypatch.setattr(other.config, "use_cache", False)
        plain = other.forward
        monkeypatch.setattr(
            other, "forward", lambda input_ids, **_: plain(input_ids=input_ids, use_cache=False)
        )
        assert not span._continues(other, prefix, ids, (1, "residual"))


@pytest.fixture(scope="module")
def made(snapshots, tmp_path_factory) -> dict[str, Path]:
    """Tokens, extracted activations and a random crosscoder, as the stages leave them."""
    folder = tmp_path_factory.mktemp("made")
    sizes = {"train_blocks": 4, "held_out_blocks": 8, "context": CONTEXT}
    changes = {f"corpus.{name}": size for name, size in sizes.items()}
    s = experiment(**changes, **{"activations.window": 2048, "activations.leave_out": []})
    rng = np.random.default_rng(0)
    with h5py.File(folder / "tokens.h5", "w") as file:
        tokens = rng.integers(0, VOCABULARY, (12, CONTEXT)).astype(np.uint16)
        file.create_dataset("tokens", data=tokens, chunks=(4, CONTEXT))
        file.attrs.update(
            {"held_out": (0, 8), "train": (8, 12), "pretrain": (12, 12), "end_of_text": -1}
            | {"vocabulary": VOCABULARY, "tokenizer": "", "corpus": "", "digest": "tokens"}
        )
    place = folder / "activations" / "residual.0"
    for step in STEPS:
        extract.extract(
            s, snapshots / f"step{step}", step, folder / "tokens.h5", folder / "activations"
        )
    store.stack([place / f"step{t}.h5" for t in STEPS], STEPS, place / "stack.h5")
    trained = crosscoder([(step, 0, "residual") for step in STEPS], 24, WIDTH)
    trained._tensors["scales_in"] = torch.from_numpy(
        store.Stacks(folder / "activations", [Site(t, 0, "residual") for t in STEPS]).scales
    )
    trained._tensors["b_enc"] -= 1
    trained._tensors["silent_rows"][5] = 99  # dead
    trained.save(folder / "crosscoder")
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    names = ("crosscoder", "activations", "tokens.h5", "tokenizer.json")
    return {name.split(".")[0]: folder / name for name in names} | {"snapshots": snapshots}


def measure(s: settings.Settings, made: dict[str, Path], folder: Path) -> list[pd.DataFrame]:
    outputs = folder / "span.parquet", folder / "span_contexts.parquet"
    where = (made[name] for name in ("crosscoder", "activations", "snapshots", "tokens"))
    span.measure(s, *where, *outputs)
    return [pd.read_parquet(path) for path in outputs]


def test_the_whole_context_keeps_the_activation(made, tmp_path, monkeypatch):
    """On a grid of every length, at the longest the activation is the stored one, but for rounding;
    the tables hold together, and are the same again."""
    seen = []
    inner = span.spans

    def look(f, full, available, lengths, keep):
        # a suffix that is the whole context but for its first token differs; run it whole
        seen.append((f, full, available, lengths))
        return inner(f, full, available, lengths, keep)

    monkeypatch.setattr(span, "spans", look)
    s = experiment(**{"complexity": {"contexts": 4, "longest": 8}})
    scores, each = measure(s, made, tmp_path)
    assert set(scores["run"]) == {"alone", "replaced"}
    living = set(scores["feature"])
    assert 5 not in living
    assert len(living) > 10
    assert (scores["contexts"] >= 4).mean() > 0.8
    assert (scores["span"].between(1, 16)).all()
    assert (each["span"] <= each["offset"] + 1).all()
    assert len(each) == scores["contexts"].sum() == 2 * len(seen[0][1])
    geometric = np.exp(np.log(each["span"]).groupby([each["feature"], each["run"]]).mean())
    assert scores["span"].to_numpy() == pytest.approx(geometric.to_numpy())
    again = measure(s, made, tmp_path / "again")
    pd.testing.assert_frame_equal(again[0], scores)
    few = experiment(**{"complexity": {"contexts": 2, "longest": 8, "features": 5}})
    assert measure(few, made, tmp_path / "few")[0]["feature"].nunique() == 5


def test_a_suffix_as_long_as_the_context_gives_what_is_stored(made, snapshots):
    trained = Crosscoder.load(made["crosscoder"])
    f, position = span.held_out(trained, made["activations"])
    data = span.Tokens(made["tokens"])
    row, feature = (x[:50] for x in f.nonzero())
    order = np.argsort(row, kind="stable")
    row, feature = row[order].astype(np.int64), feature[order].astype(np.int64)
    pairs = span.Pairs(row, feature, np.ones(50))
    # shift positions by one so that the "suffix" is the whole context
    blocks = np.pad(data.split("held_out"), ((0, 0), (1, 0)))
    block, offset = position.T.astype(np.int64)
    lengths = sorted(set((offset[row] + 1).tolist()))
    prefix = np.zeros(len(np.unique(row)), np.int64)
    found = span.on_suffixes(
        experiment(), trained, snapshots, blocks, block, offset + 1, pairs, lengths, prefix,
        np.ones((1, 8), np.int64),
    )[0]  # fmt: skip
    own = [lengths.index(length) for length in offset[row] + 1]
    stored = f.toarray()[row, feature]
    assert found[own, np.arange(50)] == pytest.approx(stored, rel=2e-3, abs=2e-3)


def test_a_crosscoder_without_a_living_feature_is_told_so(made, tmp_path):
    trained = Crosscoder.load(made["crosscoder"])
    trained._tensors["silent_rows"][:] = 99
    trained.save(tmp_path / "dead")
    with pytest.raises(InputError, match="no feature is active on the held-out text"):
        measure(experiment(), made | {"crosscoder": tmp_path / "dead"}, tmp_path)


# Correlations


def test_coefficients_are_scipys():
    rng = np.random.default_rng(0)
    x, y, z = rng.integers(0, 6, (3, 200)).astype(float)  # with ties
    y += x
    z += 2 * x - y
    found = correlations.coefficients(x, y, z)
    assert found["pearson"] == pytest.approx(stats.pearsonr(x, y)[0])
    assert found["spearman"] == pytest.approx(stats.spearmanr(x, y)[0])

    def left(a, b):
        return a - np.polyval(np.polyfit(b, a, 1), b)

    assert found["pearson_partial"] == pytest.approx(stats.pearsonr(left(x, z), left(y, z))[0])
    ranks = [stats.rankdata(v) for v in (x, y, z)]
    given = stats.pearsonr(left(ranks[0], ranks[2]), left(ranks[1], ranks[2]))[0]
    assert found["spearman_partial"] == pytest.approx(given)


def test_intervals_and_p_are_scipys():
    rng = np.random.default_rng(1)
    x = rng.standard_normal(80)
    y = 0.35 * x + rng.standard_normal(80)
    found = correlations.correlate(y, x, rng.standard_normal(80), 2000, 9999, 0)
    found = found.set_index("coefficient")
    wanted = stats.bootstrap(
        (x, y), lambda a, b, axis: correlations.pearson(a, b), paired=True, vectorized=True,
        n_resamples=4000, method="percentile", random_state=0,
    ).confidence_interval  # fmt: skip
    row = found.loc["pearson"]
    assert row["value"] == pytest.approx(stats.pearsonr(x, y)[0])
    assert [row["low"], row["high"]] == pytest.approx([wanted.low, wanted.high], abs=0.025)
    assert row["p"] == pytest.approx(stats.pearsonr(x, y)[1], rel=0.35, abs=1e-3)
    assert found.loc["spearman", "p"] == pytest.approx(stats.spearmanr(x, y)[1], rel=0.35, abs=1e-3)


def test_density_explains_what_it_makes():
    rng = np.random.default_rng(2)
    z = rng.standard_normal(400)
    x, y = z + rng.standard_normal((2, 400))
    found = correlations.correlate(y, x, z, 200, 999, 0).set_index("coefficient")
    assert found.loc["pearson", "p"] == 0.001
    assert found.loc["pearson", "low"] > 0.3
    for name in ("pearson_partial", "spearman_partial"):
        assert found.loc[name, "low"] < 0 < found.loc[name, "high"]
        assert found.loc[name, "p"] > 0.05


def test_p_of_unrelated_scores_is_uniform():
    rng = np.random.default_rng(3)
    p = [
        correlations.permutation_p(*rng.standard_normal((3, 30)), 199, rng)["spearman_partial"]
        for _ in range(200)
    ]
    assert stats.kstest(p, "uniform").pvalue > 0.01


def tables(folder: Path, grades: bool) -> dict[str, Path]:
    """40 living features, of 42; span rises with the peak among those that emerge."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    n = 42
    peak = np.sort(rng.integers(1, 5, n))
    initial = np.arange(n) % 3 == 0
    table = pd.DataFrame({"feature": np.arange(n), "alive": np.arange(n) < 40})
    table["density"] = rng.random(n) / 10
    table["peak_snapshot_index"], table["peak_step"] = peak, np.array(STEPS)[peak - 1]
    table["onset_step"] = np.where(initial, 0, peak * 1.5 - 1 + rng.random(n))
    table["initialisation"], table["emergent"] = initial, ~initial & table["alive"]
    table["matched_cosine"] = np.where(np.arange(n) % 2, 0.9, 0.1)
    table["matched"] = table["matched_cosine"] > 0.5
    table.to_parquet(folder / "features.parquet")
    rows = {"feature": np.arange(n).repeat(len(STEPS)), "snapshot_index": np.tile([1, 2, 3, 4], n)}
    pd.DataFrame(rows | {"step": np.tile(STEPS, n)}).to_parquet(folder / "strengths.parquet")
    spans = [
        pd.DataFrame({"feature": np.arange(n), "run": run})
        .assign(span=np.where(initial, first, 2.0 ** (peak + rng.random(n))))
        for run, first in (("alone", 30.0), ("replaced", 1.5))
    ]  # fmt: skip
    pd.concat(spans).to_parquet(folder / "span.parquet")
    places = {name: folder / f"{name}.parquet" for name in ("features", "strengths", "span")}
    if grades:
        graded = pd.DataFrame({"feature": np.arange(30), "grade": np.clip(peak[:30], 1, 5)})
        graded = graded.astype({"grade": "Int64"})
        graded.loc[4, "grade"] = None
        graded.to_parquet(folder / "grades.parquet")
        places["grades"] = folder / "grades.parquet"
    places["correlations"] = folder / "correlations.csv"
    span_, grades_ = places["span"], places.get("grades")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(correlations, "PERMUTATIONS", 199)
        s = experiment(**{"analysis.bootstrap": 100})
        correlations.measure(s, places["features"], span_, grades_, places["correlations"])
    return places


def test_the_table_of_correlations(tmp_path):
    places = tables(tmp_path, grades=True)
    found = pd.read_csv(places["correlations"])
    key = ["score", "against", "class", "which", "coefficient"]
    assert not found.duplicated(key).any()
    found = found.set_index(key).sort_index()
    living = pd.read_parquet(places["features"]).iloc[:40]
    spans = pd.read_parquet(places["span"]).pivot(index="feature", columns="run", values="span")
    emergent = living[living["emergent"] & living["matched"]]
    row = found.loc[("span_replaced", "onset", "emergent", "matched", "pearson")]
    logs = np.log(spans.loc[emergent["feature"], "replaced"]), np.log1p(emergent["onset_step"])
    assert row["value"] == pytest.approx(stats.pearsonr(*logs)[0])
    assert row["features"] == len(emergent)
    assert row["p"] == pytest.approx(1 / 200)
    assert (
        found.loc[("span_alone", "peak_snapshot_index", "all", "all", "spearman"), "features"] == 40
    )
    onset = found[found.index.get_level_values("against") == "onset"]
    assert set(onset.index.get_level_values("class")) == {"all", "emergent"}
    graded = found.loc[("grade", "peak_snapshot_index", "all", "all", "pearson")]
    assert graded["features"] == 29
    assert graded["value"] == pytest.approx(1)
    assert ("grade", "span_replaced") in found.index.droplevel([2, 3, 4])


def test_a_span_table_of_other_features_is_refused(tmp_path):
    places = tables(tmp_path, grades=False)
    table = pd.read_parquet(places["features"])
    table.assign(alive=False).to_parquet(places["features"])
    with pytest.raises(
        InputError, match=r"span\.parquet: has no feature that is alive in .*; delete it"
    ):
        correlations.measure(
            experiment(), places["features"], places["span"], None, tmp_path / "x.csv"
        )


# The figure


def draw(places: dict[str, Path], output: Path) -> pd.DataFrame:
    names = ("features", "strengths", "span", "correlations", "grades")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "PNG_DPI", 40)
        figure.draw(*(places.get(name) for name in names), output)  # type: ignore[arg-type]
    assert output.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    return pd.read_csv(output.with_suffix(".csv"))


@pytest.mark.parametrize("grades", [True, False])
def test_the_figures_numbers(grades, tmp_path):
    places = tables(tmp_path, grades)
    drawn = draw(places, tmp_path / "complexity")
    points = drawn[(drawn["panel"] == "feature") & (drawn["against"] == "peak_snapshot_index")]
    counts = points["score"].value_counts().to_dict()
    assert counts == {"span_alone": 40, "span_replaced": 40} | ({"grade": 29} if grades else {})
    onset = drawn[(drawn["panel"] == "feature") & (drawn["against"] == "onset")]
    assert set(onset["class"]) == {"emergent"}
    table = pd.read_csv(places["correlations"])
    shown = drawn[drawn["panel"] == "correlation"]
    wanted = table[table["against"].isin(["peak_snapshot_index", "onset"])]
    assert sorted(shown["value"]) == pytest.approx(sorted(wanted["value"]))
    if not grades:
        draw(places, tmp_path / "again")
        for ending in ("pdf", "png", "csv"):
            first, again = (tmp_path / f"{name}.{ending}" for name in ("complexity", "again"))
            assert first.read_bytes() == again.read_bytes()


def test_a_figure_without_matched_or_emergent_features(tmp_path):
    places = tables(tmp_path, grades=False)
    table = pd.read_parquet(places["features"])
    table["matched"], table["matched_cosine"] = False, np.nan
    table["initialisation"], table["emergent"] = True, False
    table.to_parquet(places["features"])
    s = experiment(**{"analysis.bootstrap": 10})
    correlations.measure(s, places["features"], places["span"], None, places["correlations"])
    drawn = draw(places, tmp_path / "complexity")
    assert set(drawn["panel"]) == {"feature", "bin", "initialisation", "correlation"}


@pytest.mark.parametrize(
    ("name", "column"), [("span", "run"), ("correlations", "which"), ("features", "onset_step")]
)
def test_a_missing_column_of_the_figures_tables(name, column, tmp_path):
    places = tables(tmp_path, grades=False)
    path = places[name]
    if path.suffix == ".csv":
        pd.read_csv(path).drop(columns=column).to_csv(path, index=False)
    else:
        pd.read_parquet(path).drop(columns=column).to_parquet(path)
    with pytest.raises(InputError, match=rf"{path.name}: no column {column};"):
        draw(places, tmp_path / "x")


# The grader

KEY = "sk-not-for-anyone"
RIGHT = '{"pattern": "the token w3", "complexity": 2}'


class GraderServer:
    """A chat-completions address on loopback that gives the answers it is told, in order.

    script : of each request a status and a body's content, or one for all that follow.
    """

    def __init__(self, *script: tuple[int, Any], slow: float = 0) -> None:
        self.script, self.slow = list(script), slow
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        lock, me = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    me.requests.append(body | {"path": self.path})
                    me.headers.append(dict(self.headers))
                    place = min(len(me.requests), len(me.script)) - 1
                    status, content = me.script[place]
                time.sleep(me.slow)
                if status == 200 and isinstance(content, str):
                    content = {"choices": [{"message": {"role": "assistant", "content": content}}]}
                data = json.dumps(content).encode()
                self.send_response(status)
                if status == 429:
                    self.send_header("Retry-After", "0")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                try:
                    self.wfile.write(data)
                except BrokenPipeError:
                    pass

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/"

    def __enter__(self) -> GraderServer:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(grader, "FIRST_PAUSE", 0.01)
    monkeypatch.delenv("GRADER_KEY", raising=False)


def of(server: GraderServer, **more: Any) -> Grader:
    return Grader(url=server.url, model="judge", **more)


def questions(count: int) -> list[grader.Messages]:
    return [
        [{"role": "system", "content": "grade"}, {"role": "user", "content": f"passage {i}"}]
        for i in range(count)
    ]


def test_a_right_answer(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADER_KEY", KEY)
    with GraderServer((200, RIGHT)) as server:
        g = of(server, key_variable="GRADER_KEY", parallel=2)
        found = grader.ask_all(g, questions(5), tmp_path)
        assert found == [{"grade": 2, "pattern": "the token w3", "answers": 1}] * 5
        assert {r["path"] for r in server.requests} == {"/v1/chat/completions"}
        assert all(r["model"] == "judge" and r["temperature"] == 0 for r in server.requests)
        asked = sorted(r["messages"][1]["content"] for r in server.requests)
        assert asked == [f"passage {i}" for i in range(5)]
        assert all(h["Authorization"] == f"Bearer {KEY}" for h in server.headers)
        # what is answered is not paid for again; another model is another question
        assert grader.ask_all(g, questions(5), tmp_path) == found
        assert len(server.requests) == 5
        grader.ask_all(g.model_copy(update={"model": "other"}), questions(1), tmp_path)
        assert len(server.requests) == 6
    assert KEY not in "".join(path.read_text() for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    "answer",
    [
        "I would say 3.",
        '{"complexity": 3}',
        '{"pattern": "x", "complexity": 6}',
        '{"pattern": "x", "complexity": 0}',
        '{"pattern": "x", "complexity": "3"}',
        '{"pattern": "x", "complexity": 3.0}',
        '{"pattern": "x", "complexity": true}',
        '{"pattern": 7, "complexity": 3}',
        '{"pattern": "x", "complexity": 3, "sure": true}',
        '[{"pattern": "x", "complexity": 3}]',
        f"```json\n{RIGHT}\n```",
        "",
    ],
)
def test_malformed_answers_are_none(answer):
    assert grader.parse(answer) is None


def test_a_malformed_answer_is_sent_back_and_then_counts_as_missing(tmp_path):
    with GraderServer((200, "three"), (200, RIGHT), (200, "three")) as server:
        (found,) = grader.ask_all(of(server), questions(1), tmp_path / "a")
        assert (found["grade"], found["answers"]) == (2, 2)
        again = server.requests[1]["messages"]
        assert [m["role"] for m in again] == ["system", "user", "assistant", "user"]
        assert again[2]["content"] == "three"
        assert again[3]["content"] == grader.AGAIN
        (found,) = grader.ask_all(of(server), questions(1), tmp_path / "b")
        assert (found["grade"], found["answers"]) == (None, grader.ANSWERS)
        asked = len(server.requests)
        assert asked == 2 + grader.ANSWERS
        grader.ask_all(of(server), questions(1), tmp_path / "b")  # nor is that paid for again
        assert len(server.requests) == asked


def test_a_busy_server_is_asked_again(tmp_path):
    busy = (429, {"error": "slow down"})
    with GraderServer(busy, (503, {}), (200, {"no": "choices"}), busy, (200, RIGHT)) as server:
        (found,) = grader.ask_all(of(server), questions(1), tmp_path)
        assert found["grade"] == 2
        assert len(server.requests) == 5


def test_a_broken_server_ends_it_and_keeps_what_is_graded(tmp_path):
    with GraderServer((200, RIGHT), (200, RIGHT), (500, {"error": "out of order"})) as server:
        g = of(server, parallel=1)
        with pytest.raises(InputError, match=r"answers 500 .*out of order.* 6 times; run again"):
            grader.ask_all(g, questions(5), tmp_path)
        assert len(list(tmp_path.iterdir())) == 2
        assert len(server.requests) == 2 + grader.TRIES  # the others were not begun
        server.script = [(200, RIGHT)]
        before = len(server.requests)
        assert all(r["grade"] == 2 for r in grader.ask_all(g, questions(5), tmp_path))
        assert len(server.requests) == before + 3
    with pytest.raises(InputError, match=r"cannot be reached \(ConnectError\), 6 times"):
        grader.ask_all(g, questions(6), tmp_path)


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_refusal_is_final_and_does_not_tell_the_key(status, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("GRADER_KEY", KEY)
    with GraderServer((status, {"error": f"key {KEY} is not known"})) as server:
        g = of(server, key_variable="GRADER_KEY", parallel=1)
        with pytest.raises(InputError, match=rf"answers {status} .*grader\.key_variable") as error:
            grader.ask_all(g, questions(2), tmp_path)
        assert len(server.requests) == 1
    assert KEY not in str(error.value)
    assert KEY not in "".join(capfd.readouterr())


def test_a_key_that_is_not_there(tmp_path):
    g = Grader(url="http://localhost/v1", model="judge", key_variable="GRADER_KEY")
    with pytest.raises(
        InputError, match=r"complexity\.grader\.key_variable: GRADER_KEY is not set in"
    ):
        grader.ask_all(g, questions(1), tmp_path)


@pytest.mark.parametrize("url", ["ftp://x/v1", "https://user:secret@x/v1", "api.x.com"])
def test_an_address_that_is_none_or_holds_a_secret(url):
    changes = {"complexity.grader": {"url": url, "model": "judge"}}
    with pytest.raises(settings.SettingsError, match=r"complexity\.grader\.url"):
        experiment(**changes)


def test_examples_are_the_strongest_and_even_ranks():
    f = np.random.default_rng(0).permutation(100) + 1.0
    shown = f[grader.examples(f, 10)].tolist()
    assert shown == [100, 99, 98, 97, 96, 95, 72, 48, 24, 1]
    assert f[grader.examples(f[:4], 10)].tolist() == sorted(f[:4], reverse=True)
    assert len(set(grader.examples(f[:11], 10))) == 10


def test_a_passage_marks_its_token_on_one_line():
    words = ["a", "b", "\n", "c", "\r\n", "d"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="a"))
    text = grader.passage(tokenizer, np.array([0, 2, 1, 3, 4, 5]), 3)
    assert text.replace(" ", "") == "a⏎b<<c>>⏎d"
    assert grader.passage(tokenizer, np.array([5, 0]), 0).replace(" ", "") == "<<d>>a"
    long = grader.passage(tokenizer, np.arange(400) % 2, 200)
    assert len(long.split("<<")[0].split()) == grader.BEFORE
    assert len(long.split(">>")[1].split()) == grader.AFTER


@pytest.fixture
def span_table(made, tmp_path) -> Path:
    measure(experiment(**{"complexity": {"contexts": 1, "longest": 1}}), made, tmp_path)
    return tmp_path / "span.parquet"


def grade(s: settings.Settings, made: dict[str, Path], table: Path, folder: Path) -> pd.DataFrame:
    where = (made[name] for name in ("crosscoder", "activations", "tokens", "tokenizer"))
    grader.grade(s, *where, table, folder / "answers", folder / "grades.parquet")
    return pd.read_parquet(folder / "grades.parquet")


def test_features_are_graded_from_their_own_contexts(made, span_table, tmp_path):
    with GraderServer((200, RIGHT)) as server:
        asked = {"url": server.url, "model": "judge", "features": 99, "examples": 6}
        s = experiment(complexity={"grader": asked})
        every = grade(s, made, span_table, tmp_path / "every")
        assert every["feature"].tolist() == sorted(set(pd.read_parquet(span_table)["feature"]))
        server.requests.clear()
        s = experiment(complexity={"grader": asked | {"features": 3}})
        found = grade(s, made, span_table, tmp_path)
        sent = [r["messages"] for r in server.requests]
    assert found["grade"].tolist() == [2, 2, 2]
    assert set(found["feature"]) < set(pd.read_parquet(span_table)["feature"])
    prompt = grader.PROMPT.read_text()
    assert '"complexity"' in prompt
    assert all(m[0] == {"role": "system", "content": prompt} for m in sent)
    f, position = span.held_out(Crosscoder.load(made["crosscoder"]), made["activations"])
    tokens = span.Tokens(made["tokens"]).split("held_out")
    tops = set()
    for feature in found["feature"]:
        values = f.toarray()[:, feature]
        block, offset = position[values.argmax()]
        tops.add(f"100%: .*<<w{tokens[block, offset]}>>")
    for top in tops:
        assert any(re.match(top, m[1]["content"]) for m in sent), top
    assert all(len(m[1]["content"].splitlines()) <= 6 for m in sent)


def test_a_model_that_never_answers_well_is_told_so(made, span_table, tmp_path):
    with GraderServer((200, "no")) as server:
        asked = {"url": server.url, "model": "judge", "features": 2}
        s = experiment(complexity={"grader": asked})
        with pytest.raises(
            InputError, match=r"complexity\.grader\.model: judge answered none of 2 questions"
        ):
            grade(s, made, span_table, tmp_path)
    with pytest.raises(InputError, match=r"complexity\.grader: not set"):
        grade(experiment(), made, span_table, tmp_path)


def test_a_killed_grading_goes_on_and_pays_for_nothing_twice(made, span_table, tmp_path):
    """kill −9 in the middle of the command; what was asked before is not asked again but for the
    request under way."""
    with GraderServer((200, RIGHT), slow=0.15) as server:
        g = {"url": server.url, "model": "judge", "features": 8, "parallel": 1}
        g["key_variable"] = "GRADER_KEY"
        results = Experiment(tmp_path / "results" / "tiny", experiment())
        changes = {"snapshots.steps": STEPS, "complexity.grader": g, "analyses": ["complexity"]}
        results.folder.mkdir(parents=True)
        results.path("config").write_text(json.dumps(tiny(changes)))
        products = {"crosscoder": "trained", "span": "span"}
        for name, path in (made | {"span": span_table}).items():
            place = results.path(products.get(name, name))
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path)
        grades = results.path("grades")
        words = [sys.executable, "-c", "from ontogeny.cli import main; main()", "grade"]
        words += [str(results.folder)]
        environment = os.environ | {"GRADER_KEY": KEY}
        first = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
        while len(server.requests) < 4:
            assert first.poll() is None, first.stderr.read()
            time.sleep(0.01)
        first.send_signal(signal.SIGKILL)
        said = first.communicate()[1]
        assert not grades.exists()
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        asked = [json.dumps(r["messages"]) for r in server.requests]
        assert 5 <= len(asked) <= len(set(asked)) + 1
    assert pd.read_parquet(grades)["grade"].tolist() == [2] * 8
    assert KEY not in said + done.stdout + done.stderr
