"""Circuits: tasks align, attribution is what ablation says, and curves end where they must."""

from __future__ import annotations

import pydoc_data.topics
from dataclasses import asdict

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig

from ontogeny import settings
from ontogeny.circuits import ablation, attribution, downstream, tasks, words
from ontogeny.corpus.build import END_OF_TEXT, train_tokenizer
from ontogeny.crosscoder.model import Crosscoder, Description
from ontogeny.figures import abilities, ablations, style
from ontogeny.files import InputError
from ontogeny.settings import Circuits, TaskName
from ontogeny.snapshots import sites

NAMES = list(TaskName.__args__)
AGREEMENT = NAMES[:4]
CONTEXT = 256


def tokenizer_of(vocabulary: int) -> Tokenizer:
    """Trained on English that Python itself brings, and some of the tasks' own words."""
    text = list(pydoc_data.topics.topics.values())
    some = [w for pair in (*words.VERBS, *words.NOUNS[:20]) for w in pair] + words.NAMES[:20]
    return train_tokenizer([*text, *[" ".join(["", *some])] * 200], vocabulary)


@pytest.fixture(scope="module", params=[1024, 4000])
def tokenizer(request) -> Tokenizer:
    return tokenizer_of(request.param)


def made(tokenizer: Tokenizer, name: str, seed: int = 0, pairs: int = 32) -> tasks.Task:
    end = tokenizer.token_to_id(END_OF_TEXT)
    return tasks.make(name, tokenizer, end, CONTEXT, pairs, seed)[0]


@pytest.mark.parametrize("name", NAMES)
def test_pairs_align(tokenizer, name):
    task = made(tokenizer, name)
    P, T = task.clean.shape
    assert task.corrupted.shape == (P, T)
    assert P == (16 if name == "copying" else 32)
    assert T <= CONTEXT
    assert (task.clean[:, 0] == tokenizer.token_to_id(END_OF_TEXT)).all()
    inside = np.arange(T) < task.length[:, None]
    differs = task.clean != task.corrupted
    assert differs.any(1).all()
    assert not differs[:, 0].any()
    assert not (differs & ~inside).any()
    assert (task.right != task.wrong).all()
    assert not np.isin(task.right, [0]).any()
    rows = {(*clean, right) for clean, right in zip(task.clean.tolist(), task.right, strict=True)}
    assert len(rows) == P
    opened = task.open
    assert (opened.argmax(1) == differs.argmax(1)).all()
    assert (opened.sum(1) == task.length - differs.argmax(1)).all()


@pytest.mark.parametrize("name", AGREEMENT)
def test_agreement_is_of_the_subject(tokenizer, name):
    """Only the subject's tokens differ; the right answer has its number; each as often clean."""
    task = made(tokenizer, name)
    plural = {second for _, second in words.VERBS}
    plurals = {form for _, form in words.NOUNS}
    numbers = []
    for clean, corrupted, length, right, wrong in zip(
        task.clean, task.corrupted, task.length, task.right, task.wrong, strict=True
    ):
        texts = [tokenizer.decode(ids[:length].tolist()).split() for ids in (clean, corrupted)]
        where = [i for i, (a, b) in enumerate(zip(*texts, strict=True)) if a != b]
        assert len(where) == 1
        one, two = (text[where[0]] for text in texts)
        assert (one in plurals) != (two in plurals)
        place = {"agreement_within_rc": len(texts[0]) - 1}
        assert where[0] == place.get(name, 1 if texts[0][0] == "The" else 2)
        answers = [tokenizer.decode([i]) for i in (right, wrong)]
        assert all(answer.startswith(" ") for answer in answers)
        assert (answers[0].strip() in plural) == (one in plurals)
        assert (answers[0].strip(), answers[1].strip()) in [
            v if one not in plurals else v[::-1] for v in words.VERBS
        ]
        whole = tokenizer.decode(clean[1:length].tolist()) + answers[0]
        ids = tokenizer.encode(whole, add_special_tokens=False).ids
        assert ids == [*clean[1:length], right]
        numbers.append(one in plurals)
    assert sum(numbers) == len(numbers) / 2


def test_indirect_object(tokenizer):
    task = made(tokenizer, "indirect_object")
    for clean, corrupted, length, right, wrong in zip(
        task.clean, task.corrupted, task.length, task.right, task.wrong, strict=True
    ):
        assert (clean != corrupted).sum() == 1
        texts = [tokenizer.decode(ids[1:length].tolist()) for ids in (clean, corrupted)]
        names = [tokenizer.decode([i]).strip() for i in (right, wrong)]
        for text, answer, giver in zip(texts, names, names[::-1], strict=True):
            listed = text.split(" and ")[0].split()[-1], text.split(" and ")[1].split()[0]
            assert set(listed) == set(names)
            assert text.split(", ")[1].startswith(f"{giver} gave")
            assert answer != giver


