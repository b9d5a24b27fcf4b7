"""GPUs are handed out one a process, and come back however a process ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

from ontogeny import gpus

HOLD = """
import sys
from pathlib import Path
from ontogeny import gpus
print(gpus.take("auto", int(sys.argv[2]), Path(sys.argv[1])), "torch" in sys.modules, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def environment(monkeypatch):
    """One in which nothing hands GPUs out, and four are there."""
    for name in gpus.HANDED_OUT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(gpus.NAMED, "0,1,2,3")
    monkeypatch.setattr(gpus, "_held", [])


@pytest.fixture
def start(environment, tmp_path):
    """A function that starts a process that holds GPUs, and returns it and their names."""
    begun: list[subprocess.Popen[str]] = []

    def begin(count: int = 1) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path), str(count)], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        )  # fmt: skip
        begun.append(process)
        assert process.stdout is not None
        name, torch = process.stdout.readline().split()
        assert torch == "False"
        return process, name

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


def test_jobs_beside_each_other_get_a_gpu_each(start):
    assert [start()[1] for _ in range(4)] == ["0", "1", "2", "3"]
    # More jobs than GPUs share them, evenly.
    assert [start()[1] for _ in range(5)] == ["0", "1", "2", "3", "0"]


def test_a_killed_job_gives_its_gpu_back(start):
    holders = [start() for _ in range(4)]
    victim = holders[2][0]
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert start()[1] == "2"


def test_a_job_can_take_several(start):
    assert start()[1] == "0"
    assert start(2)[1] == "1,2"
    assert start(3)[1] == "3,0,1"  # none is given twice


def test_whoever_hands_gpus_out_is_obeyed(environment, monkeypatch, tmp_path):
    for name, value in (("SLURM_JOB_ID", "7"), ("LOCAL_RANK", "0"), (gpus.VISIBLE, "3")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert gpus.take("auto", locks=tmp_path) is None
    for device in ("cpu", "cuda:1"):
        assert gpus.take(device, locks=tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv(gpus.NAMED, "0")  # there is nothing to choose from
    assert gpus.take("auto", locks=tmp_path) is None
    assert gpus.VISIBLE not in os.environ


def test_gpus_are_named_by_the_drivers_tool(environment, monkeypatch, tmp_path):
    monkeypatch.delenv(gpus.NAMED)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus.present() == []
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho GPU-5a; echo GPU-77\n")
    tool.chmod(0o755)
    assert gpus.present() == ["GPU-5a", "GPU-77"]
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert gpus.present() == []


@pytest.mark.parametrize(("command", "takes"), [("phases", True), ("induction", False)])
def test_commands_that_use_the_device_take_one(command, takes, environment, tmp_path):
    """Before they look at anything else: this one then finds no snapshots."""
    shutil.copy(ROOT / "tests/tiny.yaml", tmp_path / "config.yaml")
    done = subprocess.run(
        [sys.executable, "-m", "ontogeny", command, tmp_path],
        capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert ("on GPU 0" in done.stderr) == takes


def test_what_says_that_there_is_a_gpu(environment, monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_JOB_GPUS", "0")
    assert gpus.sign() == ""  # ONTOGENY_GPUS answers for what is there
    monkeypatch.delenv(gpus.NAMED)
    monkeypatch.setattr(gpus, "DEV", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus.sign() == "SLURM_JOB_GPUS=0"
    for hidden in ("", "-1"):
        monkeypatch.setenv(gpus.VISIBLE, hidden)
        assert gpus.sign() == ""
    monkeypatch.delenv("SLURM_JOB_GPUS")
    monkeypatch.setenv(gpus.VISIBLE, "3")
    assert gpus.sign() == "CUDA_VISIBLE_DEVICES=3"
    monkeypatch.delenv(gpus.VISIBLE)
    assert gpus.sign() == ""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho GPU-5a\n")
    tool.chmod(0o755)
    assert gpus.sign() == "nvidia-smi lists one"
    (tmp_path / "nvidiactl").touch()
    assert gpus.sign() == "nvidia-smi lists one"
    (tmp_path / "nvidia0").touch()
    assert gpus.sign() == str(tmp_path / "nvidia0")
