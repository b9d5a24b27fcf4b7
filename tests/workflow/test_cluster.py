"""The tiny experiment on a real SLURM, with jobs that are killed: `make test-cluster`.

SLURM looks for jobs past their time every thirty seconds. Until it does, the tests hold a training
that is to be killed still, so that what it loses does not hang on the machine's speed.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import slurm
from conftest import RESULTS, WORKFLOW, Checkout
from tqdm import tqdm

from ontogeny import gpus
from ontogeny.crosscoder.sizes import LOG_EVERY

pytestmark = pytest.mark.cluster  # which nothing but `make test-cluster` asks for
KILLS = 3  # of one training, by its wall time
OF_THE_MACHINE = ("wall_seconds", "peak_memory", "disk_bytes")  # numbers of summary.json
STANDSTILL = 900  # seconds without a word from a run, after which it hangs
CHANGES = {
    "snapshots.steps": [0, 8, 20, 40],
    "crosscoders.batchtopk.steps": 2500,
    "analyses": [],
}
PROFILE = (
    "--profile", "profiles/slurm", "--default-resources", "slurm_partition=main",
    "gpu_partition=gpu", "--slurm-no-account", "--slurm-init-seconds-before-status-checks", "2",
    "--latency-wait", "10",
)  # fmt: skip
THREADS = WORKFLOW[WORKFLOW.index("--set-threads") :]


@dataclass
class Training:
    """A process that trains the crosscoder, as the system shows it."""

    pid: int
    seed: str
    job: str
    devices: str


@dataclass
class Story:
    """What happened: results, and what was seen of jobs on the way.

    states : of the killed attempts of seed 0, the step of the state at the kill, and how SLURM
    says that they ended. devices : of both trainings while they ran beside each other. cancelled :
    how the job ended that was cancelled.
    """

    cluster: Checkout
    local: Checkout
    said: str = ""
    states: list[tuple[int, str]] = field(default_factory=list)
    devices: dict[str, str] = field(default_factory=dict)
    cancelled: str = ""


def trainings(folder: Path) -> dict[str, Training]:
    """Trainings that run in a checkout, by their seed."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().split(b"\0")
            if (
                b"train" not in words
                or b"--seed" not in words
                or os.readlink(place / "cwd") != str(folder)
            ):
                continue
            seed = words[words.index(b"--seed") + 1].decode()
            lines = (place / "environ").read_bytes().decode().split("\0")
        except (OSError, ValueError):
            continue
        known = dict(line.partition("=")[::2] for line in lines if line)
        job, devices = known.get("SLURM_JOB_ID", ""), known.get("CUDA_VISIBLE_DEVICES", "")
        found[seed] = Training(int(place.name), seed, job, devices)
    return found


def step_of(folder: Path, seed: str) -> int:
    """The step of a training's newest state; −1 where there is none."""
    for path in (folder / RESULTS / "state").glob(f"batchtopk-{seed}-*/state.h5"):
        try:
            with h5py.File(path, "r", locking=False) as file:
                return int(file.attrs["step"])
        except (OSError, KeyError):
            continue
    return -1


def ended(job: str) -> str:
    """How SLURM says that a job ended, once it has."""
    for _ in range(600):
        words = ["scontrol", "show", "job", job]
        said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        state = re.search(r"JobState=(\w+)", said)
        if state and state[1] not in ("RUNNING", "COMPLETING", "PENDING"):
            return state[1]
        time.sleep(0.2)
    raise AssertionError(f"job {job} does not end")


def kill(one: Training, folder: Path) -> int:
    """Have a training's job end at its wall time, now; the step that it leaves a state of."""
    os.kill(one.pid, signal.SIGSTOP)
    words = ["scontrol", "update", f"JobId={one.job}", "EndTime=now"]
    subprocess.run(words, check=True)
    return step_of(folder, one.seed)