@pytest.mark.parametrize("name", ["induction", "copying"])
def test_copies_tell_the_answer(tokenizer, name):
    """The last token stands once before, and what followed it there is the answer."""
    task = made(tokenizer, name)
    distances = set()
    for clean, corrupted, length, right, wrong in zip(
        task.clean, task.corrupted, task.length, task.right, task.wrong, strict=True
    ):
        for ids, answer in ((clean, right), (corrupted, wrong)):
            last = length - 1
            (before,) = np.flatnonzero(ids[:last] == ids[last])
            assert ids[before + 1] == answer
            if ids is clean:
                distances.add(int(last - before))
        assert (clean != corrupted).sum() == 2
        assert sorted(clean) == sorted(corrupted)
    assert distances == {128} if name == "copying" else len(distances) > 4


def test_tasks_repeat_and_stand_alone(tokenizer):
    for name in NAMES:
        first, again, other = (made(tokenizer, name, seed) for seed in (3, 3, 4))
        for field in ("clean", "corrupted", "length", "right", "wrong"):
            assert np.array_equal(getattr(first, field), getattr(again, field)), name
        assert not np.array_equal(first.clean, other.clean)
    # More pairs begin with the same ones.
    assert np.array_equal(
        made(tokenizer, "induction", 3).clean, made(tokenizer, "induction", 3, 64).clean[:32]
    )


def written(folder, tokenizer: Tokenizer, context: int = CONTEXT):
    """tokens.h5, of which tasks need the attributes, and tokenizer.json."""
    with h5py.File(folder / "tokens.h5", "w") as file:
        file["tokens"] = np.zeros((4, context), np.uint16)
        for name, bounds in (("held_out", (0, 1)), ("train", (1, 3)), ("pretrain", (3, 4))):
            file.attrs[name] = bounds
        file.attrs["end_of_text"] = tokenizer.token_to_id(END_OF_TEXT)
        file.attrs["vocabulary"] = tokenizer.get_vocab_size()
        for name in ("tokenizer", "corpus", "digest"):
            file.attrs[name] = name
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokens.h5", folder / "tokenizer.json"


def test_a_task_that_cannot_be_made_is_left_out_with_its_reason(tmp_path):
    """Letters alone: no verb is one token, and a plural has always one more."""
    there = written(tmp_path, tokenizer_of(257))
    output, table = tmp_path / "tasks.h5", tmp_path / "tasks.csv"
    tasks.build(Circuits(pairs=16), *there, output, table)
    found = pd.read_csv(table).set_index("task")
    assert list(found.index) == NAMES
    assert (found.loc[NAMES[:5], "pairs"] == 0).all()
    assert (
        "nouns have as many tokens in the plural; 4 are needed"
        in found.loc["agreement_simple", "left_out"]
    )
    assert found.loc["indirect_object", "left_out"].startswith("0 of 83 names")
    assert found.loc[["induction", "copying"], "left_out"].isna().all()
    assert [task.name for task in tasks.read(output)] == ["induction", "copying"]
    with pytest.raises(InputError, match=r"circuits\.tasks: none can be made"):
        tasks.build(Circuits(tasks=NAMES[:2], pairs=16), *there, output, table)


def test_short_context_leaves_out_what_does_not_fit(tmp_path):
    there = written(tmp_path, tokenizer_of(1024), context=24)
    tasks.build(Circuits(pairs=16), *there, tmp_path / "tasks.h5", tmp_path / "tasks.csv")
    found = pd.read_csv(tmp_path / "tasks.csv").set_index("task")
    assert "33 tokens are needed of a context of 24" in found.loc["induction", "left_out"]
    assert found.loc["copying", "tokens"] == 1 + 12 + 6


def test_damaged_files(tmp_path):
    tokens, tokenizer = written(tmp_path, tokenizer_of(300))
    tokenizer.write_text("{")
    with pytest.raises(InputError, match=r"tokenizer\.json: not a tokenizer"):
        tasks.build(Circuits(), tokens, tokenizer, tmp_path / "t.h5", tmp_path / "t.csv")
    (tmp_path / "t.h5").write_bytes(b"x")
    with pytest.raises(InputError, match=r"t\.h5: truncated or not a file of tasks"):
        tasks.read(tmp_path / "t.h5")


WIDTH, VOCABULARY, LENGTH = 24, 50, 9


def small_model(kind: str = "neox", seed: int = 0, layers: int = 3):
    """Random weights, large enough that what follows the site is far from linear."""
    torch.manual_seed(seed)
    shape = {"hidden_size": WIDTH, "num_hidden_layers": layers, "num_attention_heads": 3}
    shape |= {"vocab_size": VOCABULARY, "initializer_range": 0.25}
    config = {
        "neox": lambda: GPTNeoXConfig(intermediate_size=48, **shape),
        "llama": lambda: LlamaConfig(intermediate_size=48, **shape),
        "gpt2": lambda: GPT2Config(
            n_embd=WIDTH, n_layer=layers, n_head=3, vocab_size=VOCABULARY, initializer_range=0.25
        ),
    }[kind]()
    return AutoModelForCausalLM.from_config(config).eval()


