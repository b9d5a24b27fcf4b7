"""Which trainings share a stream, and whose results wait to be taken: no training runs here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from runs import small

from ontogeny import lineage, streams
from ontogeny.experiment import Experiment
from ontogeny.files import InputError

SITES = {"inputs": {"layers": [1]}, "steps": 10, "features": 48}
KINDS = {
    "topk": {"basis": "principal", "k": 6},
    "hybrid": {"basis": "hybrid", "k": 6},
    "full": {"basis": "full", "k": 6},
    "table": {"basis": "principal", "k": 6, "token_table": True},
    "early": {"basis": "principal", "k": 6, "inputs": {"layers": [1], "snapshots": [0, 1]}},
    "exact": {"basis": "principal", "k": 6, "precision": "highest"},
}


def configured(folder: Path, **changes: object) -> Experiment:
    kinds = {name: SITES | kind for name, kind in KINDS.items()}
    changes = {"activations.mode": "streamed", "crosscoders": kinds} | changes
    return Experiment(folder / "small", small(folder / "text.txt", changes))


@pytest.fixture
def experiment(tmp_path) -> Experiment:
    return configured(tmp_path)


def test_trainings_on_the_same_files_are_one_stream(experiment, tmp_path):
    found = streams.of(experiment)
    assert found["residual.1"] == ["topk", "hybrid"]
    assert sorted(map(tuple, found.values())) == [
        ("early",), ("exact",), ("full",), ("table",), ("topk", "hybrid"),
    ]  # fmt: skip
    for names in found.values():
        files = [experiment.training_sources(name) for name in names]
        assert all(each == files[0] for each in files)
    assert streams.of(configured(tmp_path, **{"activations.mode": "cached"})) == {}


def keep(experiment: Experiment, crosscoder: str, seed: int) -> Path:
    """The last file of a result, as if its training were over."""
    path = lineage.state(experiment, crosscoder, seed) / "metrics.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_those_are_trained_that_are_listed_and_not_kept(experiment, tmp_path):
    every = [("topk", 0), ("topk", 1), ("hybrid", 0), ("hybrid", 1)]
    listed = [*every, ("full", 0)]
    first = ("topk", 1)
    assert streams.together(experiment, first, listed) == [*every[1:], every[0]]
    assert streams.together(experiment, first, []) == [first]
    path = keep(experiment, "hybrid", 0)
    assert streams.together(experiment, first, listed) == [first, ("hybrid", 1), ("topk", 0)]
    experiment = configured(tmp_path, **{"activations.together": 2})
    assert streams.together(experiment, first, listed) == [first, ("hybrid", 1)]
    # A result that is older than what it was made from counts for nothing.
    source = experiment.path("basis", sites="residual.1")
    source.parent.mkdir(parents=True)
    source.touch()
    os.utime(path, (1, 1))
    assert streams.kept(experiment, "hybrid", 0) is None
    assert streams.together(experiment, first, listed) == [first, ("hybrid", 0)]


def test_a_list_that_is_none_is_one_line(experiment, tmp_path):
    streams.want(experiment, [("b", 1), ("a", 0)])
    path = experiment.path("wanted")
    assert streams.wanted(path) == [("a", 0), ("b", 1)]
    path.write_text("[1]")
    for given in (path, tmp_path / "none.json"):
        with pytest.raises(InputError, match=r"no list of trainings; leave out --wanted"):
            streams.wanted(given)
