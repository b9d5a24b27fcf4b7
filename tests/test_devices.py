"""Where nothing can be compiled, training goes on eagerly, with one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ontogeny import devices, gpus
from ontogeny.files import InputError

CODE = """
import os, sys, torch
from ontogeny import devices
devices.find_compiled()
def twice(x):
    return x * 2
def thrice(x):
    return x * 3
cpu = torch.device("cpu")
for function in (twice, thrice):
    call = devices.compiled(function, cpu)
    print(call(torch.ones(3)).tolist(), call(torch.ones(3)).tolist())
"""
RIGHT = "[2.0, 2.0, 2.0] [2.0, 2.0, 2.0]\n[3.0, 3.0, 3.0] [3.0, 3.0, 3.0]\n"


def said(folder: Path, **environment: str) -> str:
    """What a process that compiles two functions says on stderr; both have to be right."""
    given = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(folder)} | environment
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=given)
    assert done.stdout == RIGHT, done.stderr
    return done.stderr


def test_a_compiler_that_fails(tmp_path):
    line = said(tmp_path, CXX="/bin/false")
    assert line.count("\n") == 1
    assert line.endswith(": training runs eagerly, which is slower\n")
    assert "/bin/false" in line


@pytest.mark.parametrize("options", ["noexec", "size=16k"])
def test_a_cache_that_is_full_or_that_nothing_can_be_run_from(tmp_path, options):
    words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(tmp_path)]
    if os.geteuid() or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("file systems can be mounted by root alone")
    try:
        line = said(tmp_path)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert line.count("\n") == 1
    assert line.startswith("torch.compile: ")
    assert line.endswith(": training runs eagerly, which is slower\n")


def test_a_cache_that_cannot_be_made_is_replaced(tmp_path):
    line = said(Path("/proc/nowhere"), TMPDIR=str(tmp_path))
    assert line.startswith("TORCHINDUCTOR_CACHE_DIR: /proc/nowhere cannot be written to (")
    assert line.count("\n") == 1
    assert list(tmp_path.glob("ontogeny-compiled-*"))


@pytest.fixture
def no_cuda(monkeypatch, tmp_path):
    """A machine without a GPU, as torch and the driver's tool see it."""
    for name in (gpus.NAMED, gpus.VISIBLE, *gpus.ALLOCATED):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(gpus, "DEV", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return tmp_path / "nvidia-smi"


def test_auto_is_the_processor_only_where_nothing_says_gpu(no_cuda, monkeypatch):
    assert devices.choose("auto") == devices.choose("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match=r"^device: cuda:1: a GPU is asked for that torch cannot"):
        devices.choose("cuda:1")
    monkeypatch.setenv("SLURM_JOB_GPUS", "2")
    assert devices.choose("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(InputError, match=r"a GPU \(SLURM_JOB_GPUS=2\) .* has no CUDA; .*: cpu to"):
        devices.choose("auto")


def test_an_unusable_gpu_is_told_with_driver_and_wheel(no_cuda, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_GPUS", "2")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(InputError, match=r"CUDA 13\.0, .* driver of 580 or later; no driver answe"):
        devices.choose("auto")
    no_cuda.write_text("#!/bin/sh\necho 535.104.05\n")
    no_cuda.chmod(0o755)
    with pytest.raises(InputError, match=r"580 or later; the driver here is 535\.104\.05; ask for"):
        devices.choose("auto")
    no_cuda.write_text("#!/bin/sh\necho 580.65.06\n")
    with pytest.raises(InputError, match=r"580\.65\.06; see what nvidia-smi says \(CUDA: .*\), or"):
        devices.choose("auto")


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.choose("cuda:1") == torch.device("cuda:1")
    with pytest.raises(InputError, match=r"cuda:2 is not there; .* cuda:0 to cuda:1$"):
        devices.choose("cuda:2")


def test_about_a_device_says_what_is_computed_in(monkeypatch):
    cpu = "cpu (the processor): models run in bfloat16, crosscoders' products are in float32"
    assert devices.about("cpu", "bfloat16", "high") == cpu
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    said = devices.about("auto", "auto", "high")
    assert said == "cuda (NVIDIA A100): models run in bfloat16, crosscoders' products are in TF32"
    assert devices.about("auto", "auto", "highest").endswith("products are in float32")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    assert devices.about("auto", "auto", "high").endswith("products are in float32")