def small_task(name: str = "t", pairs: int = 12, seed: int = 0) -> tasks.Task:
    """Random tokens; one differs; lengths differ."""
    rng = np.random.default_rng(seed)
    clean = rng.integers(0, VOCABULARY, (pairs, LENGTH))
    corrupted = clean.copy()
    at = rng.integers(1, LENGTH - 3, pairs)
    corrupted[np.arange(pairs), at] = (clean[np.arange(pairs), at] + 1) % VOCABULARY
    right = rng.integers(0, VOCABULARY, pairs)
    length = rng.integers(LENGTH - 2, LENGTH + 1, pairs)
    return tasks.Task(name, clean, corrupted, length, right, (right + 7) % VOCABULARY)


def logit_differences(model, task: tasks.Task, ids: np.ndarray) -> np.ndarray:
    """m by a plain pass over each prompt, without padding."""
    found = []
    for row, length, right, wrong in zip(ids, task.length, task.right, task.wrong, strict=True):
        logits = model(input_ids=torch.from_numpy(row[None, :length])).logits[0, -1]
        found.append((logits[right] - logits[wrong]).item())
    return np.array(found)


@pytest.mark.parametrize("kind", ["neox", "llama", "gpt2"])
@pytest.mark.parametrize("stream", ["residual", "mlp_out"])
def test_downstream_is_the_model(kind, stream):
    model, task = small_model(kind), small_task()
    with torch.no_grad():
        truth = [logit_differences(model, task, ids) for ids in (task.clean, task.corrupted)]
    m = downstream.Downstream(model, 1, stream, task)
    for values, expected in zip(m.behaviour(), truth, strict=True):
        assert values.numpy() == pytest.approx(expected, abs=1e-4)
    assert downstream.measured(m, m.clean).numpy() == pytest.approx(truth[0], abs=1e-4)
    patched = downstream.measured(m, m.corrupted).numpy()
    if stream == "residual":
        assert patched == pytest.approx(truth[1], abs=1e-4)
    else:  # the rest of the model still sees the clean prompt
        assert np.abs(patched - truth[1]).max() > 0.1
    stacked = torch.stack([m.corrupted, m.clean])
    assert downstream.measured(m, stacked).numpy()[0] == pytest.approx(patched, abs=1e-5)


def test_blocks_before_the_site_are_not_run():
    model, task = small_model(), small_task()
    m = downstream.Downstream(model, 1, "residual", task)
    run = []
    handles = [
        block.mlp.register_forward_hook(lambda *_, i=i: run.append(i))
        for i, block in enumerate(sites.blocks(model))
    ]
    downstream.measured(m, m.clean)
    assert set(run) == {2}
    for handle in handles:
        handle.remove()
    assert not any("forward" in block.__dict__ for block in sites.blocks(model))


def test_path_gradient_of_a_cubic():
    """The midpoint rule's error falls with the square of the number of points."""
    torch.manual_seed(0)
    clean, corrupted = torch.randn(5, 4, 3), torch.randn(5, 4, 3)

    def cubic(values, pairs):
        return (values**3).sum((1, 2)) * (1 + pairs)

    truth = cubic(clean, torch.arange(5)) - cubic(corrupted, torch.arange(5))
    errors = []
    for steps in (4, 8):
        G = downstream.path_gradient(cubic, clean, corrupted, steps)
        errors.append((((clean - corrupted) * G).sum((1, 2)) - truth).abs().sum().item())
    assert errors[1] == pytest.approx(errors[0] / 4, rel=0.01)


