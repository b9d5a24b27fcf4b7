"""A stream over several processes, each with a part of the snapshots, ends where one ends."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from runs import Run
from safetensors.torch import load_file

from ontogeny import devices
from ontogeny.activations import basis, feed, sites, streamed
from ontogeny.activations.rows import RowPaths
from ontogeny.activations.subspace import Subspace
from ontogeny.crosscoder import native, state, stream, train
from ontogeny.crosscoder.ranks import Ranks
from ontogeny.files import InputError
from ontogeny.peers import PeerLost, Peers
from ontogeny.settings import Settings

# Scores that rounding could turn around at a cut would lead trainings apart: slow ones have none.
# Principal coordinates are rounded to float16 after their sum, which may turn around a last bit:
# there BatchTopK keeps all, and weights agree less closely.
SLOW = {"inputs": {"layers": [1]}, "features": 48, "learning_rate": 2e-4, "seeds": [0],
        "batch_rows": 64, "steps": 200}  # fmt: skip
ALL = SLOW | {"basis": "principal", "k": 48}
DICTIONARIES = {
    "topk": ALL,
    "full": SLOW | {"basis": "full", "gate": "snapshot", "k": 6},
    "hybrid": SLOW | {"basis": "hybrid", "activation": "jumprelu"},
    "table": ALL | {"token_table": True, "scale": "residual", "steps": 100},
    # Sites of two layers, whose order is not that of the snapshots.
    "layers": SLOW | {"inputs": {"layers": [0, 1]}, "basis": "full", "k": 6, "steps": 60},
}
STREAMS = [["topk", "full", "hybrid"], ["table"], ["layers"]]
STOPS = {1: 50, 2: 100, 3: 150}  # a stream handed from one number of processes to the next


class Stop(Exception):
    """Ends the trainings right after their states were written."""


def trained(
    settings: Settings, members: list[stream.Member], folder: Path, ranks: Ranks, stop: int = 0
) -> None:
    """Train a stream, to the end or until all have taken `stop` steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "LOG_EVERY", 10)
        patch.setattr(state, "SAVE_SECONDS", 0.0 if stop else 1e9)
        patch.setattr(native, "library", lambda: None)  # several processes have none of it
        patch.setattr(devices, "compiled", lambda function, device: function)
        save = state.Saver.save

        def save_and_stop(saver: state.Saver, trainings: Mapping[str, state.Progress]) -> None:
            save(saver, trainings)
            saver.wait()
            if min(now.step for now in trainings.values()) >= stop:
                raise Stop

        patch.setattr(state.Saver, "save", save_and_stop)
        try:
            stream.train(settings, members, folder, ranks)
        except Stop:
            assert stop


def member(name: str, paths: RowPaths, folder: Path) -> stream.Member:
    return stream.Member(name, 0, paths, folder / name)


