"""Several processes that share one training end where one process ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import pandas as pd
import pytest
import torch
import torch.distributed as dist
import yaml
from conftest import RESULTS, ROOT, tiny
from safetensors.torch import load_file

from ontogeny import devices, gpus, settings
from ontogeny.activations.rows import RowPaths
from ontogeny.crosscoder import launch, native, pairs, state, train
from ontogeny.crosscoder.ranks import Ranks
from ontogeny.files import InputError

# Scores that rounding could turn around at a cut would lead trainings apart: slow ones have none.
COMMON = {
    "inputs": {"layers": [0]}, "features": 128, "k": 3, "batch_rows": 256, "steps": 60,
    "learning_rate": 5e-4, "dead_after_rows": 600, "aux_features": 32, "aux_k": 4, "seeds": [0],
}  # fmt: skip
PER_SITE = {"basis": "full", "gate": "snapshot", "aux_features": 0}
KINDS: dict[str, dict[str, Any]] = {
    "batch_topk": {},
    "batch_topk_per_site": PER_SITE,
    "transcoder": {"basis": "full", "inputs": {"layers": [0], "snapshots": [0, 40]},
                   "outputs": {"layers": [0], "snapshots": [8]}},
    "jumprelu": {"activation": "jumprelu", "sparsity": 0.05, "start_active": None},
    "jumprelu_per_site": PER_SITE
    | {"activation": "jumprelu", "sparsity": 0.05, "start_active": None},
    "relu": {"activation": "relu", "basis": "full", "sparsity": 0.5},
    "random_decoder": {"train_decoder": False, "basis": "full", "moments": "float32"},
    # Fewer on each of four ranks than k, and than aux_k.
    "few_features": {"features": 8, "aux_features": 8, "dead_after_rows": 100, "k": 3},
    # AuxK of one size: two graphs of the compiler.
    "compiled": {"aux_k": 32},
    # Shapes and products as they are elsewhere than on a CPU.
    "plain": {},
    "plain_per_site": PER_SITE,
    "plain_jumprelu": {"activation": "jumprelu", "sparsity": 0.05, "start_active": None},
    "resumed": {"steps": 80},
}  # fmt: skip
ON_FOUR = ["batch_topk", "jumprelu", "few_features", "plain", "resumed"]
STOPS = {1: 20, 2: 40, 4: 60}  # of `resumed`, by the number of ranks
FAIR = 3 * 256  # pairs of a batch
ROOM = FAIR * 3 // 4  # on each rank, of `plain`


class Stop(Exception):
    """Ends a training right after a state was written."""


def trained(
    s: settings.Settings, paths: RowPaths, name: str, folder: Path, ranks: Ranks | None,
    stop: int | None = None, saves: bool = False,
) -> None:  # fmt: skip
    """One training, left at step `stop` if one is given, eager unless its name says otherwise.

    It keeps states until it is stopped, or if it `saves`.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "LOG_EVERY", 5)
        patch.setattr(state, "SAVE_SECONDS", 0.0 if stop or saves else 1e9)
        patch.setattr(native, "library", lambda: None)  # ranks have none of it
        if name != "compiled":
            patch.setattr(devices, "compiled", lambda function, device: function)
        if name.startswith("plain"):
            patch.setattr(pairs, "of_any_size", lambda device: False)
        save = state.Saver.save

        def save_and_stop(saver: state.Saver, trainings: Mapping[str, state.Progress]) -> None:
            save(saver, trainings)
            saver.wait()
            if trainings["/"].step == stop:
                raise Stop

        patch.setattr(state.Saver, "save", save_and_stop)
        try:
            train.train(s, name, 0, paths, folder / name, folder / f"{name}-state", ranks)
        except Stop:
            return
        assert stop is None