def planted(pairs: int, features: int, seed: int = 0):
    """Sparse differences (E,), (3, E) of features, and decoders (A, d)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (pairs, LENGTH, features)
    dense = torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.2)
    where = dense.nonzero().T
    W = torch.randn(features, WIDTH, generator=generator) * 0.3
    return dense, dense[tuple(where)], where, W


def test_attribution_is_ablation_where_the_rest_is_linear():
    pairs, A = 6, 15
    dense, value, where, W = planted(pairs, A)
    slope = torch.randn(LENGTH, WIDTH)
    corrupted = torch.randn(pairs, LENGTH, WIDTH)
    error = 0.1 * torch.randn(pairs, LENGTH, WIDTH)
    clean = corrupted + dense @ W + error

    def linear(values, _):
        return (values * slope).sum((1, 2))

    G = downstream.path_gradient(linear, clean, corrupted, 1)
    found = attribution.attributions(value, where, G, W)
    for i in range(A):
        ablated = clean - dense[:, :, i, None] * W[i]
        assert found[:, i] == pytest.approx(linear(clean, 0) - linear(ablated, 0), abs=1e-4)
    everything = found.sum(1) + (error * G).sum((1, 2))
    assert everything == pytest.approx(linear(clean, 0) - linear(corrupted, 0), abs=1e-4)


def features_of(m: downstream.Downstream, task: tasks.Task, features: int = 10):
    """Differences of made-up features that explain a part of clean − corrupted.

    An orthonormal basis of half the dimensions as decoders: what they leave is the error.
    """
    W = torch.linalg.qr(torch.randn(WIDTH, features, generator=torch.Generator().manual_seed(1)))[
        0
    ].T
    dense = ((m.clean - m.corrupted) @ W.T) * torch.from_numpy(task.open)[:, :, None]
    where = dense.nonzero().T
    return dense, dense[tuple(where)], where, W


def test_attribution_is_near_ablation_in_a_model():
    """Of a feature alone, within 8% of the largest effect in a model that is far from linear."""
    model, task = small_model(layers=2), small_task(pairs=32)
    m = downstream.Downstream(model, 0, "residual", task)
    # A short way: beyond it the integrated gradient is another quantity than one ablation.
    m.clean = m.corrupted + 0.1 * (m.clean - m.corrupted)
    dense, value, where, W = features_of(m, task)
    G = downstream.path_gradient(m, m.clean, m.corrupted, 10)
    found = attribution.attributions(value, where, G, W).mean(0)
    whole = downstream.measured(m, m.clean)
    truth = torch.stack(
        [
            (whole - downstream.measured(m, m.clean - dense[:, :, i, None] * W[i])).mean()
            for i in range(len(W))
        ]
    )
    assert (found - truth).abs().max() < 0.08 * truth.abs().max()
    assert torch.equal(found.abs().argmax(), truth.abs().argmax())


def test_completeness_tightens_with_steps():
    model, task = small_model(layers=2), small_task(pairs=32)
    m = downstream.Downstream(model, 0, "residual", task)
    truth = downstream.measured(m, m.clean) - downstream.measured(m, m.corrupted)
    errors = []
    for steps in (2, 10, 50, 250):
        G = downstream.path_gradient(m, m.clean, m.corrupted, steps)
        found = ((m.clean - m.corrupted) * G).sum((1, 2))
        errors.append(((found - truth).abs().mean() / truth.abs().mean()).item())
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 8 * errors[3]
    assert errors[3] < 2e-3


def spliced(pairs: int = 32):
    model, task = small_model(layers=2), small_task(pairs=pairs)
    m = downstream.Downstream(model, 0, "residual", task)
    dense, value, where, W = features_of(m, task)
    half = torch.from_numpy(attribution.halves(pairs))
    return m, dense, W, ablation.Splice(m.clean, m.corrupted, value, where, W, half)


def test_curves_end_at_clean_and_corrupted():
    m, dense, W, splice = spliced()
    A = len(W)
    rankings = np.random.default_rng(0).random((2, A))
    frequency = (dense != 0).sum((0, 1)).numpy() / len(dense)
    rows = ablation.curves(m, splice, rankings, frequency, Circuits(curve_points=4, draws=2))
    clean, corrupted = (downstream.measured(m, v).numpy() for v in (m.clean, m.corrupted))
    assert np.abs(clean - corrupted).mean() > 0.3
    for group in ("absolute", "signed", "random"):
        some = {(r["side"], r["k"], r["error"]): r["m"][0] for r in rows if r["group"] == group}
        assert some["necessity", 0, False] == pytest.approx(clean, abs=1e-5)
        assert some["sufficiency", 0, False] == pytest.approx(corrupted, abs=1e-5)
        assert some["necessity", A, True] == pytest.approx(corrupted, abs=1e-4)
        assert some["sufficiency", A, True] == pytest.approx(clean, abs=1e-4)
        # Without the error node they stop short of it.
        assert np.abs(some["sufficiency", A, False] - clean).max() > 0.1
        assert {k for side, k, _ in some} == {0, *ablation.grid(A, 4)}
    assert {r["k"] for r in rows if r["group"] == "matched"} == {
        k for k in (0, *ablation.grid(A, 4)) if 2 * k <= A
    }


def test_a_splice_is_brute_force():
    """Each half of the pairs has its own set, and only its features change."""
    m, dense, W, splice = spliced()
    inside = torch.zeros(2, len(W), dtype=torch.bool)
    inside[0, [1, 4]] = True
    inside[1, 7] = True
    half = attribution.halves(len(dense))
    necessity, sufficiency = splice.values(inside)
    for pair in range(len(dense)):
        change = torch.zeros(LENGTH, WIDTH)
        for i in [7] if half[pair] else [1, 4]:
            change += dense[pair, :, i, None] * W[i]
        assert torch.allclose(necessity[pair], m.clean[pair] - change, atol=1e-5)
        assert torch.allclose(sufficiency[pair], m.corrupted[pair] + change, atol=1e-5)
    assert sorted(half) == [0] * 16 + [1] * 16
    # Which prompt is clean alternates, and each half holds as many of either.
    assert (np.arange(32)[half == 0] % 2).mean() == 0.5


def test_few_planted_features_are_found_and_suffice():
    pairs, A = 48, 40
    dense, value, where, W = planted(pairs, A)
    W = torch.linalg.qr(torch.randn(WIDTH + A, WIDTH + A))[0][:A]
    carriers = torch.tensor([3, 11, 27])
    slope = 2 * W[carriers].sum(0)
    # The carriers always speak for the right answer.
    dense[:, 0, carriers] = 1
    where = dense.nonzero().T
    value = dense[tuple(where)]
    corrupted = torch.zeros(pairs, LENGTH, W.shape[1])
    clean = corrupted + dense @ W

    def metric(values, _):
        return (values[:, 0] @ slope) - 1.5

    G = downstream.path_gradient(metric, clean, corrupted, 2)
    each = attribution.attributions(value, where, G, W).numpy()
    half = attribution.halves(pairs)
    rankings = np.stack([each[half == 1 - i].mean(0) for i in (0, 1)])
    assert set(attribution.order(rankings[0])[:3]) == {3, 11, 27}
    splice = ablation.Splice(clean, corrupted, value, where, W, torch.from_numpy(half))
    frequency = (dense != 0).sum((0, 1)).numpy() / pairs
    c = Circuits(curve_points=8, draws=4)
    rows = ablation.curves(metric, splice, rankings, frequency, c)
    sampled = attribution.weights(pairs, 200, 0)
    table, summary = ablation.summarise(rows, sampled, True, 0)
    at = table[~table["error"]].set_index(["side", "group", "k"])["restored"]
    ks = sorted(table["k"].unique())
    three = next(k for k in ks if k >= 3)
    assert at["sufficiency", "absolute", three] == pytest.approx(1, abs=1e-4)
    assert at["necessity", "absolute", three] == pytest.approx(0, abs=1e-4)
    assert at["sufficiency", "absolute", 1] == pytest.approx(1 / 3, abs=1e-4)
    assert at["sufficiency", "random", three] < 0.6
    assert at["sufficiency", "matched", three] == pytest.approx(0, abs=1e-4)
    summary = summary.set_index("side")
    for side in ablation.SIDES:
        one = summary.loc[side]
        assert 1 < one["k_enough"] < 3
        assert one["area_random_low"] > 0.1
        assert one["area_matched_low"] > 0.1
    assert summary.loc["sufficiency", "features_alone"] == pytest.approx(1, abs=1e-4)
    _, nothing = ablation.summarise(rows, sampled, False, 0)
    assert nothing.drop(columns="side").isna().all(axis=None)


def test_matched_features_are_others_of_like_frequency():
    rng = np.random.default_rng(0)
    frequency = np.exp(rng.normal(size=400))
    top = rng.choice(400, 40, replace=False)
    found = ablation.matched(top, frequency, rng)
    assert len(set(found)) == len(top)
    assert not set(found) & set(top)
    assert np.log(frequency[found]).mean() == pytest.approx(np.log(frequency[top]).mean(), abs=0.02)
    every = ablation.matched(np.arange(200), frequency, rng)
    assert sorted(every) == list(range(200, 400))


def test_behaviour_of_a_model_that_sees_nothing_is_one_half():
    m = np.random.default_rng(0).normal(size=40)
    sampled = attribution.weights(40, 300, 0)
    blind = attribution.behaviour(m, m, sampled)
    assert blind["accuracy"] == 0.5
    assert [blind["accuracy_low"], blind["accuracy_high"]] == pytest.approx([0.5, 0.5])
    assert not blind["done"]
    assert attribution.behaviour(np.abs(m), -np.abs(m), sampled)["done"]
    reverse = attribution.behaviour(-np.abs(m), np.abs(m), sampled)
    assert reverse["accuracy"] == 0
    assert not reverse["done"]
    ties = attribution.behaviour(np.zeros(40), np.zeros(40), sampled)
    assert ties["accuracy_clean"] == 0.5


def test_crossing_is_interpolated_in_the_log():
    k = np.array([0, 1, 9, 99])
    restored = np.array([[0, 0.4, 0.6, 1.0], [0, 0.1, 0.2, 0.3], [0.9, 1, 1, 1]])
    found = ablation._crossing(k, restored)
    assert found[0] == pytest.approx(np.expm1((np.log(10) + np.log(100)) / 2))
    assert found[1] == np.inf
    assert found[2] == 0


STEPS = [0, 10, 30]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """Three snapshots of a random model, two tasks, a function that gives a crosscoder's folder."""
    folder = tmp_path_factory.mktemp("circuits")
    for i, step in enumerate(STEPS):
        small_model(seed=i, layers=2).save_pretrained(folder / f"snapshots/step{step}")
    given = [small_task("one", 16, 1), small_task("two", 20, 2)]
    with h5py.File(folder / "tasks.h5", "w") as file:
        file.attrs["tokens"] = "text"
        file.attrs["tasks"] = [task.name for task in given]
        for task in given:
            for field, value in asdict(task).items():
                if field != "name":
                    file[f"{task.name}/{field}"] = value

    def crosscoder(gate: str = "feature", layers: tuple[int, ...] = (0,), tokens: str = "text"):
        where = [(step, layer, "residual") for layer in layers for step in STEPS]
        F, size = 64, len(where) * WIDTH
        torch.manual_seed(5)
        about = Description(
            "jumprelu", gate, F, WIDTH, where, where, "full", 0.0, 0,
            {"dead_after_rows": 10}, tokens, "0", "0",
        )  # fmt: skip
        tensors = {
            "W_enc": torch.randn(F, size) / size**0.5, "b_enc": torch.zeros(F),
            "W_dec": torch.randn(F, size) / 8, "b_dec": torch.randn(size),
            "log_threshold": torch.full((F,), -0.5), "mean_in": torch.zeros(size),
            "mean_out": torch.zeros(size), "silent_rows": torch.zeros(F),
            "scales_in": torch.linspace(1, 2, len(where)),
            "scales_out": torch.linspace(1, 2, len(where)),
        }  # fmt: skip
        name = folder / f"crosscoder-{gate}-{len(layers)}-{tokens}"
        Crosscoder(about, tensors).save(name)
        return name

    return folder, given, crosscoder