@contextmanager
def started(checkout: Checkout, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A run of the workflow, ended with the block."""
    with open(checkout / "run.log", "w") as log:
        run = subprocess.Popen(
            ["snakemake", *words], cwd=checkout.folder, stdout=log,
            env=checkout.environment | {gpus.NAMED: "0,1"},  # SLURM's are no real ones
            stderr=subprocess.STDOUT, text=True, process_group=0,
        )  # fmt: skip
        try:
            yield run
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGINT)
                try:
                    run.wait(20)
                except subprocess.TimeoutExpired:
                    os.killpg(run.pid, signal.SIGKILL)


def over(run: subprocess.Popen[str], checkout: Checkout) -> bool:
    """Whether a run has ended, or hangs. How long one takes is the machine's affair."""
    quiet = time.time() - (checkout / "run.log").stat().st_mtime
    return run.poll() is not None or quiet > STANDSTILL


@pytest.fixture(scope="module")
def story(new_checkout, tmp_path_factory) -> Iterator[Story]:
    """The tiny experiment through the profile, its trainings killed, beside a run without SLURM."""
    if reason := slurm.unfit():
        pytest.fail(reason)
    slurm.install()
    cluster, local = new_checkout(), new_checkout()
    for checkout in (cluster, local):
        checkout.configure(CHANGES)
        sizes = "src/ontogeny/crosscoder/sizes.py"
        checkout.edit(sizes, "SAVE_SECONDS = 60.0", "SAVE_SECONDS = 0.0")
    story = Story(cluster, local)
    with (
        slurm.running(tmp_path_factory.mktemp("slurm")),
        started(local, "--cores", "1", *THREADS) as plain,
        started(cluster, *PROFILE, *THREADS) as run,
    ):
        killed: dict[str, int] = {}  # by job
        cancelled = ""
        while not over(run, cluster):
            time.sleep(0.05)
            if len(killed) == KILLS and cancelled:
                time.sleep(0.5)
                continue
            steps = {seed: step_of(cluster.folder, seed) for seed in "01"}
            now = (steps["0"] > max(killed.values(), default=0), steps["1"] > 0 and not cancelled)
            if not any(now) and story.devices:
                continue
            found = trainings(cluster.folder)
            if set(found) == {"0", "1"} and not story.devices:
                story.devices = {seed: one.devices for seed, one in found.items()}
            if now[0] and "0" in found and len(killed) < KILLS and found["0"].job not in killed:
                killed[found["0"].job] = kill(found["0"], cluster.folder)
            if now[1] and "1" in found:
                cancelled = found["1"].job
                subprocess.run(["scancel", cancelled], check=True)
        story.states = [(step, ended(job)) for job, step in killed.items()]
        story.cancelled = ended(cancelled) if cancelled else ""
        story.said = (cluster / "run.log").read_text()
        assert run.poll() == 0, story.said[-6000:]
        while not over(plain, local):
            time.sleep(0.5)
        assert plain.poll() == 0, (local / "run.log").read_text()[-6000:]
        yield story


def test_a_job_killed_three_times_goes_on_from_its_last_checkpoint(story):
    all_steps = CHANGES["crosscoders.batchtopk.steps"]
    assert [how for _, how in story.states] == ["TIMEOUT"] * KILLS
    steps = [step for step, _ in story.states]
    assert steps == sorted(set(steps))
    assert all(step % LOG_EVERY == 0 < step < all_steps for step in steps)
    logs = story.cluster.folder.glob(".snakemake/slurm_logs/rule_train/batchtopk_0/*.log")
    begun = []
    for log in sorted(logs, key=lambda path: int(path.stem.split("_")[-1])):
        first = re.search(r"train batchtopk seed 0: (\S+) of \S+ rows", log.read_text())
        if first:
            begun.append(first[1])
    # Each attempt begins where the state stood when the one before was killed.
    shown = [tqdm.format_sizeof(step * 256) for step in [0, *steps[:-1]]]
    assert begun[:KILLS] == shown
    assert not list((story.cluster.folder / RESULTS / "state").glob("batchtopk-0-*"))


def test_a_cancelled_job_is_submitted_again(story):
    assert story.cancelled == "CANCELLED"
    weights = story.cluster / RESULTS / "crosscoders/batchtopk/seed1/crosscoder.safetensors"
    assert weights.stat().st_size > 0


def test_a_job_that_is_submitted_again_asks_for_more(story):
    asked = re.findall(
        r"seed=0\n(?: +priority: \d+\n)? +resources: .*?mem_mb=(\d+).*? runtime=(\d+), gpu=1",
        story.said,
    )
    asked = list(dict.fromkeys(asked))[: KILLS + 1]  # what has failed is told twice
    memory, minutes = ([int(pair[i]) for pair in asked] for i in (0, 1))
    assert len(asked) == KILLS + 1
    for i in range(KILLS):
        assert memory[i + 1] == pytest.approx(1.5 * memory[i], abs=1)
        assert minutes[i + 1] == 2 * minutes[i]


def test_jobs_beside_each_other_see_different_gpus(story):
    assert sorted(story.devices.values()) == ["0", "1"]


def test_results_are_those_of_a_run_without_slurm(story):
    """To the byte, but for what tells of the machine and the time."""
    theirs, ours = (
        {
            str(path.relative_to(checkout / RESULTS)): path.read_bytes()
            for path in (checkout / RESULTS).rglob("*")
            if path.is_file()
        }
        for checkout in (story.local, story.cluster)
    )
    of_runs = re.compile(
        r"(logs|benchmarks|digests)/|\.lock$|(manifest|provenance|summary)\.json$"  # times, places
    )
    names = {name for name in theirs if not of_runs.match(name)}
    assert len(names) > 60
    assert names == {name for name in ours if not of_runs.match(name)}
    different = {name for name in names if theirs[name] != ours[name]}
    # HDF5 writes the second into a file of its latest version, and a log how fast it went.
    assert {Path(name).name for name in different} <= {"stack.h5", "metrics.csv"}
    for name in different:
        pair = [checkout / RESULTS / name for checkout in (story.local, story.cluster)]
        if name.endswith(".h5"):
            assert content(pair[0]) == content(pair[1]), name
        else:
            tables = [pd.read_csv(path).drop(columns="rows_per_second") for path in pair]
            pd.testing.assert_frame_equal(*tables, check_exact=True)
    numbers = [json.loads(files["summary.json"]) for files in (theirs, ours)]
    assert numbers[0].keys() == numbers[1].keys()
    changed = {k for k, v in numbers[0].items() if numbers[1][k] != v}
    assert changed <= {k for k in numbers[0] if k.startswith(OF_THE_MACHINE)}


def content(path: Path) -> dict[str, object]:
    """All that an HDF5 file holds, by name."""
    found: dict[str, object] = {}
    with h5py.File(path, "r") as file:
        about = {k: np.asarray(v).tolist() for k, v in file.attrs.items()}
        file.visititems(
            lambda name, item: found.update(
                {name: item[()].tobytes()} if isinstance(item, h5py.Dataset) else {}
            )
        )
    return found | {"attributes": about}