def rank_main(rank: int, size: int, given: str, paths: RowPaths, folder: Path) -> None:
    """All that is asked of one rank, in one process."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet{size}", rank=rank, world_size=size
    )
    s = settings.load(json.loads(given))
    out = folder / f"of{size}"
    for name in KINDS if size == 2 else ON_FOUR:
        if name == "resumed":
            trained(s, paths, name, folder, Ranks(rank, size), stop=STOPS[size])
            continue
        room = ROOM if name == "plain" else 0
        ranks = Ranks(rank, size, room)
        trained(s, paths, name, out, ranks)
        if name == "plain":
            assert ranks.room == ROOM
    few = Ranks(rank, size, FAIR // size + 8)
    trained(s, paths, "plain", folder / f"few{size}", few)
    if rank == 0:
        (folder / f"room{size}").write_text(str(few.room))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def paths(finished) -> RowPaths:
    """Where the tiny experiment's rows are."""
    basis = finished / RESULTS / "basis/residual.0.h5"
    rows = (basis.with_suffix(".rows0.h5"),)
    return RowPaths(finished / RESULTS / "activations", basis, rows)


def configuration() -> dict[str, Any]:
    """Every kind on the tiny experiment's rows."""
    given = tiny({"crosscoders": {n: COMMON | c for n, c in KINDS.items()}, "analyses": []})
    return given | {"primary": "batch_topk"}


@pytest.fixture(scope="module")
def runs(paths, tmp_path_factory) -> Path:
    """Every kind on one process, two and four, and one training handed from one to the other."""
    folder, given = tmp_path_factory.mktemp("ranks"), configuration()
    s = settings.load(given)
    for name in KINDS:
        trained(s, paths, name, folder / "of1", None)
    trained(s, paths, "resumed", folder, None, STOPS[1])
    arguments = (json.dumps(given), paths, folder)
    for size in (2, 4):
        torch.multiprocessing.spawn(rank_main, (size, *arguments), nprocs=size)
        shutil.copytree(folder / "resumed-state", folder / f"state{size}")
    trained(s, paths, "resumed", folder, None)
    return folder


def agree(one: Path, other: Path) -> pd.DataFrame:
    """Check that two trainings had the same losses and ended at the same weights, to rounding."""
    a, b = (pd.read_csv(folder / "metrics.csv") for folder in (one, other))
    assert list(a["step"]) == list(range(5, len(a) * 5 + 1, 5))
    for column in ("step", "loss", "explained_variance", "l0", "dead_fraction", "threshold",
                   "explained_variance_1"):  # fmt: skip
        # A single pair more or less of relu's, at 0, is no matter to its loss. A jumprelu's gate
        # that rounding opens on one number of ranks alone moves the losses that follow a little.
        nearly = 2e-4 if column == "l0" or "jumprelu" in one.name else 1e-5
        pd.testing.assert_series_equal(a[column], b[column], rtol=nearly, atol=1e-5)
    mine, theirs = (load_file(folder / "crosscoder.safetensors") for folder in (one, other))
    assert mine.keys() == theirs.keys()
    for key, tensor in mine.items():
        assert tensor.dtype == theirs[key].dtype
        scale = tensor.double().abs().max().clamp(min=1e-3)
        gap = (tensor.double() - theirs[key].double()).abs().max() / scale
        assert gap < 1e-3, key
    about = [json.loads((folder / "config.json").read_text()) for folder in (one, other)]
    assert about[0].pop("threshold") == pytest.approx(about[1].pop("threshold"), rel=1e-4)
    assert about[0] == about[1]
    return a


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "resumed"])
def test_two_ranks_train_as_one_process(kind, runs):
    losses = agree(runs / "of1" / kind, runs / "of2" / kind)
    assert losses["loss"].iloc[-1] < losses["loss"].iloc[0]
    if kind in ("batch_topk", "compiled", "plain"):
        assert losses["dead_fraction"].max() > 0  # AuxK had something to do


@pytest.mark.parametrize("kind", [kind for kind in ON_FOUR if kind != "resumed"])
def test_four_ranks_train_as_one_process(kind, runs):
    agree(runs / "of1" / kind, runs / "of4" / kind)


def test_a_training_goes_on_with_any_number_of_ranks(runs):
    """One process to step 20, two ranks to 40, four to 60, one process to the end."""
    agree(runs / "of1" / "resumed", runs / "resumed")
    for size, step in ((2, 40), (4, 60)):
        assert [path.name for path in (runs / f"state{size}").iterdir()] == ["state.h5"]
        with h5py.File(runs / f"state{size}/state.h5") as file:
            assert file.attrs["step"] == step
            assert file["W_enc"].shape[0] == COMMON["features"]
    # The last did not begin anew: it would have written another.
    last, of_four = (runs / folder / "state.h5" for folder in ("resumed-state", "state4"))
    assert last.read_bytes() == of_four.read_bytes()