def small_settings(**circuits) -> settings.Settings:
    return settings.load(
        {
            "name": "x",
            "device": "cpu",
            "snapshots": {"steps": STEPS, "pretrain": {"width": WIDTH, "heads": 3, "steps": 30,
                                                       "warmup_steps": 1}},
            "activations": {"layers": [0, 1]},
            "crosscoders": {"a": {"inputs": {"layers": [0]}, "features": 64, "k": 4, "steps": 1,
                                  "aux_features": 0, "basis": "full"}},
            "primary": "a",
            "analysis": {"bootstrap": 50},
            "circuits": {"path_steps": 40, "curve_points": 4, "draws": 2, **circuits},
        }
    )  # fmt: skip


@pytest.mark.parametrize("gate", ["feature", "snapshot"])
def test_whole_stage(experiment, tmp_path, gate):
    folder, given, crosscoder = experiment
    trained = crosscoder(gate)
    s = small_settings(curve_snapshots=2)
    places = (trained, folder / "snapshots", folder / "tasks.h5")
    attribution.describe(s, *places, tmp_path)
    behaviour = pd.read_csv(tmp_path / "behaviour.csv").set_index(["task", "step"])
    assert list(behaviour.index) == [(t.name, step) for t in given for step in STEPS]
    attributed = pd.read_parquet(tmp_path / "attribution.parquet")
    used = Crosscoder.load(trained)
    models = [sites.load_model(folder / f"snapshots/step{t}", torch.device("cpu"), torch.float32)
              for t in STEPS]  # fmt: skip
    for task in given:
        f = []
        for ids in (task.clean, task.corrupted):
            read = [sites.read(m, torch.from_numpy(ids), [(0, "residual")])[0, "residual"]
                    for m in models]  # fmt: skip
            values = torch.stack(read, 2) * used.scales_in[:, None]
            f.append(used.encode(values.flatten(0, 1)).unflatten(0, task.clean.shape))
        truth = (f[0] - f[1]) * torch.from_numpy(task.open)[(..., *[None] * (f[0].ndim - 2))]
        found = attribution.read_differences(tmp_path / "differences.h5", task.name)
        for site, step in enumerate(STEPS):
            dense = torch.zeros(*task.clean.shape, 64)
            dense[found.pair, found.position, found.features[found.column]] = torch.from_numpy(
                found.of(site)
            )
            expected = truth if gate == "feature" else truth[..., site]
            assert torch.allclose(dense, expected, atol=1e-4)
            assert 0.02 < (dense != 0).float().mean() < 0.5
            row = behaviour.loc[task.name, step]
            m = [logit_differences(models[site].requires_grad_(False), task, ids)
                 for ids in (task.clean, task.corrupted)]  # fmt: skip
            assert row["logit_difference"] == pytest.approx(m[0].mean(), abs=1e-4)
            assert row["difference"] == pytest.approx((m[0] - m[1]).mean(), abs=1e-4)
            assert row["path_error"] < 0.03
            some = attributed[(attributed["task"] == task.name) & (attributed["step"] == step)]
            assert list(some["feature"]) == [*found.features, -1]
            assert some["attribution"].sum() == pytest.approx(row["attributed"], abs=1e-4)
            halves = some[["first_half", "second_half"]].mean(axis=1)
            assert halves.to_numpy() == pytest.approx(some["attribution"].to_numpy(), abs=1e-5)
    ablation.describe(s, *places, tmp_path, tmp_path / "curves.csv", tmp_path / "circuits.csv")
    curves = pd.read_csv(tmp_path / "curves.csv")
    assert sorted(curves["step"].unique()) == [10, 30]
    summary = pd.read_csv(tmp_path / "circuits.csv")
    assert len(summary) == 2 * 2 * 2
    for (name, step), some in curves.groupby(["task", "step"]):
        ends = behaviour.loc[name, step]
        clean, corrupted = ends["logit_difference"], ends["logit_difference_corrupted"]
        at = some.set_index(["side", "group", "k", "error"])["m"]
        most = some["k"].max()
        assert at["necessity", "absolute", 0, False] == pytest.approx(clean, abs=1e-4)
        assert at["necessity", "random", most, True] == pytest.approx(corrupted, abs=1e-4)
        assert at["sufficiency", "absolute", 0, False] == pytest.approx(corrupted, abs=1e-4)
        assert at["sufficiency", "signed", most, True] == pytest.approx(clean, abs=1e-4)
        assert some["restored"].notna().all() == bool(ends["done"])


