"""The benchmark's cases, its page, and that a path of it learns."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import HANGS

from benchmarks import (
    crosscoder,
    environments,
    like_for_like,
    page,
    planted,
    presence,
    presence_page,
    truth,
)  # fmt: skip

WORKERS = Path(crosscoder.__file__).parent / "workers"


def test_every_size_has_every_path():
    found = {(c.group, c.path) for c in crosscoder.cases()}
    for group in ("first", "big", "wide"):
        for path in ("llamascopium", "sparsify", "dense", "full", "principal", "bound"):
            assert (group, path) in found
    assert {c.n for c in crosscoder.cases() if c.group == "snapshots"} == {4, 16, 32, 64, 128}
    keys = [c.key for c in crosscoder.cases()]
    assert len(set(keys)) == len(keys)


def test_an_environment_is_of_its_list_and_complete(tmp_path):
    found = {peer: environments.folder(peer, tmp_path) for peer in (*crosscoder.PEERS, "saelens")}
    assert len({path.name for path in found.values()}) == 3
    for peer, path in found.items():
        assert environments.python_of(peer, tmp_path) is None
        path.mkdir()
        assert environments.python_of(peer, tmp_path) is None  # being made, or broken off
        (path / ".complete").touch()
        assert environments.python_of(peer, tmp_path) == path / "bin" / "python"


def test_sites_of_the_wide_data_stand_snapshot_by_snapshot():
    experiment, sites = crosscoder.sites_of("wide")
    assert experiment == "benchmark"
    assert len(sites) == 8 * 6
    assert len({s.snapshot for s in sites[:6]}) == 1
    assert len({s.snapshot for s in crosscoder.sites_of("long128")[1]}) == 128


def test_what_is_compared_like_for_like_is_alike():
    """In loss, gate and sizes; and every case has a name of its own."""
    cases = like_for_like.cases()
    assert len({c.key for c in cases}) == len(cases)
    paper = [c for c in cases if c.part == "speed" and c.loss.startswith("JumpReLU")]
    assert {c.gate for c in paper} == {"snapshot"}
    assert all(c.spec["hold"] for c in paper)
    assert {c.worker for c in paper} == {"ours", "llamascopium"}
    assert {c.path for c in paper if not c.compiler} == {
        "hybrid without a compiler", "full without a compiler",
    }  # fmt: skip
    quality = [c for c in cases if c.part == "quality"]
    assert {c.seconds for c in quality} == {like_for_like.MINUTE}


@pytest.mark.parametrize(("path", "worker"), [("dense", "dense"), ("full", "ours")])
def test_a_path_learns_and_reports(path, worker, tmp_path):
    rng = np.random.default_rng(0)
    latent = rng.exponential(size=(3000, 24)) * (rng.random((3000, 24)) < 0.2)
    rows = (latent @ rng.normal(size=(24, 40))).astype(np.float16)
    np.save(tmp_path / "train.npy", rows[:2000])
    np.save(tmp_path / "held_out.npy", rows[2000:])
    spec = {
        "path": path, "data": str(tmp_path / "train.npy"), "features": 64, "batch": 128, "k": 6,
        "held_out": str(tmp_path / "held_out.npy"), "n": 5, "d": 8, "seed": 0, "steps": 160,
        "seconds": 60, "learning_rate": 3e-3, "moments": "float32", "threads": 1, "warm": 2,
        "at_least": 3, "evaluate_at": [20], "output": str(tmp_path / "out.json"), "keep": "",
    }  # fmt: skip
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    command = [sys.executable, WORKERS / f"{worker}.py", tmp_path / "spec.json"]
    subprocess.run(command, check=True, timeout=HANGS)
    found = json.loads((tmp_path / "out.json").read_text())
    assert len(found["step_seconds"]) == 158
    early, late = found["curve"]
    assert early["explained_variance"] < late["explained_variance"]
    assert late["explained_variance"] > 0.5
    assert late["l0"] == pytest.approx(6, rel=0.3)
    assert len(late["by_site"]) == 5


def test_the_page_tells_what_the_rows_hold(tmp_path, monkeypatch):
    def row(path, rate, **more):
        return {
            "group": "first", "path": path, "n": 32, "d": 128, "r": 640, "features": 2048,
            "batch": 512, "k": 32, "seed": 0, "tokens_per_second": rate,
            "tokens_per_second_low": rate * 0.9, "tokens_per_second_high": rate * 1.1,
            "peak_bytes": 3e8, "state_bytes": None, "l0": None, "curve": [],
        } | more  # fmt: skip

    curve = [{"tokens": 512, "seconds": 1.0, "explained_variance": 0.9, "l0": 32.0}]
    scored = {"explained_variance": 0.9, "l0": 32.0, "curve": curve}
    rows = [row("principal", 20_000.0, dead=0.0), row("sparsify", 100.0, **scored)]
    monkeypatch.setattr(page, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(page, "PLOT", tmp_path / "plot.png")
    (tmp_path / "page.md").write_text(f"before\n{page.MARKS[0]}\nold\n{page.MARKS[1]}\nafter\n")
    page.write(rows)
    text = (tmp_path / "page.md").read_text()
    assert text.startswith("before")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "Ontogeny, principal against sparsify, 2,048 features: 200 times." in text
    assert "| sparsify | 32 × 128 | 640 | 2,048 | 512 | 100 (90 to 110) | 300 | 0.9000 |" in text
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_the_page_and_the_readme_tell_one_comparison(tmp_path, monkeypatch):
    def row(path, rate, part="speed", **more):
        return {
            "part": part, "path": path, "loss": "JumpReLU, tanh-quad", "gate": "snapshot", "n": 32,
            "rows_per_second": rate, "quartiles": [rate * 0.9, rate * 1.1], "l0": 31.0,
            "explained_variance": None, "peak_bytes": 3e8,
        } | more  # fmt: skip

    curve = [
        {"seconds": 15.2, "explained_variance": 0.8},
        {"seconds": 60.1, "explained_variance": 0.9},
    ]
    trained = {"explained_variance": 0.9, "explained_variance_least": 0.7, "rows_seen": 1000}
    rows = like_for_like.compared(
        [
            row("llamascopium", 100.0), row(like_for_like.HIGH, 200.0, l0=35.0),
            row("hybrid", 20_000.0), row("full", 7000.0), row("hybrid without a compiler", 2000.0),
            row("hybrid", 16_000.0, "snapshots"), row("hybrid", 4000.0, "snapshots", n=128),
            row("hybrid", 18_000.0, "quality", curve=curve, memory=1.25, bytes_per_parameter=8.0,
                **trained),
        ]
    )  # fmt: skip
    for name, marks in (("PAGE", page.LIKE_FOR_LIKE_MARKS), ("README", page.SPEED_MARKS)):
        file = tmp_path / f"{name}.md"
        file.write_text(f"before\n{marks[0]}\nold\n{marks[1]}\nafter\n")
        monkeypatch.setattr(page, name, file)
    sizes = {"width": 128, "features": 2048, "batch": 512, "threads": 2}
    page.write_like_for_like({"rows": rows, "about": sizes})
    text = (tmp_path / "PAGE.md").read_text()
    assert "| Ontogeny, hybrid | JumpReLU, tanh-quad | snapshot | 20,000 (18,000 to" in text
    assert "| 31.0 | 100 times |" in text  # to llamascopium's of low L0
    assert "128 snapshots cost 4.00 times what 32 do" in text
    assert "1.25 times its weights" in text
    assert "| 0.8000 | 0.9000 | 0.7000 | 31.0 | 1,000 | 18,000 | 300 |" in text
    readme = (tmp_path / "README.md").read_text()
    assert "is 100 times as fast as that of llamascopium" in readme
    assert "at L0 31 here and 35 there; 35 times" in readme
    assert readme.endswith("after\n")


def world_of_few() -> planted.World:
    """Five features, one of each of five kinds, in orthogonal directions."""
    n, d, rows = planted.N, 12, 400
    rng = np.random.default_rng(0)
    kind = np.array(["always", "born", "dying", "settling", "recoded"])
    strength = np.ones((len(kind), n))
    strength[1, :6] = 0
    strength[2, 9:] = 0
    directions = np.repeat(np.eye(d)[: len(kind), None], n, 1)
    codes = rng.exponential(size=(rows, len(kind))) * (rng.random((rows, len(kind))) < 0.2)
    settles, shared = np.array([0, 0, 0, 5, 5]), np.array([1, 1, 1, 1, 0.4])
    directions[3, :5] = np.eye(d)[5:10]
    frequency = np.array([0.2, 0.002, 0.2, 0.2, 0.2])
    empty = np.zeros((n, 0, d), np.float16)
    return planted.World(empty, empty, codes.astype(np.float32), strength, directions, kind,
                         frequency, settles, shared, (1.0, 0.0, 0.0))  # fmt: skip


def test_the_truth_itself_scores_full_marks():
    world = world_of_few()
    decoders = world.strength[:, :, None] * world.directions
    found = truth.measure(decoders, world.codes, world)
    assert (found["f1"], found["auc"], found["recovered"], found["recovered_rare"]) == (1, 1, 1, 1)
    assert (found["birth_within_one"], found["death_within_one"]) == (1, 1)
    assert (found["relays"], found["holes"], found["dead"]) == (0, 0, 0)
    # The norm says present before a direction settles; the direction tells.
    assert found["by_kind"]["settling"]["f1"] == pytest.approx(2 * 11 / (2 * 11 + 5))
    assert found["settling"] == {"norm_before": 1.0, "f1_direction": 1.0}
    assert sum(found["present"]) == 16 + 10 + 9
    assert sum(found["absent"]) == 6 + 7
    assert found["absent"][0] == 13


def test_what_norms_get_wrong_is_counted():
    world = world_of_few()
    norms = world.strength.copy()
    norms[1, 3:6] = 0.6  # born three snapshots too early
    norms[2, 4] = 0.3  # a hole
    norms[0] = 0.7  # of one height: its own peak is what counts
    found = truth.measure(norms[:, :, None] * world.directions, world.codes, world)
    right, false, missed = 35 - 1, 3, 1
    assert found["f1"] == pytest.approx(2 * right / (2 * right + false + missed))
    assert found["precision"] == pytest.approx(right / (right + false))
    assert found["f1_quarter"] == pytest.approx(2 * 35 / (2 * 35 + 3))
    assert found["birth_error_median"] == 3
    assert found["birth_within_one"] == 0
    assert found["death_within_one"] == 1
    assert found["holes"] == pytest.approx(1 / 3)
    # One of the 35 present pairs, at 0.3, lies below three of the 13 absent ones, at 0.6.
    assert found["auc"] == pytest.approx(1 - 3 / (35 * 13))


def test_two_halves_of_a_life_are_a_relay():
    world = world_of_few()
    decoders = world.strength[:, :, None] * world.directions
    early = np.arange(planted.N) < 8
    halves = decoders[:1] * early[:, None], decoders[:1] * ~early[:, None]
    twice = np.concatenate([*halves, decoders[1:]])
    codes = np.concatenate([world.codes[:, :1], world.codes], 1)
    assert truth.relays(twice, codes) == [(0, 1, 8)]
    found = truth.measure(twice, codes, world)
    assert (found["relays"], found["relays_frequent"]) == (2, 2)
    assert found["relay"]["kind"] == "always"
    assert found["f1"] < 0.95
    # Another code, another direction, or another time is none.
    other = codes.copy()
    other[:, 0] = np.roll(other[:, 0], 1)
    assert truth.relays(twice, other) == []
    turned = twice.copy()
    turned[0] = np.roll(turned[0], 6, axis=-1)
    assert truth.relays(turned, codes) == []
    later = twice.copy()
    later[1, :12] = 0
    assert truth.relays(later, codes) == []


def test_a_planted_world_is_as_its_table_says():
    world = planted.make(1, 4000, 500)
    again = planted.make(1, 4000, 500)
    np.testing.assert_array_equal(world.train, again.train)
    assert world.train.shape == (planted.N, 4000, planted.D)
    assert np.isfinite(world.train).all()
    assert {k: int((world.kind == k).sum()) for k in planted.KINDS} == planted.KINDS
    assert np.allclose(np.linalg.norm(world.directions, axis=2), 1)
    features, dense, noise = world.variance
    assert features + dense + noise == pytest.approx(1)
    assert 0.3 < dense < 0.4
    assert 0.04 < noise < 0.08
    assert 0.15 < (world.frequency < planted.RARE).mean() < 0.3
    of = {k: np.flatnonzero(world.kind == k) for k in planted.KINDS}
    split = world.strength[of["parent"]]
    assert (split.repeat(2, 0) + world.strength[of["child"]] == 1).all()
    gone = 1 - world.strength[of["reappearing"]]
    assert ((gone.sum(1) >= 3) & (gone.sum(1) <= 5)).all()
    assert (gone[:, [0, -1]] == 0).all()
    fires = world.codes > 0
    both = fires[:, of["elder"]] & fires[:, of["twin"]]
    assert both.sum() / fires[:, of["elder"]].sum() == pytest.approx(0.8, abs=0.05)
    children = fires[:, of["child"]].reshape(len(fires), -1, 2)
    assert not children.all(2).any()
    np.testing.assert_array_equal(fires[:, of["parent"]], children.any(2))
    i = of["settling"][0]
    cosines = world.directions[i] @ world.directions[i, -1]
    assert np.abs(cosines[: world.settles[i]]).max() < 0.5
    assert cosines[world.settles[i] :].min() > 0.6


@pytest.mark.parametrize("name", ["batch_topk_snapshot", "paper"])
def test_a_small_training_on_a_planted_world(name, tmp_path, monkeypatch):
    monkeypatch.setattr(presence, "WORK", tmp_path)
    loss = presence.small(next(loss for loss in presence.LOSSES if loss.name == name))
    found = presence.result(loss, 0)
    assert 0.02 < found["explained_variance"] < 0.9
    assert found["recovered"] < 64 / 300  # 64 features, 40 steps
    assert 0 < found["l0"] < 64
    kept = list(tmp_path.glob("*/measures-*.json"))
    assert len(kept) == 1
    kept[0].write_text(json.dumps(found | {"f1": -1.0}))
    assert presence.result(loss, 0)["f1"] == -1  # read, not measured again
    row = presence.row(loss, [found, found | {"f1": found["f1"] + 0.5}])
    assert row["f1"] == pytest.approx(found["f1"] + 0.25)
    assert (row["f1_low"], row["f1_high"]) == (found["f1"], found["f1"] + 0.5)
    assert row["settings"]["activation"] == loss.settings["activation"]


def test_the_page_of_presence_holds_the_rows(tmp_path, monkeypatch):
    world = world_of_few()
    decoders = world.strength[:, :, None] * world.directions
    found = truth.measure(decoders, world.codes, world)
    found |= {"explained_variance": 0.9, "l0": 1.25, "seconds": 61.0}
    for kind in planted.KINDS:  # this world lacks some kinds, and some lack absences
        found["by_kind"][kind] = {"found": 1.0, "f1": 1.0, "false": 0.25, "missed": 0.0}
    found["by_kind"]["always"]["false"] = float("nan")
    worse = found | {"f1": 0.5, "relays": 4}
    rows = [presence.row(loss, [found, worse]) for loss in presence.LOSSES]
    assert "false" not in rows[0]["by_kind"]["always"]
    about = {
        "snapshots": 16, "width": 12, "true_features": 5, "rows": [100, 400], "active": 0.8,
        "rare": 0.2, "variance": {"features": 1.0, "dense": 0.0, "noise": 0.0},
        "bins": truth.BINS.tolist(),
    }  # fmt: skip
    pristine = presence_page.PAGE.read_text()
    monkeypatch.setattr(presence_page, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(presence_page, "PLOT", tmp_path / "plot.png")
    presence_page.PAGE.write_text(pristine)
    presence_page.write({"about": about, "rows": rows})
    text = presence_page.PAGE.read_text()
    line = (
        "| **BatchTopK, gate per snapshot** | 0.750 [0.500, 1.000] | 1.000 | 1.0000 | 1.00 | 1.00 "
    )
    assert f"{line}| 2 [0, 4] (0) | 1.000 | 1.000 | 1.00 | 0.900 | 1.2 | 0.00 | 61 |" in text
    assert text.count("| 0.750 [0.500, 1.000] |") == len(presence.LOSSES)
    assert "5 features at 16 snapshots of width 12, in 100 rows" in text
    assert "averages 1.00 of its peak" in text
    assert "children say present before the split in 25%" in text
    assert text.startswith(pristine.split(presence_page.WORLD[0])[0])
    assert presence_page.PLOT.stat().st_size > 10_000