def test_a_shared_state_of_other_rows_or_half_of_one_is_not_gone_on_from(runs, paths, tmp_path):
    states = tmp_path / "resumed-state"
    shutil.copytree(runs / "state4", states)
    half = states / ".state.h5.999999999.part"  # of no process that runs
    half.write_bytes((states / "state.h5").read_bytes()[:1000])
    with h5py.File(states / "state.h5", "r+") as file:
        assert file.attrs["step"] == 60
        file.attrs["data"] = "other"
    trained(settings.load(configuration()), paths, "resumed", tmp_path, None, saves=True)
    fresh, again = (
        folder / "resumed/crosscoder.safetensors" for folder in (runs / "of1", tmp_path)
    )
    assert fresh.read_bytes() == again.read_bytes()
    assert [path.name for path in states.iterdir()] == ["state.h5"]
    with h5py.File(states / "state.h5") as file:
        assert file.attrs["data"] != "other"


@pytest.mark.parametrize("size", [2, 4])
def test_a_rank_without_room_for_its_pairs_gets_more(size, runs):
    room, given = int((runs / f"room{size}").read_text()), FAIR // size + 8
    assert room in (2 * given, 4 * given)


# The launcher

TRAINED = "crosscoders/batchtopk/seed0"

TROUBLE = """
import os
import signal

from ontogeny import devices
from ontogeny.cli import main
from ontogeny.crosscoder import train

devices.compiled = lambda function, device: function
real = train.Training.advance


def advance(training, now, *rest):
    if now.step == 10:
        exec(os.environ["TROUBLE"], {"rank": now.ranks.rank, "os": os, "signal": signal})
    return real(training, now, *rest)


train.Training.advance = advance
if __name__ == "__main__":
    main()
"""
TROUBLES = {
    "fails": "if rank == 1: raise ValueError('trouble of its own')",
    "killed": "if rank == 1: os.kill(os.getpid(), signal.SIGKILL)",
    "told to end": "if rank == 1: os.kill(os.getppid(), signal.SIGTERM)",
    "bad input": "",
    "none": "",
}


@pytest.fixture(scope="module")
def ended(finished, tmp_path_factory) -> dict[str, tuple[int, str, Path]]:
    """How the command ends on two ranks in each of the troubles: code, what it said, folder."""
    home = tmp_path_factory.mktemp("troubles")
    (home / "trouble.py").write_text(TROUBLE)
    changes = {"crosscoders.batchtopk.devices": 2, "crosscoders.batchtopk.steps": 60}
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}  # whose bytecode is kept
    free = {k: v for k, v in environment.items() if k not in gpus.HANDED_OUT}
    free |= {"TMPDIR": str(home), gpus.NAMED: "0,1,2,3"}
    begun = {}
    for name, trouble in TROUBLES.items():
        folder = home / name
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump(tiny(changes)))
        for part in ("activations", "basis"):
            (folder / part).symlink_to(finished / RESULTS / part)
        if name == "bad input":
            (folder / "basis").unlink()
        words = ["train", folder, "batchtopk", "--seed", "0", "--threads", "2"]
        command = [sys.executable, home / "trouble.py", *words]
        begun[name] = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env=(free if name == "none" else environment) | {"TROUBLE": trouble},
        )  # fmt: skip
    return {
        name: (process.wait(), process.communicate()[1], home / name)
        for name, process in begun.items()
    }


def test_the_command_trains_on_ranks(ended):
    code, said, folder = ended["none"]
    assert code == 0, said
    assert len(re.findall(r"100%", said)) == 2, said  # one bar, and its end
    assert "Warning" not in said
    assert said.startswith("on GPU 0,1\n")  # it takes two of a machine's GPUs, were there any
    assert list(pd.read_csv(folder / TRAINED / "metrics.csv")["step"]) == [50, 60]
    about = json.loads((folder / TRAINED / "config.json").read_text())
    assert about["settings"]["devices"] == 2
    assert load_file(folder / TRAINED / "crosscoder.safetensors")["W_enc"].shape[0] == 64