def test_crosscoders_and_tasks_that_do_not_fit(experiment, tmp_path):
    folder, _, crosscoder = experiment
    s = small_settings()
    places = (folder / "snapshots", folder / "tasks.h5", tmp_path)
    with pytest.raises(InputError, match="need snapshots of one layer and stream"):
        attribution.describe(s, crosscoder(layers=(0, 1)), *places)
    with pytest.raises(InputError, match=r"tasks\.h5: of other tokens than"):
        attribution.describe(s, crosscoder(tokens="other"), *places)
    (tmp_path / "tasks.h5").write_bytes(b"x")
    with pytest.raises(InputError, match=r"tasks\.h5: truncated"):
        attribution.describe(s, crosscoder(), places[0], tmp_path / "tasks.h5", tmp_path)
    with pytest.raises(InputError, match=r"differences\.h5: truncated, or of other tasks"):
        attribution.read_differences(tmp_path / "differences.h5", "one")


def test_chosen_snapshots():
    assert ablation.chosen(32, 4) == [7, 15, 23, 31]
    assert ablation.chosen(5, 4) == [0, 1, 3, 4]
    assert ablation.chosen(3, 9) == [0, 1, 2]
    assert ablation.grid(1, 8) == [1]
    assert ablation.grid(100, 3) == [1, 10, 100]


