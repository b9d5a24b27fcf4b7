"""The experiment with other models: one DAG, the comparison's numbers, the figure."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import RESULTS, tiny
from scipy import sparse, stats

from ontogeny import controls, registry, replicates, running, settings
from ontogeny.experiment import Experiment
from ontogeny.features.matching import assign
from ontogeny.snapshots.pretrain import batch

SEED, WARMUP = "snapshots.pretrain.seed", "snapshots.pretrain.warmup_steps"
OTHERS = {"seed1": {SEED: 1}, "late": {WARMUP: 30}}


def test_a_replicate_is_the_experiment_with_another_model():
    beside = {"inputs": {"layers": [0]}, "features": 8, "steps": 5, "k": 2, "aux_features": 0}
    s = settings.load(tiny({"replicates": OTHERS, "crosscoders.beside": beside}))
    late = s.replicate("late")
    assert late.name == "tiny.late"
    assert (late.snapshots.pretrain.warmup_steps, late.snapshots.pretrain.seed) == (30, 0)
    assert late.snapshots.pretrain.threads == 1
    assert list(late.crosscoders) == ["batchtopk", "beside"]
    assert late.replicates == {}
    assert (late.corpus, late.activations, late.analysis) == (s.corpus, s.activations, s.analysis)
    # What the workflow hands to itself is a valid configuration, and the same one.
    assert settings.load(late.model_dump(mode="json", exclude_unset=True)) == late


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"Late": {SEED: 1}},
            "replicates.Late: this name becomes a folder and part of rules' names; use only "
            "lower-case",
        ),
        ({"a": {"seed": 1}}, "replicates.a.seed: no such key; correct it"),
        ({"a": {"name.seed": 1}}, "replicates.a.name.seed: no such key; correct it"),
        ({"a": {"snapshots.pretrain.sed": 1}}, "replicates.a.snapshots.pretrain.sed: no such key"),
        ({"a": {SEED: "x"}}, "replicates.a.snapshots.pretrain.seed: not a valid value; correct it"),
        ({"a": {SEED: 0}}, "replicates.a: the same as the experiment itself; give it"),
        ({"a": {SEED: 2}, "b": {SEED: 2}}, "replicates.b: the same as replicates.a"),
        (
            {"a": {"snapshots.pretrain.steps": 10}},
            "replicates.a: snapshots.steps: step 20 is beyond",
        ),
        ({"a": {"crosscoders.PRIMARY.k": 99}}, "replicates.a: crosscoders.batchtopk.k: 99"),
        (
            {"a": {"corpus.seed": 3}},
            "replicates.a: changes corpus, but replicates must read the same text",
        ),
        ({"a": {"activations.seed": 3}, "b": {"activations.seed": 3}}, "replicates.b: the same as"),
    ],
)
def test_impossible_replicates_are_told_by_name(given, message):
    with pytest.raises(settings.SettingsError) as error:
        settings.load(tiny({"replicates": given}))
    assert message in str(error.value)


def test_a_list_of_seeds_is_a_replicate_for_each():
    s = settings.load(tiny({"replicates": {"wide": {SEED: [0, 3], "crosscoders.PRIMARY.k": 8}}}))
    assert list(s.replicates) == ["wideseed0", "wideseed3"]
    three = s.replicate("wideseed3")
    assert (three.snapshots.pretrain.seed, three.crosscoders["batchtopk"].k) == (3, 8)
    assert settings.load(s.model_dump(mode="json", exclude_unset=True)) == s


def test_batches_can_have_a_seed_of_their_own():
    blocks = np.arange(64 * 8).reshape(64, 8)
    model = {"seed": 1, "batch_blocks": 4, "doubled_blocks": 0.0}
    one, other, same = (
        batch(3, blocks, settings.Pretrain(**model, data_seed=seed)) for seed in (None, 2, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_condition_is_held_against_models_of_the_same_seed():
    changed = {"slow": {WARMUP: 30, SEED: [0, 1]}, "seed": {SEED: [1, 2]}}
    s = settings.load(tiny({"replicates": changed}))
    of = controls.conditions(s)
    assert of == {
        "itself": ("baseline", 0), "slowseed0": ("slow", 0), "slowseed1": ("slow", 1),
        "seedseed1": ("baseline", 1), "seedseed2": ("baseline", 2),
    }  # fmt: skip
    odd = {"baseline": {WARMUP: 30, SEED: [0, 1]}}  # called like what it differs from
    named = controls.conditions(settings.load(tiny({"replicates": odd})))
    assert named["baselineseed0"] == ("baselineseed0", 0)
    assert named["baselineseed1"] == ("baselineseed0", 1)
    assert named["itself"] == ("baseline", 0)
    steps = {
        "itself": 100.0,
        "seedseed1": 200,
        "seedseed2": None,
        "slowseed0": 130,
        "slowseed1": 240,
    }
    found = controls.table(pd.DataFrame(steps, index=["turning_point_step"]), of)
    found = found.set_index("condition")
    assert list(found["models"]) == [2, 2]
    slow = found.loc["slow"]
    assert (slow["mean"], slow["pairs"], slow["difference"]) == (185, 2, 35)
    half = stats.t.ppf(0.975, 1) * np.std([30, 40], ddof=1) / np.sqrt(2)
    assert slow["difference_high"] == pytest.approx(35 + half)
    assert np.isnan(found.loc["baseline", "difference"])


def test_a_fault_of_the_experiment_is_told_once():
    given = tiny({"replicates": {"a": {SEED: 1}, "b": {SEED: 2}}, "analyses": ["nothing"]})
    given["crosscoders"]["batchtopk"]["k"] = 99
    with pytest.raises(settings.SettingsError) as error:
        settings.load(given)
    lines = str(error.value).splitlines()
    assert len(lines) == 2, lines
    assert not any(line.startswith("replicates") for line in lines)


def test_any_key_may_differ():
    given = {"other": {"activations.seed": 3}, "wide": {"basis.seed": 4}}
    s = settings.load(tiny({"replicates": given}))
    assert (s.replicate("other").activations.seed, s.replicate("wide").basis.seed) == (3, 4)


def test_models_that_are_not_trained_here_have_none():
    local = {"steps": [0, 2, 8, 20, 40], "local": {"folders": "runs/{step}"}}
    said = "replicates: possible only for models that are trained"
    with pytest.raises(settings.SettingsError, match=said):
        settings.load(tiny({"replicates": OTHERS}) | {"snapshots": local})


def test_correlations_are_pearsons():
    rng = np.random.default_rng(0)
    f, g = (rng.random((400, n)) * (rng.random((400, n)) < 0.2) for n in (5, 7))
    g[:, 3] = 0
    found = replicates.correlations(sparse.csr_array(f), sparse.csr_array(g))
    for i in range(5):
        for j in range(7):
            wanted = 0 if j == 3 else stats.pearsonr(f[:, i], g[:, j])[0]
            assert found[i, j] == pytest.approx(wanted, abs=1e-12)


def test_features_find_their_partners_whatever_their_order_and_scale():
    rng = np.random.default_rng(1)
    f = rng.random((600, 12)) * (rng.random((600, 12)) < 0.1)
    order = rng.permutation(12)
    g = 3 * f[:, order] + 0.01 * rng.random((600, 12)) * (rng.random((600, 12)) < 0.1)
    partner, value = assign(replicates.correlations(sparse.csr_array(f), sparse.csr_array(g)))
    assert order[partner].tolist() == list(range(12))
    assert value.min() > 0.99


def test_the_interval_is_students():
    found = replicates.interval(np.array([1.0, 2.0, 4.0, np.nan]))
    wanted = stats.t.interval(0.95, 2, 7 / 3, stats.sem([1, 2, 4]))
    assert (found["models"], found["mean"]) == (3, pytest.approx(7 / 3))
    assert (found["low"], found["high"]) == pytest.approx(wanted)
    assert np.isnan(replicates.interval(np.array([5.0]))["low"])


def test_the_learning_rate_adds_up():
    p = settings.Pretrain(steps=100, warmup_steps=10, learning_rate=2.0, final_learning_rate=1.0)
    assert replicates.rate_sum(p, 0, 2.0) == 0
    assert replicates.rate_sum(p, 4, 2.0) == pytest.approx(0.1 + 0.2 + 0.3 + 0.4)
    assert replicates.rate_sum(p, 4.5, 2.0) == pytest.approx(1.0 + 0.25)
    assert replicates.rate_sum(p, 50, 2.0) == pytest.approx(5.5 + 40)
    # Beside an experiment of half the rate each step counts twice.
    assert replicates.rate_sum(p, 50, 1.0) == pytest.approx(2 * (5.5 + 40))


def test_agreement_of_histories():
    rng = np.random.default_rng(2)
    onset = rng.random(40) * 100
    table = pd.DataFrame(
        {
            "correlation": [0.9] * 40 + [0.2] * 10,
            "initialisation": [False] * 30 + [True] * 20,
            "partner_initialisation": [False] * 50,
            "onset_step": [*onset, *[0] * 10],
            "partner_onset_step": [*onset**2, *[0] * 10],
            "peak_snapshot_index": 5,
            "partner_peak_snapshot_index": [5] * 10 + [8] * 40,
        }
    )
    found = replicates.agreement(table, 0.7, 200, 0)
    assert found["matched_share"] == 0.8
    assert found["peaks_within_two"] == 0.25
    assert found["emergent_both"] == 30
    assert found["onset_spearman"] == pytest.approx(1)
    assert found["onset_spearman_low"] == pytest.approx(1)
    few = replicates.agreement(table[:9], 0.7, 200, 0)
    assert np.isnan(few["onset_spearman"])


def test_onsets_by_event_and_their_range_over_seeds(tmp_path):
    """Heads go by what they do; one that differs in more than its seed is in no range."""
    results = {}
    for model, layer, steps in (
        ("itself", 1, [100, 400, None]), ("seed1", 0, [120, 300, None]), ("late", 1, [900, 800, 5]),
    ):  # fmt: skip
        rows = {"event": ["previous_token_head", "features", "copying_gain"]}
        rows |= {"detail": [f"{layer}.1", "induction", "64"], "group": [None, "all", None]}
        table = pd.DataFrame(rows | {"onset_step": steps})
        path = tmp_path / f"{model}.csv"
        table.iloc[:: -1 if model == "seed1" else 1].to_csv(path, index=False)
        results[model] = {"induction": path}
    found = replicates.onsets(results, ["itself", "seed1"])
    assert found["event"].tolist() == ["previous_token_head", "features", "copying_gain"]
    assert found["late"].tolist() == [900, 800, 5]
    assert found["models"].tolist() == [2, 2, 0]
    assert found["earliest"].tolist()[:2] == [100, 300]
    assert found["latest"].tolist()[:2] == [120, 400]
    assert found.loc[2, ["earliest", "latest"]].isna().all()
    results["seed1"] = {"induction": tmp_path / "none.csv"}
    assert replicates.onsets(results, ["itself", "seed1"]).empty


@pytest.mark.slow
def test_replicates_run_beside_the_experiment(experiment):
    # Named like helpers of the Snakefile, or like what its rules begin with, it is a name like any.
    names = {"code": {SEED: 2}, "measure": {SEED: 3}, "config": {SEED: 4}}
    experiment.configure({"replicates": names})
    assert experiment.would_run("replicates")["replicate_code_pretrain"] == 1
    experiment.configure({"replicates": {"seed1": {SEED: 1}}})
    assert set(experiment.would_run()) == {"summary"}  # which records all settings
    jobs = experiment.would_run("replicates")
    assert (
        jobs["replicate_seed1_pretrain"],
        jobs["replicate_seed1_extract"],
        jobs["replicate_seed1_train"],
    ) == (1, 5, 2)
    assert not {"pretrain", "extract", "train", "fetch", "replicate_seed1_fetch"} & set(jobs)
    experiment.snakemake()
    assert not (experiment / "results/tiny.seed1").exists()
    experiment.snakemake("replicates", "controls")
    assert experiment.would_run("replicates") == {}
    own = experiment / RESULTS
    outcomes = pd.read_csv(own / "figures/controls.csv").groupby("outcome").size()
    assert outcomes["turning_point_step"] == 3  # a mean and two models
    assert set(pd.read_csv(own / "figures/replicates.csv")["model"]) == {"itself", "seed1"}

    # One that differs in more than its seed is compared, and left out of the intervals.
    shutil.copytree(own, f"{own}.late")
    compared = Experiment(own, settings.load(tiny({"replicates": OTHERS})))
    running.call(compared, registry.stages()["compare"])
    numbers = pd.read_csv(own / "replicates/numbers.csv", index_col="quantity")
    losses = {}
    for model, folder in (("itself", own), *((n, f"{own}.{n}") for n in OTHERS)):
        losses[model] = pd.read_csv(f"{folder}/phases/phases.csv")["loss"].iloc[-1]
        assert numbers.loc["final_loss", model] == pytest.approx(losses[model])
    assert losses["itself"] == losses["late"] != losses["seed1"]
    seeds = [losses["itself"], losses["seed1"]]
    assert numbers.loc["final_loss", "mean"] == pytest.approx(np.mean(seeds))
    assert numbers.loc["final_loss", "models"] == 2
    assert numbers.loc["across_models_matched_share", "late"] == 1
    matches = pd.read_parquet(own / "replicates/matches.parquet")
    share = (matches[matches["other"] == "seed1"]["correlation"] >= 0.7).mean()
    assert numbers.loc["across_models_matched_share", "seed1"] == pytest.approx(share)
    assert share < 1
    curves = pd.read_csv(own / "replicates/curves.csv")
    assert curves.groupby("model")["only_seed"].first().to_dict() == {
        "itself": True, "seed1": True, "late": False}  # fmt: skip
