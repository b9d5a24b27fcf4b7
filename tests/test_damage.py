"""A sample of benchmarks.damage: damaged results end in a line with the file, or are right."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import RESULTS, ROOT

from benchmarks import damage

DATA = bytes(range(200))


def test_each_damage_changes_a_file():
    assert damage.flipped(DATA, 0) == damage.flipped(DATA, 0) != damage.flipped(DATA, 1)
    bits = [(a ^ b).bit_count() for a, b in zip(DATA, damage.flipped(DATA), strict=True)]
    assert sum(bits) == 10
    sizes = {name: len(change(DATA, 0)) for name, change in damage.DAMAGES.items()}
    assert sizes == {"empty": 0, "half": 100, "last byte": 199, "ten bits": 200}


@pytest.mark.slow
def test_a_sample_of_damaged_files_ends_in_a_line_or_in_right_results(finished):
    # In a process of its own: the readers are forked from it, and this one may have threads.
    words = [sys.executable, "-m", "benchmarks.damage", str(finished / RESULTS), "--no-write"]
    words += ["--sample", "12"]
    done = subprocess.run(words, cwd=ROOT, env=finished.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "kinds of files" in done.stdout