FIGURE_STEPS = [0, 1, 8, 100]


def figure_tables(folder, matching: bool = True, able: bool = True):
    """Tables of three tasks: one done, one not, one worse than chance; each figure's arguments."""
    folder.mkdir(exist_ok=True)
    n = 30
    cosine = np.where(np.arange(n) % 3 > 0, 0.9, 0.4)
    matched = (cosine >= 0.7) & matching
    table = pd.DataFrame({"feature": np.arange(n), "alive": True, "matched": matched})
    table["matched_cosine"] = cosine if matching else np.nan
    table.to_parquet(folder / "features.parquet")
    count = len(FIGURE_STEPS)
    strengths = pd.DataFrame({"feature": np.repeat(np.arange(n), count)})
    strengths["snapshot_index"] = np.tile(np.arange(1, count + 1), n)
    strengths["step"] = np.tile(FIGURE_STEPS, n)
    strengths["normalised_strength"] = (strengths["feature"] + 1) / n
    strengths.to_parquet(folder / "strengths.parquet")
    behaviour, attributed, curves = [], [], []
    for task, last in (("agreement_simple", 0.9), ("induction", 0.5), ("indirect_object", 0.2)):
        for i, step in enumerate(FIGURE_STEPS):
            accuracy = 0.5 + (last - 0.5) * i / (count - 1)
            row = {"task": task, "snapshot_index": i + 1, "step": step, "accuracy": accuracy}
            row |= {"accuracy_low": accuracy - 0.05, "accuracy_high": accuracy + 0.05}
            row["logit_difference"] = i * (last - 0.5)
            row["logit_difference_low"] = row["logit_difference"] - 0.1
            row["logit_difference_high"] = row["logit_difference"] + 0.1
            row["done"] = able and accuracy - 0.05 > 0.5
            behaviour.append(row)
            for feature in [*range(12), -1]:
                value = (-1) ** feature * (feature + 2) / 10
                attributed.append(
                    {"task": task, "feature": feature, "step": step, "attribution": value,
                     "standard_error": 0.02, "told": 3 <= feature < 11}
                )  # fmt: skip
            for side, sign in (("sufficiency", 1), ("necessity", -1)):
                for group in ("absolute", "signed", "random", "matched"):
                    for k, error in [(0, False), (3, False), (12, False), (12, True)]:
                        share = 0.5 - sign * 0.5 + sign * min(1, k / 10)
                        one = {"task": task, "snapshot_index": i + 1, "step": step, "side": side}
                        one |= {"group": group, "k": k, "error": error}
                        if row["done"]:
                            one |= {"restored": share, "restored_low": share - 0.1}
                            one["restored_high"] = share + 0.1
                        curves.append(one)
    pd.DataFrame(behaviour).to_csv(folder / "behaviour.csv", index=False)
    pd.DataFrame(attributed).to_parquet(folder / "attribution.parquet")
    columns = ["restored", "restored_low", "restored_high"]
    every = pd.DataFrame(curves)
    every.reindex(columns=list(dict.fromkeys([*every.columns, *columns]))).to_csv(
        folder / "curves.csv", index=False
    )
    names = ("features.parquet", "strengths.parquet", "behaviour.csv", "attribution.parquet")
    f, s, b, a = (folder / name for name in names)
    return {abilities: (f, s, b, a), ablations: (f, b, a, folder / "curves.csv")}