def test_an_error_of_a_rank_is_told_once(ended):
    code, said, folder = ended["fails"]
    assert code == 1
    assert said.endswith("ontogeny: rank 1 of 2: ValueError: trouble of its own\n")
    assert said.count("Traceback") == 1
    assert "PeerLost" not in said
    assert not (folder / TRAINED).exists()


def test_a_rank_that_is_killed_ends_all(ended):
    code, said, _ = ended["killed"]
    assert code == 1
    assert said.endswith("ontogeny: rank 1 of 2: was killed (SIGKILL)\n")
    assert "Traceback" not in said


def test_whoever_ends_the_launcher_ends_the_ranks(ended):
    code, said, folder = ended["told to end"]
    assert code == 128 + signal.SIGTERM, said
    assert "Traceback" not in said
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = status.read_text()
        except OSError:  # it has just ended
            continue
        assert str(folder.parent) not in command, command


def test_bad_input_is_told_once(ended):
    """In the line that one process has for it."""
    code, said, folder = ended["bad input"]
    assert code == 1
    assert re.fullmatch(rf"ontogeny: {folder}/basis/residual\.0\.h5: .*\n", said), said


# Settings and rules


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {},
            r"crosscoders\.batchtopk\.devices: 3 does not divide the 64 features; choose a number",
        ),
        (
            {"activations.mode": "streamed", "snapshots.steps": [0, 40]},
            r"\.batchtopk\.devices: 3 devices share 2 snapshots .*; lower it$",
        ),
        ({"device": "cuda:1"}, r"^device: cuda:1 is one GPU, .*devices is 3; set device: cuda$"),
        ({"device": "cuda"}, None),
    ],
)
def test_what_ranks_cannot_share_is_a_fault(changes, message):
    features = 64 if message and "features" in message else 96
    given = {"crosscoders.batchtopk.devices": 3, "crosscoders.batchtopk.features": features}
    if message is None:
        assert settings.load(tiny(changes | given)).crosscoders["batchtopk"].devices == 3
        return
    with pytest.raises(settings.SettingsError) as caught:
        settings.load(tiny(changes | given))
    assert re.search(message, str(caught.value)), caught.value


def test_dictionaries_of_a_stream_have_the_same_number_of_devices():
    one = tiny()["crosscoders"]["batchtopk"]
    given = tiny({"activations.mode": "streamed", "crosscoders.other": one | {"devices": 2}})
    with pytest.raises(settings.SettingsError, match=r"devices: .* \(batchtopk 1, other 2\); set"):
        settings.load(given)
    given["crosscoders"]["batchtopk"] = one | {"devices": 2}
    assert settings.load(given).crosscoders["other"].devices == 2


def test_dictionaries_of_the_frontier_are_shared_too():
    given = tiny({"crosscoders.batchtopk.devices": 4})
    given["frontier"] = {"features": [32, 30], "k": [2], "steps": 10}
    with pytest.raises(
        settings.SettingsError, match=r"frontier\.features: 30 is not divisible by .*batchtopk\.dev"
    ):
        settings.load(given)
    given["frontier"]["features"] = [32, 64]
    s = settings.load(given)
    assert {c.devices for c in s.all_crosscoders.values()} == {4}


def test_fewer_gpus_than_ranks_are_told(monkeypatch, tmp_path):
    s = settings.load(tiny({"crosscoders.batchtopk.devices": 2, "device": "cuda"}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match=r"devices: 2 GPUs are needed, but only 1"):
        launch.on_devices(train.train, s, 2)


def test_another_number_of_devices_makes_nothing_again(experiment):
    """And a training that is wanted asks for as many GPUs and threads."""
    experiment.configure({"crosscoders.batchtopk.devices": 2, "device": "auto"})
    assert experiment.would_run() == {"summary": 1}  # which keeps a digest of all settings
    shutil.rmtree(experiment / RESULTS / "crosscoders/batchtopk/seed1")
    said = experiment.snakemake("--dry-run", "-p", "--resources", "gpu=2")
    assert re.search(r"ontogeny train results/tiny batchtopk --seed 1 +--threads 2 ", said)
    pytest.importorskip("snakemake_executor_plugin_slurm")
    done = experiment.command("snakemake", "--profile", "profiles/slurm", "--dry-run")
    assert re.search(r"\nrule train:(\n +.*)*\n +resources: .* gpu=2, nodes=1\n", done.stdout), done
