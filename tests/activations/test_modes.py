"""Cached, in shards and streamed: the same rows in the same order, and the same trainings."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import RESULTS, tiny

from ontogeny import settings
from ontogeny.activations import basis, extract, feed, order, store
from ontogeny.activations.rows import Cached, HeldOut, RowPaths, across
from ontogeny.activations.sites import Site, rows_path
from ontogeny.activations.streamed import Streamed
from ontogeny.activations.subspace import Subspace, project
from ontogeny.corpus.build import Tokens
from ontogeny.crosscoder import train
from ontogeny.files import InputError

STEPS = [0, 8, 40]
CPU = torch.device("cpu")
MODES = {
    "cached": {"activations.window": 1500},
    "shards": {"activations.window": 1500, "activations.budget": 8e-4},
    "streamed": {"activations.window": 1500, "activations.mode": "streamed"},
}


def experiment(mode: str, **more: object) -> settings.Settings:
    changes = {"snapshots.steps": STEPS, "basis": {"rows": 1400}, "crosscoders.batchtopk.steps": 60}
    return settings.load(tiny(changes | MODES[mode] | more))


class Made:
    """An experiment's activations in one of the modes, made by the stages' own functions."""

    def __init__(self, s: settings.Settings, folder: Path, finished: Path) -> None:
        self.s, self.folder = s, folder
        self.snapshots = finished / RESULTS / "snapshots"
        self.tokens = finished / RESULTS / "corpus/tokens.h5"
        self.shards = order.shards(s, 32)
        for step in STEPS:
            where = (s, self.snapshots / f"step{step}", step, self.tokens, folder)
            extract.extract(*where)
            for shard in range(1, len(self.shards) if s.activations.mode == "cached" else 1):
                extract.extract(*where, shard)
        place = folder / "residual.0"
        cached = s.activations.mode == "cached"
        files = [place / f"step{t}.h5" for t in STEPS]
        store.stack(files, STEPS, place / "stack.h5", cached)
        self.sites = [Site(step, 0, "residual") for step in STEPS]
        self.rows, self.held_out = Cached(folder, self.sites), HeldOut(folder, self.sites)

    def paths(self) -> RowPaths:
        """Basis and, unless rows are streamed, projected rows."""
        streamed = self.s.activations.mode == "streamed"
        more = {"snapshots": self.snapshots, "tokens": self.tokens} if streamed else {}
        rows = feed.site_rows(self.s, self.sites, RowPaths(self.folder, **more), CPU)
        file = self.folder / "basis.h5"
        basis.build(self.s.basis, rows, file, CPU)
        projected = []
        for shard in range(0 if streamed else len(self.shards)):
            projected.append(self.folder / f"rows{shard}.h5")
            project(file, self.rows, shard, projected[-1], CPU)
        return RowPaths(self.folder, file, tuple(projected), **more)


@pytest.fixture(scope="module")
def made(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("modes")
    return {
        mode: Made(experiment(mode), folder / mode / "activations", finished.folder)
        for mode in MODES
    }


# The order of rows


@pytest.fixture(scope="module")
def tokens(finished) -> Tokens:
    return Tokens(finished / RESULTS / "corpus/tokens.h5")


@pytest.mark.slow
@pytest.mark.parametrize("window", [1500, 4096, 10**6])
@pytest.mark.parametrize("leave_out", [[], ["end_of_text"], ["first"], ["end_of_text", "first"]])
def test_every_position_has_its_row_once(tokens, window, leave_out):
    a = settings.Activations(layers=[0], window=window, leave_out=leave_out)
    rows = order.Order(tokens, "train", a)
    assert len(rows.windows) == -(-128 * 64 // window)
    position = np.concatenate([rows.position(w) for w in range(len(rows.windows))]).astype(int)
    assert len(position) == rows.rows
    first, last = tokens.splits["train"]
    ids = tokens.blocks[first:last]
    wanted = np.ones(ids.shape, bool)
    if "end_of_text" in leave_out:
        wanted &= ids != tokens.end_of_text
    if "first" in leave_out:
        wanted[:, 0] = False
    flat = (position[:, 0] - first) * 64 + position[:, 1]
    np.testing.assert_array_equal(np.sort(flat), np.flatnonzero(wanted))
    for row in (0, rows.rows // 2, rows.rows - 1):
        ((window, first, last),) = across(rows.starts, row, row + 1, lambda *part: [part])
        assert 0 <= first < rows.starts[window + 1] - rows.starts[window]
        assert (rows.starts[window] + first, last) == (row, first + 1)


@pytest.mark.slow
def test_a_window_does_not_depend_on_those_before(tokens):
    a = settings.Activations(layers=[0], window=1500)
    alone = order.Order(tokens, "train", a).position(3)
    after = order.Order(tokens, "train", a)
    for w in range(3):
        after.slots(w)
    np.testing.assert_array_equal(alone, after.position(3))
    assert abs(np.corrcoef(np.arange(len(alone)), alone[:, 1])[0, 1]) < 0.1
    other = settings.Activations(layers=[0], window=1500, seed=1)
    assert (order.Order(tokens, "train", other).position(3)[:100] != alone[:100]).any()


def test_shards_keep_to_the_budget():
    s = experiment("shards")
    found = order.shards(s, 32)
    assert [w for shard in found for w in shard] == list(range(6))
    window = -(-128 // 6) * 64 * (32 * 2 + 16) * 3
    for pair in pairwise(found):
        assert sum(map(len, pair)) * window <= 8e-4 * 1e9
    assert order.shards(experiment("cached"), 32) == [range(6)]
    assert order.shards(experiment("shards", **{"activations.budget": 1.0}), 32) == [range(6)]
    with pytest.raises(InputError, match=r"activations\.budget: 0\.0003 GB are too little for two"):
        order.shards(experiment("shards", **{"activations.budget": 3e-4}), 32)


# Files


@pytest.mark.parametrize(("rows", "width"), [(1, 3), (1000, 64), (2048, 64), (5000, 64)])
@pytest.mark.parametrize("pieces", [1, 7, 900, 10**6])
def test_what_is_written_in_pieces_is_read_in_others(tmp_path, rows, width, pieces):
    values = np.random.default_rng(0).normal(size=(rows, width)).astype(np.float16)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        writer = store.Writer(file, "x", rows, width, "float16")
        for start in range(0, rows, max(pieces, rows // 50)):
            writer.write(values[start : start + max(pieces, rows // 50)])
    with h5py.File(tmp_path / "x.h5") as file:
        np.testing.assert_array_equal(file["x"][:], values)
    reader = store.Reader(tmp_path / "x.h5", "x")
    rng = np.random.default_rng(1)
    for _ in range(10):
        start, stop = sorted(rng.integers(0, rows + 1, 2))
        np.testing.assert_array_equal(reader.read(start, stop), values[start:stop])


@pytest.mark.slow
def test_streamed_activations_leave_no_training_row_on_disk(made):
    files = {path.name for path in made["streamed"].folder.rglob("*.h5")}
    assert files == {f"step{step}.h5" for step in STEPS} | {"stack.h5"}
    with h5py.File(made["streamed"].folder / "residual.0/step8.h5") as file:
        assert list(file) == ["held_out"]


@pytest.mark.slow
def test_shards_hold_the_rows_of_one_after_the_other(made):
    whole, parts = made["cached"], made["shards"]
    assert [len(shard) for shard in parts.shards] == [1] * 6
    assert parts.rows.shard_rows != whole.rows.shard_rows
    assert sum(parts.rows.shard_rows) == whole.rows.rows
    for step in STEPS:
        name = f"residual.0/step{step}.h5"
        positions = []
        for shard in range(6):
            with h5py.File(rows_path(parts.folder / name, shard)) as file:
                positions.append(file["position"][:])
        with h5py.File(rows_path(whole.folder / name, 0)) as file:
            np.testing.assert_array_equal(file["position"][:], np.concatenate(positions))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["shards", "streamed"])
def test_every_mode_has_the_same_rows(made, mode):
    cached, other = made["cached"], made[mode]
    np.testing.assert_array_equal(cached.rows.scales, other.rows.scales)
    rows, held_out = cached.rows.rows, cached.held_out.rows
    same = cached.held_out.read(0, held_out)
    np.testing.assert_array_equal(same, other.held_out.read(0, held_out))
    paths = RowPaths(other.folder, snapshots=other.snapshots, tokens=other.tokens)
    reader = feed.site_rows(other.s, other.sites, paths, CPU)
    assert isinstance(reader, Streamed) == (mode == "streamed")
    for start, stop in [(0, rows), (1400, 1600), (rows - 5, rows)]:
        np.testing.assert_array_equal(reader.read(start, stop), cached.rows.read(start, stop))


@pytest.mark.slow
@pytest.mark.parametrize("basis", ["principal", "full"])
def test_every_mode_ends_in_the_same_crosscoder(made, basis, tmp_path, monkeypatch):
    monkeypatch.setattr(train.devices, "compiled", lambda function, device: function)
    bytes_of = {}
    for mode in MODES if basis == "principal" else ("cached", "streamed"):
        one = made[mode]
        key = "batchtopk"
        changed = one.s.crosscoders[key].model_copy(update={"basis": basis})
        s = one.s.model_copy(update={"crosscoders": {key: changed}})
        train.train(s, key, 0, one.paths(), tmp_path / mode, tmp_path / "state" / mode)
        bytes_of[mode] = (tmp_path / mode / "crosscoder.safetensors").read_bytes()
    assert len(set(bytes_of.values())) == 1


@pytest.mark.slow
def test_streamed_rows_name_the_site_that_overflows(made, monkeypatch):
    one = made["streamed"]
    paths = one.paths()
    rows = feed.principal_rows(one.s, one.sites, Subspace(paths.basis), paths, CPU)
    weights = rows.stream.models[1].model.gpt_neox.layers[0].mlp.dense_4h_to_h.weight
    with torch.no_grad():
        weights *= 1e7
    with pytest.raises(
        InputError, match=r"activations\.dtype: float16 cannot .* residual of layer 0 at step 8,"
    ):
        rows.read(0, 10)


@pytest.mark.slow
def test_streamed_rows_of_other_tokens_are_refused(made, finished, tmp_path):
    one = made["streamed"]
    other = tmp_path / "tokens.h5"
    other.write_bytes(one.tokens.read_bytes())
    with h5py.File(other, "r+") as file:
        file.attrs["digest"] = "0" * 64
    paths = RowPaths(one.folder, snapshots=one.snapshots, tokens=other)
    with pytest.raises(
        InputError, match=r"made from other tokens than .*; delete these activations"
    ):
        feed.site_rows(one.s, one.sites, paths, CPU)


# The workflow


@pytest.mark.slow
def test_a_budget_runs_shard_after_shard_and_leaves_no_row(experiment_of_shards):
    checkout = experiment_of_shards
    target = f"{RESULTS}/crosscoders/batchtopk/seed0/metrics.csv"
    jobs = checkout.would_run(target)
    assert jobs["project"] == 3
    assert jobs["extract"] == 3
    assert jobs["extract_shard"] == 3 * 2
    assert not {"corpus", "pretrain", "snapshot"} & set(jobs)
    said = checkout.snakemake(target)
    assert not list((checkout / RESULTS).glob("activations/*/*.rows*.h5"))
    assert len(list((checkout / RESULTS).glob("basis/*.rows*.h5"))) == 3
    done = [line for line in said.splitlines() if "Projecting shard" in line or "shard 2" in line]
    first = next(i for i, line in enumerate(done) if "Projecting shard 0" in line)
    assert all("Activations of" not in line for line in done[:first])
    assert not {"extract", "extract_shard", "basis", "project", "train"} & set(
        checkout.would_run(target)
    )


@pytest.fixture
def experiment_of_shards(experiment):
    experiment.configure(
        {
            "snapshots.steps": [0, 8, 40],
            "activations.window": 2800,
            "activations.budget": 0.0014,
            "basis": {"rows": 2000},
        }
    )
    for folder in ("activations", "basis"):
        shutil.rmtree(experiment / RESULTS / folder)
    return experiment


@pytest.mark.slow
def test_streaming_is_another_way_to_the_same_crosscoders_all_at_once(experiment, finished):
    experiment.configure({"activations.mode": "streamed"})
    here = experiment / RESULTS
    for path in here.glob("activations/*/*.rows*.h5"):
        path.unlink()
    seeds = [f"{RESULTS}/crosscoders/batchtopk/seed{seed}" for seed in (0, 1)]
    targets = [f"{seed}/fidelity.csv" for seed in seeds]
    jobs = experiment.would_run(*targets)
    assert (jobs["basis"], jobs["train"], jobs["fidelity"]) == (1, 2, 2)
    assert not {"project", "extract", "snapshot"} & set(jobs)
    experiment.snakemake(*targets)
    assert not list(here.glob("activations/*/*.rows*.h5"))
    for name in ("crosscoder.safetensors", "fidelity.csv"):
        for seed in seeds:
            path = f"{seed}/{name}"
            assert (experiment / path).read_bytes() == (finished / path).read_bytes()
    # One job has trained both, and the other has taken its own.
    logs = {path.stem: path.read_text() for path in (here / "logs/train").glob("batchtopk-*.log")}
    assert sorted("snapshots onto the device" in said for said in logs.values()) == [False, True]
    (both,) = (said for said in logs.values() if said)
    assert all(f"train batchtopk seed {seed}: " in both for seed in (0, 1))
    assert [path.name for path in (here / "state").iterdir()] == ["wanted.json"]
    missing = experiment.command("ontogeny", "verify", RESULTS).stderr.splitlines()
    assert all(".rows0.h5: missing" in line for line in missing)
    # A further dictionary is the only one that is trained.
    given = tiny({"activations.mode": "streamed"})
    given["crosscoders"]["other"] = given["crosscoders"]["batchtopk"] | {"k": 6}
    experiment.configure({"activations.mode": "streamed", "crosscoders": given["crosscoders"]})
    others = [target.replace("batchtopk", "other") for target in targets]
    assert experiment.would_run(*targets, *others) == {"train": 2, "fidelity": 2}