def texts_of(figure) -> str:
    return " ".join(t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")))


@pytest.fixture
def rendered(monkeypatch, tmp_path):
    """A function that draws a figure coarsely and returns its words and its table."""
    found = []

    def render(figure, table, _):
        figure.set_layout_engine("none")  # which takes the longest
        figure.savefig(tmp_path / "x.png", dpi=30)
        found.append((texts_of(figure), table))

    monkeypatch.setattr(style, "save", render)

    def draw(figure, arguments):
        figure.draw(*arguments, tmp_path / "x")
        return found[-1]

    return draw


@pytest.mark.parametrize("figure", [abilities, ablations])
def test_figures_write_three_files_the_same_each_time(figure, tmp_path, monkeypatch):
    monkeypatch.setattr(style, "PNG_DPI", 40)
    arguments = figure_tables(tmp_path / "tables")[figure]
    for name in "ab":
        figure.draw(*arguments, tmp_path / name)
    for ending in ("pdf", "png", "csv"):
        first = (tmp_path / f"a.{ending}").read_bytes()
        assert first == (tmp_path / f"b.{ending}").read_bytes()
        assert len(first) > 1000
    assert not list(tmp_path.glob(".*.part"))


def test_abilities_draws_no_features_of_what_is_not_done(tmp_path, rendered):
    words_, table = rendered(abilities, figure_tables(tmp_path / "t")[abilities])
    assert "not told from chance" in words_
    assert "worse than chance" in words_
    strength = table[table["panel"] == "strength"]
    # The largest of those told from 0, and not 11, which is larger.
    assert list(strength["series"].unique()) == ["10", "9", "8", "7", "6"]
    assert set(strength["task"]) == {"agreement_simple"}
    assert strength.loc[strength["series"] == "10", "value"].tolist() == [11 / 30] * 4
    assert strength.drop_duplicates("series")["matched"].tolist() == [
        True,
        False,
        True,
        True,
        False,
    ]
    assert "3 of 5 key features matched" in words_
    bars = table[table["panel"] == "attribution"].set_index("series")
    assert set(bars["task"]) == {"agreement_simple"}
    assert bars.loc["10", "value"] == pytest.approx(1.2)
    assert bars.loc["10", "high"] == pytest.approx(1.2 + 1.96 * 0.02)
    rest = sum((-1) ** i * (i + 2) / 10 for i in [0, 1, 2, 3, 4, 5, 11])
    assert bars.loc["other features", "value"] == pytest.approx(rest)
    assert bars.loc["error", "value"] == pytest.approx(-0.1)
    accuracy = table[(table["series"] == "accuracy") & (table["task"] == "indirect_object")]
    assert accuracy["value"].tolist() == pytest.approx([0.5, 0.4, 0.3, 0.2])
    assert not accuracy["done"].any()


def test_ablations_draws_only_what_is_done(tmp_path, rendered):
    words_, table = rendered(ablations, figure_tables(tmp_path / "t")[ablations])
    assert "Not told from chance at any of these snapshots: induction" in words_
    assert "top 10: 7 matched" in words_
    drawn = table[table["side"].notna()]
    assert set(drawn["task"]) == {"agreement_simple"}
    assert set(drawn["group"]) == {"absolute", "random", "matched"}
    assert drawn["step"].unique().tolist() == [1, 8, 100]
    some = drawn[(drawn["side"] == "sufficiency") & (drawn["group"] == "absolute")]
    assert some.loc[some["step"] == 100, "restored"].tolist() == pytest.approx([0, 0.3, 1, 1])
    rest = table[table["side"].isna()]
    assert len(rest) == 9
    assert not rest["done"].any()


@pytest.mark.parametrize("figure", [abilities, ablations])
def test_figures_of_poor_tables(figure, tmp_path, rendered):
    words_, table = rendered(figure, figure_tables(tmp_path / "t", matching=False)[figure])
    assert "one seed" in words_
    assert (table.get("top_matched", pd.Series([0])).fillna(0) == 0).all()
    words_, table = rendered(figure, figure_tables(tmp_path / "t", able=False)[figure])
    assert not table["done"].any()
    assert {"strength", "attribution"}.isdisjoint(table.get("panel", []))


@pytest.mark.parametrize(
    ("figure", "file", "column"),
    [(abilities, "behaviour.csv", "accuracy_low"), (ablations, "curves.csv", "restored")],
)
def test_figures_name_a_missing_column(figure, file, column, tmp_path):
    arguments = figure_tables(tmp_path)[figure]
    pd.read_csv(tmp_path / file).drop(columns=column).to_csv(tmp_path / file, index=False)
    with pytest.raises(InputError, match=rf"{file}: no column {column};"):
        figure.draw(*arguments, tmp_path / "x")
