"""Circuits: attribution is what ablation says, and curves end where they must."""

from __future__ import annotations

from dataclasses import asdict

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig

from ontogeny import settings
from ontogeny.analyses.circuits import ablation, attribution, downstream, tasks
from ontogeny.analyses.circuits import figure_abilities as abilities
from ontogeny.analyses.circuits import figure_ablations as ablations
from ontogeny.analyses.circuits.settings import Circuits
from ontogeny.crosscoder.model import Crosscoder, Description
from ontogeny.figures import style
from ontogeny.files import InputError
from ontogeny.snapshots import sites

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
    rows = ablation.measure_curves(
        m, splice, rankings, frequency, Circuits(curve_points=4, draws=2)
    )
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
    rows = ablation.measure_curves(metric, splice, rankings, frequency, c)
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
                                  "aux_features": 0, "basis": "full", "gate": "feature"}},
            "primary": "a",
            "analyses": ["circuits"],
            "analysis": {"bootstrap": 50},
            "circuits": {"path_steps": 40, "curve_points": 4, "draws": 2, **circuits},
        }
    )  # fmt: skip


def outputs(folder) -> tuple:
    """Where attribution writes, in the order of its arguments."""
    return folder / "behaviour.csv", folder / "attribution.parquet", folder / "differences.h5"


@pytest.mark.parametrize("gate", ["feature", "snapshot"])
def test_whole_stage(experiment, tmp_path, gate):
    folder, given, crosscoder = experiment
    trained = crosscoder(gate)
    s = small_settings(curve_snapshots=2)
    places = (trained, folder / "snapshots", folder / "tasks.h5")
    tables = outputs(tmp_path)
    attribution.measure(s, *places, *tables)
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
    files = tmp_path / "curves.csv", tmp_path / "circuits.csv"
    ablation.measure(s, *places, *tables, *files)
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
    places = (folder / "snapshots", folder / "tasks.h5", *outputs(tmp_path))
    with pytest.raises(InputError, match="need snapshots of one layer and stream"):
        attribution.measure(s, crosscoder(layers=(0, 1)), *places)
    with pytest.raises(InputError, match=r"tasks\.h5: made from other tokens than"):
        attribution.measure(s, crosscoder(tokens="other"), *places)
    (tmp_path / "tasks.h5").write_bytes(b"x")
    with pytest.raises(InputError, match=r"tasks\.h5: truncated"):
        attribution.measure(s, crosscoder(), places[0], tmp_path / "tasks.h5", *places[2:])
    with pytest.raises(InputError, match=r"differences\.h5: not made yet; run the experiment"):
        attribution.read_differences(tmp_path / "differences.h5", "one")
    (tmp_path / "differences.h5").write_bytes(b"x")
    with pytest.raises(InputError, match=r"differences\.h5: truncated or not a file of"):
        attribution.read_differences(tmp_path / "differences.h5", "one")


def test_chosen_snapshots():
    assert ablation.chosen(32, 4) == [7, 15, 23, 31]
    assert ablation.chosen(5, 4) == [0, 1, 3, 4]
    assert ablation.chosen(3, 9) == [0, 1, 2]
    assert ablation.grid(1, 8) == [1]
    assert ablation.grid(100, 3) == [1, 10, 100]


def test_a_model_that_does_no_task_has_empty_tables_and_figures(experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(style, "PNG_DPI", 40)
    folder, _, crosscoder = experiment
    tasks.write(tmp_path / "tasks.h5", [], "text")
    s, trained = small_settings(), crosscoder()
    places = (trained, folder / "snapshots", tmp_path / "tasks.h5", *outputs(tmp_path))
    attribution.measure(s, *places)
    tables = tmp_path / "curves.csv", tmp_path / "circuits.csv"
    ablation.measure(s, *places, *tables)
    for table in (*tables, tmp_path / "behaviour.csv"):
        assert pd.read_csv(table).empty
    histories = [tmp_path / "features.parquet", tmp_path / "strengths.parquet"]
    about = {"feature": [0], "alive": True, "matched": True, "matched_cosine": 0.9}
    pd.DataFrame(about).to_parquet(histories[0])
    strengths = {"feature": [0], "snapshot_index": 1, "step": 0, "normalised_strength": 1.0}
    pd.DataFrame(strengths).to_parquet(histories[1])
    drawn = [tmp_path / "behaviour.csv", tmp_path / "attribution.parquet"]
    abilities.draw(*histories, *drawn, None, tmp_path / "abilities")
    ablations.draw(histories[0], *drawn, tables[0], tmp_path / "ablations")
    for name in ("abilities", "ablations"):
        assert pd.read_csv(tmp_path / f"{name}.csv").empty
        assert (tmp_path / f"{name}.pdf").stat().st_size > 1000
