"""Histories of features, against planted cases."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny

from ontogeny import registry, settings, summary
from ontogeny.crosscoder.model import Crosscoder, Description
from ontogeny.features import histories, matching

STEPS = np.array([0, 1, 3, 7, 15, 31])


def test_planted_histories_are_read_back():
    strength = np.array(
        [
            [1.0, 1.0, 2.0, 4.0, 4.0, 4.0],  # emerges between steps 1 and 3, stays
            [3.0, 2.0, 1.0, 0.5, 0.1, 0.1],  # there from the start, goes
            [0.0, 0.0, 5.0, 0.0, 0.0, 0.0],  # comes and goes
            [2.0, 2.0, 2.0, 2.0, 2.0, 2.5],  # always there
        ]
    )
    normalised = histories.normalise(strength)
    assert normalised.max(1).tolist() == [1, 1, 1, 1]
    assert histories.peak_snapshot_index(strength, np.arange(1, 7)).tolist() == [4, 1, 3, 6]
    half = 2**0.5 * 2 - 1  # halfway between steps 1 and 3 in log(step + 1)
    onset = histories.onset(normalised, STEPS, 0.5)
    assert onset == pytest.approx([3, 0, half, 0])
    # 0.4 lies 0.6 of the way from 0.25 at step 1 to 0.5 at step 3.
    assert histories.onset(normalised, STEPS, 0.4)[0] == pytest.approx(2 * 2**0.6 - 1)
    present = histories.lives(normalised, 0.5, 0.35)
    assert present.sum(1).tolist() == [4, 2, 1, 6]
    initial, transient = histories.classes(present)
    assert initial.tolist() == [False, True, False, True]
    assert transient.tolist() == [False, True, True, False]
    sweep = histories.class_sweep(normalised, 0.7).set_index("presence")
    assert sweep.loc[0.5, ["initialisation", "emergent", "transient"]].tolist() == [2, 2, 2]
    assert (sweep["initialisation"] + sweep["emergent"] == 4).all()


def test_a_dip_between_the_cuts_is_no_death():
    normalised = np.array(
        [
            [0.4, 0.6, 0.4, 1.0, 0.45, 0.4],  # wavers between the cuts, stays
            [1.0, 0.3, 0.4, 0.4, 0.6, 0.2],  # two lives: 0.4 is no birth
            [0.1, 0.2, 0.3, 1.0, 0.3, 1.0],  # comes, goes, comes again
        ]
    )
    present = histories.lives(normalised, 0.5, 0.35)
    assert present.tolist() == [
        [False, True, True, True, True, True],
        [True, False, False, False, True, False],
        [False, False, False, True, False, True],
    ]
    assert np.argwhere(histories.births(present)).tolist() == [[0, 1], [1, 4], [2, 3], [2, 5]]
    assert np.argwhere(histories.deaths(present)).tolist() == [[1, 1], [1, 5], [2, 4]]


def test_a_feature_settles_when_it_stops_turning():
    rng = np.random.default_rng(0)
    first, second = np.linalg.qr(rng.normal(size=(8, 2)))[0].T
    decoders = np.stack([[first] * 3 + [second] * 3, [first] * 6, [second, *[first] * 5]])
    present = np.ones((3, 6), bool)
    # the third is gone when it turns for the last time: what it then has is no direction of its own
    decoders[2, 4:] = -first
    present[2, 4:] = False
    assert histories.settled_step(decoders, present, STEPS, 0.7).tolist() == [7, 0, 1]
    assert np.isnan(histories.settled_step(decoders, present & False, STEPS, 0.7)).all()


def turning(features: int, at: int, noise: float, seed: int = 0) -> np.ndarray:
    """Decoders (F, n, D) whose directions turn to independent ones before snapshot `at`."""
    rng = np.random.default_rng(seed)
    early, late = rng.normal(size=(2, features, 1, 24))
    second = (np.arange(len(STEPS)) >= at)[None, :, None]
    return np.where(second, late, early) + noise * rng.normal(size=(features, len(STEPS), 24))


def test_two_snapshots_are_compared_by_relative_norm():
    rng = np.random.default_rng(0)
    unit = rng.normal(size=(5, 24))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    # Only in the first, only in the last, in both with one direction and with opposite ones, dead.
    norms = np.array([[2, 0.1], [0, 3], [1, 1.2], [1, 1], [1, 1]])
    decoders = norms[:, :, None] * unit[:, None]
    decoders[3, 1] *= -1
    features = pd.DataFrame(
        {"feature": range(5), "density": 0.1, "matched": True, "alive": [True] * 4 + [False]}
    )
    table = histories.compare(decoders, np.array([0, 7]), features)
    assert list(table["group"]) == ["only_first", "only_last", "shared", "shared"]
    assert list(table["relative_norm"]) == pytest.approx([1 / 21, 1, 1.2 / 2.2, 0.5])
    assert list(table["cosine"])[2:] == pytest.approx([1, -1])
    assert table[["first_step", "last_step"]].drop_duplicates().to_numpy().tolist() == [[0, 7]]


@pytest.mark.parametrize("snapshots", [2, 3])
def test_few_snapshots_have_lives_and_no_turning_point(tmp_path, snapshots):
    steps = [0, 8, 40][:snapshots]
    made = settings.load(tiny({"snapshots.steps": steps, "snapshots.pretrain.steps": 40}))
    sites = [(step, 0, "residual") for step in steps]
    F, d = 12, 6
    tensors = {
        "W_enc": torch.randn(F, snapshots * d), "W_dec": torch.randn(F, snapshots * d),
        "b_enc": torch.zeros(F), "log_threshold": torch.zeros(F),
        "silent_rows": torch.zeros(F, dtype=torch.int64),
        "scales_in": torch.ones(snapshots), "scales_out": torch.ones(snapshots),
        **{name: torch.zeros(snapshots * d) for name in ("b_dec", "mean_in", "mean_out")},
    }  # fmt: skip
    about = Description("batch_topk", "feature", F, d, sites, sites, "full", 0.5, 0, {}, "", "", "")
    Crosscoder(about, tensors).save(tmp_path / "seed0")
    density = pd.DataFrame({"density": np.full(F, 0.1), "dead": np.zeros(F, bool)})
    density.to_parquet(tmp_path / "density.parquet")
    paths = {name: tmp_path / name for name in registry.stages()["features"].makes}
    paths |= {name: tmp_path / f"{name}.parquet" for name in ("features", "strengths")}
    histories.describe(made, [tmp_path / "seed0"], [tmp_path / "density.parquet"], **paths)
    assert json.loads(paths["turning_point"].read_text()) == {}
    assert len(pd.read_parquet(paths["strengths"])) == snapshots * F
    assert len(pd.read_csv(paths["directions"])) == snapshots**2
    assert len(pd.read_csv(paths["comparison"])) == F


@pytest.mark.parametrize("at", [2, 3, 4])
def test_a_planted_turning_point_is_found(at):
    cosines = histories.direction_cosines(turning(200, at, 0.3), 0.1)
    found = histories.turning_point(cosines, STEPS, samples=100, seed=0)
    assert (found["snapshot_before"], found["snapshot_after"]) == (STEPS[at - 1], STEPS[at])
    assert found["step"] == pytest.approx(((STEPS[at - 1] + 1) * (STEPS[at] + 1)) ** 0.5 - 1)
    assert found["low"] == STEPS[at - 1]
    assert found["high"] == STEPS[at]
    assert found["within"] == pytest.approx(1 / (1 + 0.09), abs=0.02)
    assert abs(found["between"]) < 0.05


def test_an_unclear_turning_point_has_a_wide_interval():
    cosines = histories.direction_cosines(turning(12, 3, 8.0), 1e-3)
    found = histories.turning_point(cosines, STEPS, samples=200, seed=0)
    assert found["low"] <= found["step"] <= found["high"]
    assert np.searchsorted(STEPS, found["high"]) - np.searchsorted(STEPS, found["low"]) > 1
    assert found == histories.turning_point(cosines, STEPS, samples=200, seed=0)


def test_directions_of_absent_features_are_not_compared():
    decoders = turning(5, 3, 0.1)
    decoders[0, 1] *= 0.01
    cosines = histories.direction_cosines(decoders, 0.1)
    assert np.isnan(cosines[0, 1]).all()
    assert np.isnan(cosines[0, :, 1]).all()
    assert np.isnan(cosines).sum() == 2 * len(STEPS) - 1
    mean = histories.mean_matrix(cosines)
    assert mean[1, 0] == pytest.approx(cosines[1:, 1, 0].mean())
    doubled = histories.mean_matrix(cosines, np.array([0, 2, 1, 1, 1]))
    expected = (2 * cosines[1, 0, 5] + cosines[2:, 0, 5].sum()) / 5
    assert doubled[0, 5] == pytest.approx(expected)


def test_splits_of_a_bootstrap_are_those_of_every_sample_alone():
    rng = np.random.default_rng(1)
    cosines = rng.uniform(-1, 1, (40, 8, 8))
    cosines[rng.random(cosines.shape) < 0.4] = np.nan
    cosines[:, 0, 1] = np.nan  # of no feature
    weights = rng.multinomial(40, np.full(40, 1 / 40), 30)
    found = histories.best_split(histories.mean_matrix(cosines, weights))
    for times, split in zip(weights, found, strict=True):
        sample = np.repeat(cosines, times, axis=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy's, of the mean of none
            mean = np.nanmean(sample, axis=0)
        contrast = {}
        for first in range(2, 7):
            late = np.arange(8) >= first
            same = late[:, None] == late
            within = np.nanmean(mean[same & ~np.eye(8, dtype=bool)])
            contrast[first] = within - np.nanmean(mean[~same])
        assert split == max(contrast, key=contrast.get)
        assert histories.contrasts(mean) == pytest.approx(contrast)
    assert len(set(found)) > 2


def test_matching_recovers_a_permutation():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(60, 32))
    order = rng.permutation(60)
    second = 3 * (first + 0.3 * rng.normal(size=first.shape))[order]
    partner, cosine = matching.match(first, second)
    np.testing.assert_array_equal(order[partner], np.arange(60))
    assert cosine == pytest.approx(np.full(60, 1 / (1 + 0.09) ** 0.5), abs=0.1)
    partner, cosine = matching.match(first, second[:50])
    assert (partner == -1).sum() == np.isnan(cosine).sum() == 10
    there = partner >= 0
    assert (order[partner[there]] == np.flatnonzero(there)).mean() > 0.9


def test_matching_many_features_keeps_what_all_pairs_match(monkeypatch):
    rng = np.random.default_rng(0)
    first = rng.normal(size=(400, 24)).astype(np.float32)
    noise = rng.normal(size=first.shape) * rng.uniform(0.1, 3, (400, 1))
    second = (first + noise)[rng.permutation(400)].astype(np.float32)[:390]
    exact, cosine = matching.match(first, second)
    monkeypatch.setattr(matching, "ALL_PAIRS", 0)
    monkeypatch.setattr(matching, "MATCHED_AT_A_TIME", 64)
    near, value = matching.match(first.copy(), second.copy())
    used = near[near >= 0]
    assert len(set(used)) == len(used)
    np.testing.assert_array_equal(near < 0, np.isnan(value))
    assert np.nanmin(value) > 0
    sure = cosine >= 0.7
    assert 0.2 < sure.mean() < 0.8
    assert (near == exact)[sure].mean() > 0.98
    assert (value >= 0.7).sum() == pytest.approx(sure.sum(), abs=2)
    there = near >= 0
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (first, second)]
    np.testing.assert_allclose(value[there], (unit[0][there] * unit[1][used]).sum(1), atol=1e-6)
    # Of the nearest one alone, only pairs that are the nearest of each other.
    monkeypatch.setattr(matching, "NEAREST", 1)
    few, _ = matching.match(first.copy(), second.copy())
    all_cosines = unit[0] @ unit[1].T
    rows = np.flatnonzero(few >= 0)
    np.testing.assert_array_equal(few[rows], all_cosines.argmax(1)[rows])
    np.testing.assert_array_equal(all_cosines.argmax(0)[few[rows]], rows)


def test_snapshots_are_numbered_among_all_of_the_experiments():
    assert histories.snapshot_numbers(settings.load(tiny()), [2, 40]).tolist() == [2, 5]


def test_a_snapshot_at_which_all_features_dip_is_named():
    curves = {0: [0.2, 0.9, 0.4, 1.0], 1: [0.3, 1.0, 0.5, 0.8], 2: [0.1, 1.0, 0.3, 0.9]}
    curves[3] = [0.0, 0.0, 0.0, 1.0]  # dead
    table = pd.DataFrame(
        [
            {"feature": feature, "step": step, "normalised_strength": value}
            for feature, curve in curves.items()
            for step, value in zip([0, 1, 8, 20], curve, strict=True)
        ]
    )
    found = summary._medians(table, pd.DataFrame({"feature": [0, 1, 2]}))
    assert found == {
        "least_median_strength": 0.2,
        "least_median_strength_step": 0,
        "median_strength_dip": pytest.approx(0.5),
        "median_strength_dip_step": 8,
    }
