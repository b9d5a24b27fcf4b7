"""Several dictionaries on one stream of rows: one forward pass, and the same bytes as alone."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest
from runs import Run

from ontogeny.activations.extract import Snapshot
from ontogeny.crosscoder import stream
from ontogeny.crosscoder import train as alone

SITES = {"inputs": {"layers": [1]}, "features": 48}
# Of different kinds, sizes of batches and numbers of steps, over six windows of 512 positions.
DICTIONARIES = {
    "topk": SITES | {"basis": "principal", "k": 6, "batch_rows": 160, "steps": 150},
    "full": SITES | {"basis": "full", "activation": "relu", "batch_rows": 200, "steps": 110},
    "hybrid": SITES | {"basis": "hybrid", "activation": "jumprelu", "batch_rows": 1200,
                       "steps": 20},
}  # fmt: skip
TRAININGS = [(name, seed) for name in DICTIONARIES for seed in (0, 1)]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    changes = {"activations.mode": "streamed", "activations.window": 512}
    changes |= {"crosscoders": DICTIONARIES}
    run = Run(tmp_path_factory.mktemp("stream"), changes)
    run.stages("corpus", "pretrain", "extract", "basis")
    return run


@pytest.fixture(scope="module", autouse=True)
def eagerly():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alone.devices, "compiled", lambda function, device: function)
        patch.setattr(alone.native, "library", lambda: None)
        patch.setattr(alone, "measured_batches", lambda activation, steps: 0)
        yield


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """Tokens of each forward pass of a snapshot from now on."""
    real, counted = Snapshot.read, []

    def read(snapshot, ids, *more):
        counted.append(ids.size)
        return real(snapshot, ids, *more)

    monkeypatch.setattr(Snapshot, "read", read)
    return counted


def members(run: Run, folder: Path, trainings=TRAININGS) -> list[stream.Member]:
    return [
        stream.Member(name, seed, run.map.row_paths(name), folder / f"{name}-{seed}")
        for name, seed in trainings
    ]


def results(folder: Path) -> dict[str, bytes]:
    return {
        f"{name}-{seed}": (folder / f"{name}-{seed}/crosscoder.safetensors").read_bytes()
        for name, seed in TRAININGS
    }


@pytest.fixture(scope="module")
def separate(run, tmp_path_factory) -> Path:
    """Each training from a stream of its own."""
    folder = tmp_path_factory.mktemp("separate")
    for name, seed in TRAININGS:
        where = run.map.row_paths(name), folder / f"{name}-{seed}", folder / "state"
        alone.train(run.settings, name, seed, *where)
    return folder


def test_one_pass_feeds_all_and_each_ends_as_it_would_alone(run, separate, passes, tmp_path):
    stream.train(run.settings, members(run, tmp_path), tmp_path / "state")
    assert results(tmp_path) == results(separate)
    # The training that reads most decides; the mean of all dimensions is a pass of its own.
    rows, windows, snapshots = run.sizes.rows, 6, len(run.map.steps)
    most = max(c.batch_rows * c.steps for c in run.settings.crosscoders.values())
    visits = -(-most * windows // rows)
    assert sum(passes) == (visits + windows) * 512 * snapshots


class Stop(Exception):
    """Ends all trainings at once."""


@pytest.mark.usefixtures("saved_at_each_look")
def test_what_is_interrupted_goes_on_from_one_state_and_a_new_one_catches_up(
    run, separate, tmp_path, monkeypatch
):
    step, taken = alone.Session.step, []

    def steps(most: int):
        def counted(session, state):
            if len(taken) == most:
                raise Stop
            taken.append((session.name, session.seed))
            return step(session, state)

        taken.clear()
        return counted

    begun = [training for training in TRAININGS if training != ("topk", 1)]
    monkeypatch.setattr(alone.Session, "step", steps(330))
    with pytest.raises(Stop):
        stream.train(run.settings, members(run, tmp_path, begun), tmp_path / "state")
    with h5py.File(tmp_path / "state/state.h5") as file:
        saved = {key: int(group.attrs["step"]) for key, group in file.items()}
        rows = {
            key: at * run.settings.crosscoders[key.split("-")[0]].batch_rows
            for key, at in saved.items()
        }
    assert set(saved) == {f"{name}-{seed}" for name, seed in begun}
    assert saved["topk-0"] >= 100
    assert max(rows.values()) - min(rows.values()) <= 1200  # of one moment: a batch apart
    monkeypatch.setattr(alone.Session, "step", steps(10**9))
    stream.train(run.settings, members(run, tmp_path), tmp_path / "state")
    assert results(tmp_path) == results(separate)
    wanted = sum(run.settings.crosscoders[name].steps for name, _ in TRAININGS)
    assert len(taken) == wanted - sum(saved.values())
    assert set(taken[: saved["topk-0"]]) == {("topk", 1)}
