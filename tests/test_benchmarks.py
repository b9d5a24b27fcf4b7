"""The benchmark's cases, its page, and that a path of it learns."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import crosscoder, environments, like_for_like, page

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
    subprocess.run(command, check=True, timeout=300)
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
