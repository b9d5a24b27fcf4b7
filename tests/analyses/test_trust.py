"""Trust: planted relays and silent births are found, and what only looks like them is not."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny
from scipy import sparse
from test_presence import crosscoder

from ontogeny import settings
from ontogeny.analyses.trust import figure, measure, numbers, readability, relays
from ontogeny.features.histories import lives

ROWS, WIDTH, SITES = 4000, 16, 8


def of_norms(norms: list[list[float]], directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Decoders (F, n, d) of given norms and directions (F, d), and the lives that they have."""
    strength = np.array(norms, float)
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    normalised = strength / strength.max(1, keepdims=True)
    return strength[:, :, None] * unit[:, None], lives(normalised, 0.5, 0.35)


@pytest.fixture(scope="module")
def codes() -> sparse.csc_array:
    """Activations of two features that are active alike, and of one that is active elsewhere."""
    rng = np.random.default_rng(0)
    alike = np.where(rng.random(ROWS) < 0.1, 1 + rng.random(ROWS), 0)
    twin = np.where(alike > 0, alike + 0.1 * rng.random(ROWS), 0)
    return sparse.csc_array(np.stack([alike, twin, np.roll(alike, 7), alike], 1))


FALLS, RISES = [1, 1, 1, 0.1, 0, 0, 0, 0], [0, 0, 0.1, 0.4, 1, 1, 1, 1]


def test_a_planted_relay_is_found(codes):
    rng = np.random.default_rng(1)
    one, other = rng.normal(size=(2, WIDTH))
    # feature 1 takes over from 0; 2 is active elsewhere, 3 points elsewhere
    decoders, present = of_norms([FALLS, RISES, RISES, RISES], np.stack([one, one, one, other]))
    found = relays.find_relays(decoders, present, codes, 0.8, 0.5)
    assert found[["falling", "rising", "death", "birth"]].values.tolist() == [[0, 1, 3, 4]]
    assert found["cosine"].item() == pytest.approx(1)
    assert found["overlap"].item() == pytest.approx(
        np.corrcoef(*codes[:, :2].toarray()[codes[:, [0]].toarray()[:, 0] > 0].T)[0, 1]
    )


def test_a_birth_long_after_a_death_is_no_relay(codes):
    one = np.ones(WIDTH)
    late = [0, 0, 0, 0, 0, 0, 1, 1]
    decoders, present = of_norms([FALLS, late], np.stack([one, one]))
    assert relays.find_relays(decoders, present, codes, 0.8, 0.5).empty


def test_the_read_out_is_ridge_regression(codes):
    rng = np.random.default_rng(2)
    f = sparse.csr_array(codes)
    a = rng.normal(size=(2, ROWS, 5)) + 3
    a[1] += 0.3 * codes[:, [0]].toarray()
    half = rng.random(ROWS) < 0.5
    explained = readability.read_out(f, lambda site: a[site].astype(np.float32), 2, half)
    for site in range(2):
        x = a[site] - a[site][half].mean(0)
        gram = x[half].T @ x[half] / half.sum()
        gram += readability.RIDGE * np.trace(gram) / 5 * np.eye(5)
        for i in range(f.shape[1]):
            y = codes[:, [i]].toarray()[:, 0]
            W = np.linalg.solve(gram, x[half].T @ (y[half] - y[half].mean()) / half.sum())
            lost = np.mean((y[~half] - x[~half] @ W - y[half].mean()) ** 2)
            assert explained[i, site] == pytest.approx(1 - lost / y[~half].var(), abs=1e-5)
    assert explained[0, 1] > explained[0, 0] + 0.02


def test_silent_births_and_deaths_are_told_from_real_ones():
    present = np.array([[0, 0, 0, 1, 1, 1, 0, 0]] * 3, bool)
    real = [0.1, 0.1, 0.2, 0.9, 1, 0.9, 0.2, 0.1]
    silent = [0.1, 0.8, 0.9, 0.9, 1, 0.9, 0.9, 0.9]
    unreadable = [0.05] * 8
    table = readability.judge_events(present, np.array([real, silent, unreadable]), 0.1, 0.8)
    table = table.set_index(["feature", "event"])
    assert table["silent"].to_dict() == {
        (0, "birth"): False, (0, "death"): False,
        (1, "birth"): False, (1, "death"): True,  # 0.6 in the mean before its birth
        (2, "birth"): False, (2, "death"): False,
    }  # fmt: skip
    assert list(table["judged"]) == [True, True, False] * 2
    assert table.loc[(0, "birth"), "beyond"] == pytest.approx(0.4 / 3)
    assert table.loc[(0, "death"), ["r2_-1", "r2_+0", "r2_+1"]].tolist() == [0.9, 0.2, 0.1]
    assert np.isnan(table.loc[(0, "death"), "r2_+2"])