def rank_main(
    rank: int, size: int, settings: Settings, paths: dict[str, RowPaths], folder: Path
) -> None:
    """All that is asked of one process."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    meet = f"file://{folder}/meet{size}"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=size)
    for number, names in enumerate(STREAMS if size == 2 else []):
        members = [member(name, paths[name], folder / f"of{size}") for name in names]
        trained(settings, members, folder / f"of{size}/state{number}", Ranks(rank, size))
    if size == 2:
        basis.make(settings, "topk", paths["topk"], folder / "basis.h5", Ranks(rank, size))
    passed_on = [member(name, paths[name], folder / "passed-on") for name in STREAMS[0]]
    trained(settings, passed_on, folder / "states", Ranks(rank, size), STOPS[size])
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    changes: dict[str, Any] = {"activations.mode": "streamed", "activations.window": 2048}
    changes |= {"crosscoders": DICTIONARIES, "activations.layers": [0, 1]}
    run = Run(tmp_path_factory.mktemp("stream"), changes)
    run.stages("corpus", "pretrain", "extract")
    for site in run.map.sites:
        run.command("token_table", site)
    for name in ("topk", "table"):
        run.command("basis", run.map.basis_of(name))
    return run


@pytest.fixture(scope="module")
def runs(run, tmp_path_factory) -> Path:
    """Every stream on one process, two and three, and one handed from each to the next."""
    folder = tmp_path_factory.mktemp("ranks")
    paths = {name: run.map.row_paths(name) for name in DICTIONARIES}
    torch.set_num_threads(1)
    for number, names in enumerate(STREAMS):
        members = [member(name, paths[name], folder / "of1") for name in names]
        trained(run.settings, members, folder / f"of1/state{number}", Ranks())
    passed_on = [member(name, paths[name], folder / "passed-on") for name in STREAMS[0]]
    trained(run.settings, passed_on, folder / "states", Ranks(), STOPS[1])
    for size in (2, 3):
        given = size, run.settings, paths, folder
        torch.multiprocessing.spawn(rank_main, given, nprocs=size)
        shutil.copytree(folder / "states", folder / f"states{size}")
    trained(run.settings, passed_on, folder / "states", Ranks())
    return folder


def agree(one: Path, other: Path) -> None:
    """Check that two trainings had the same losses and ended at the same weights, to rounding."""
    a, b = (pd.read_csv(folder / "metrics.csv") for folder in (one, other))
    assert len(a) == DICTIONARIES[one.name]["steps"] // 10
    for column in ("step", "loss", "explained_variance", "l0", "threshold"):
        pd.testing.assert_series_equal(a[column], b[column], rtol=1e-5, atol=1e-6)
    mine, theirs = (load_file(folder / "crosscoder.safetensors") for folder in (one, other))
    assert mine.keys() == theirs.keys()
    nearly = 5e-5 if one.name in ("topk", "table") else 1e-5
    for key in mine:
        x, y = mine[key].double(), theirs[key].double()
        assert (x - y).norm() <= nearly * y.norm().clamp(min=1e-3), key


@pytest.mark.parametrize("name", DICTIONARIES)
def test_processes_that_share_the_snapshots_train_as_one(name, runs):
    agree(runs / "of1" / name, runs / "of2" / name)


@pytest.mark.parametrize("name", STREAMS[0])
def test_a_stream_goes_on_with_any_number_of_processes(name, runs):
    """One process to step 50, two to 100, three to 150, one to the end."""
    agree(runs / "of1" / name, runs / "passed-on" / name)
    for size in (2, 3):
        with h5py.File(runs / f"states{size}/state.h5") as file:
            assert STOPS[size] <= file[name].attrs["step"] < 200


def test_a_basis_of_shared_snapshots_is_that_of_one_process(run, runs):
    of_one = Subspace(run.map.path("basis", sites=run.map.basis_of("topk")))
    of_two = Subspace(runs / "basis.h5")
    np.testing.assert_allclose(of_two.U, of_one.U, atol=1e-6)
    np.testing.assert_allclose(of_two.kept, of_one.kept, rtol=1e-6)


def test_coordinates_of_some_sites_add_up_to_those_of_all(run):
    subspace = Subspace(run.map.path("basis", sites=run.map.basis_of("topk")))
    cpu, N = torch.device("cpu"), len(subspace.sites)
    rows = torch.randn(50, N, 16, generator=torch.Generator().manual_seed(0))
    whole = subspace.partial(range(N), cpu)(rows)
    assert torch.equal(whole.half(), subspace.projection(cpu)(rows))
    for parts in ([[0, 1], [2, 3]], [[0, 2], [1, 3]], [[], [0, 1, 2, 3]]):
        y = sum(subspace.partial(part, cpu)(rows[:, part]) for part in parts)
        torch.testing.assert_close(y, whole, atol=1e-5, rtol=1e-5)


def test_each_process_runs_its_own_snapshots(run):
    assert [Peers(0, 3).parts(5)[rank] for rank in range(3)] == [
        slice(0, 1), slice(1, 3), slice(3, 5),
    ]  # fmt: skip
    read = sites.expand(run.settings.crosscoders["layers"].inputs, run.map.steps)
    of_two = [
        streamed.Stream(
            run.settings, read, run.map.row_paths("layers"), torch.device("cpu"), Peers(rank, 2)
        )
        for rank in range(2)
    ]
    assert [[model.step for model in each.models] for each in of_two] == [[0, 1], [3, 4]]
    assert sorted(of_two[0].own + of_two[1].own) == list(range(len(read)))
    assert {read[i].snapshot for i in of_two[1].own} == {3, 4}


class Told(Peers):
    """One process that hears from the others whether all are fine."""

    def __init__(self, others: bool) -> None:
        super().__init__()
        self.others = others

    def agree(self, here: bool, device: torch.device) -> bool:
        return here and self.others


@pytest.mark.parametrize(
    ("broken", "others", "error"),
    [(True, True, InputError), (True, False, InputError), (False, False, PeerLost)],
)
def test_the_process_that_runs_a_snapshot_names_what_its_type_cannot_hold(
    broken, others, error, run
):
    c, paths, cpu = run.settings.crosscoders["full"], run.map.row_paths("full"), torch.device("cpu")
    read = sites.expand(c.inputs, run.map.steps)
    rows = feed.site_rows(run.settings, read, paths, cpu, peers=Told(others))
    if broken:
        weights = rows.stream.models[1].model.gpt_neox.layers[1].mlp.dense_4h_to_h.weight
        with torch.no_grad():
            weights *= 1e9
    else:  # of another process
        whole = rows.stream.whole
        rows.stream.whole = lambda x: whole(x).fill_(torch.inf)
    with pytest.raises(error, match="step 1," if broken else "another process"):
        rows.read(0, 10)
