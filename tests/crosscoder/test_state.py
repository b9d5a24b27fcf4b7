"""A damaged state of a training: one line, and training begins anew."""

from __future__ import annotations

import random
import re
import shutil

import pytest
from runs import Run

from ontogeny import digests, lineage
from ontogeny.crosscoder import state as states
from ontogeny.crosscoder import train as stage
from ontogeny.files import InputError


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    run = Run(tmp_path_factory.mktemp("state"), {"crosscoders.topk.steps": 120})
    digests.begin(run.map.folder)
    run.stages("corpus", "pretrain", "extract", "basis", "project")
    return run


def trained(run: Run) -> bytes:
    output, state = run.map.path("trained"), lineage.state(run.map, "topk", 0)
    stage.train(run.settings, "topk", 0, run.map.row_paths("topk"), output, state)
    return (output / "crosscoder.safetensors").read_bytes()


@pytest.mark.usefixtures("saved_at_each_look")  # two, of 120 steps
def test_a_damaged_state_is_left_alone(run, capsys):
    unbroken = trained(run)
    state = lineage.state(run.map, "topk", 0) / "state.h5"
    data = bytearray(state.read_bytes())
    data[random.Random(0).randrange(len(data))] ^= 1
    state.write_bytes(data)
    capsys.readouterr()
    assert trained(run) == unbroken
    line = f"{state}: its content has changed since it was written; training starts again\n"
    assert line in capsys.readouterr().err
    record = next((run.map.folder / "digests/state").rglob("*.json"))
    record.unlink()
    state.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"state\.h5: damaged \(.*\); delete it to train from"):
        trained(run)


def test_a_state_that_cannot_be_written_ends_the_training(run, monkeypatch):
    """The error is the thread's that writes; the training raises it."""
    monkeypatch.setattr(states, "SAVE_SECONDS", 0.0)
    folder = lineage.state(run.map, "topk", 0)
    shutil.rmtree(folder, ignore_errors=True)
    folder.write_text("no folder")
    with pytest.raises(FileExistsError, match=re.escape(str(folder))):
        trained(run)
    folder.unlink()