def test_a_short_absence_is_judged_by_its_own_snapshots():
    present = np.array([[1, 1, 0, 1, 1]], bool)
    table = readability.judge_events(present, np.array([[1, 1, 0.2, 1, 1]]), 0.1, 0.8)
    assert list(table["event"]) == ["birth", "death"]
    assert list(table["beyond"]) == [0.2, 0.2]


def test_gate_rates_are_counted_site_by_site():
    rng = np.random.default_rng(3)
    W = rng.normal(size=(6, SITES, WIDTH))
    W[0, 2:5] *= 0.01
    trained = crosscoder(W, gate="snapshot", activation="batch_topk", threshold=2.0)
    x = torch.from_numpy(rng.normal(size=(500, SITES, WIDTH)).astype(np.float32))
    f = trained.encode(x)
    counts = (f > 0).sum(0).numpy().astype(float)
    rates = measure.gate_rates(trained, sparse.csr_array(f.amax(2).numpy()))
    assert counts[0, 2:5].sum() < counts[0, :2].sum()
    assert rates == pytest.approx(counts / counts.max(1, keepdims=True))
    assert np.isnan(measure.gate_rates(crosscoder(W), sparse.csr_array(f.amax(2).numpy()))).all()


def test_verdicts_and_doubts():
    table = pd.DataFrame({"feature": range(40), "frequent": True, "matched": False})
    table["relay"] = table["feature"] < 6
    events = pd.DataFrame({"feature": range(40), "event": "birth", "judged": True})
    events["silent"] = events["feature"] < 2
    gates, present = np.full((40, 4), 0.3), np.ones((40, 4), bool)
    gates[0] = 0.1
    verdicts = measure.find_verdicts(table, events, gates, present, 0.25)
    own = verdicts[verdicts["group"] == "frequent"].set_index("measure")
    assert own.loc["relays", ["value", "count"]].tolist() == [6 / 40, 40]
    assert own.loc["relays", "low"] < 0.15 < own.loc["relays", "high"]
    assert own.loc["silent_births", "value"] == 2 / 40
    assert own.loc["silent_deaths", "count"] == 0
    assert own.loc["signs_agree", "value"] == 39 / 40
    assert numbers.doubts(verdicts) == [
        "15% of 40 frequent features are in relays: one concept that several features carry in turn"
    ]


def test_the_figure_states_what_was_found(tmp_path):
    """From tables of a measure whose numbers are known, for two crosscoders."""
    rng = np.random.default_rng(4)
    steps = np.array([0, 1, 4, 16, 64, 256, 512, 1024])
    paths: dict[str, list] = {}
    for name in ("a", "b"):
        explained = rng.random((30, SITES))
        present = lives(rng.random((30, SITES)), 0.5, 0.35)
        events = readability.judge_events(present, explained, 0.1, 0.8)
        table = pd.DataFrame({"feature": range(30), "frequent": True, "matched": False})
        table["relay"] = table["feature"] < (3 if name == "a" else 0)
        gates = np.full((30, SITES), np.nan)
        verdicts = measure.find_verdicts(table, events, gates, present, 0.25)
        found = pd.DataFrame(
            {"falling": [0, 1], "rising": [1, 2], "cosine": 0.9, "overlap": [0.6, 0.8]}
        )
        signs = {"step": steps, "signs_agree": np.nan}
        signs |= {f"strength_{q}": 0.5 for q in ("q25", "median", "q75")}
        strengths = pd.DataFrame({
            "feature": np.repeat(np.arange(30), SITES), "step": np.tile(steps, 30),
            "normalised_strength": rng.random(30 * SITES),
        })  # fmt: skip
        tables = {"events": events, "relays": found if name == "a" else found[:0],
                  "by_snapshot": pd.DataFrame(signs), "verdicts": verdicts}  # fmt: skip
        for key, frame in tables.items():
            paths.setdefault(key, []).append(tmp_path / f"{name}_{key}.csv")
            frame.to_csv(paths[key][-1], index=False)
        paths.setdefault("strengths", []).append(tmp_path / f"{name}_strengths.parquet")
        strengths.to_parquet(paths["strengths"][-1])
    figure.draw(["a", "b"], **paths, output=tmp_path / "trust")
    drawn = pd.read_csv(tmp_path / "trust.csv")
    share = drawn[(drawn["panel"] == "share") & (drawn["x"] == "relays")]
    assert share.set_index(["crosscoder", "group"]).loc[("a", "frequent"), "value"] == 0.1
    relay = drawn[drawn["panel"] == "relay"]
    assert set(relay["group"]) == {"falling", "rising"}
    assert set(relay["crosscoder"]) == {"a"}
    assert not (drawn["panel"] == "signs").any()  # one gate serves all snapshots
    assert re.search(r"10\.0% \[[\d.]+%, [\d.]+%\] are in relays", figure.finding(drawn))


def test_absence_above_presence_is_refused():
    with pytest.raises(settings.SettingsError, match=r"analysis\.absence: 0\.5 exceeds"):
        settings.load(tiny({"analysis.presence": 0.3}))
