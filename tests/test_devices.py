"""Where nothing can be compiled, training goes on eagerly, with one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
