"""Locks, and file systems that have none."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from ontogeny import locks
from ontogeny.files import InputError

HOLD = "import sys\nfrom pathlib import Path\nfrom ontogeny import locks\n"
HOLD += "lock = locks.claim(Path(sys.argv[1]))\nprint('held', flush=True)\nsys.stdin.read()\n"


def test_one_run_at_a_time_and_the_lock_ends_with_it(tmp_path):
    folder = tmp_path / "mine"
    words = [sys.executable, "-c", HOLD, str(folder)]
    other = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    for _ in range(2):
        with pytest.raises(InputError) as caught:
            locks.claim(folder)
        how = f"wait for it or end it (`kill {other.pid}`)"
        assert str(caught.value) == f"{folder}: another run works here; {how}"
    other.kill()
    other.communicate()
    locks.claim(folder).close()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_worked_on_with_a_line(
    tmp_path, monkeypatch, capsys, number
):
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    locks.claim(tmp_path / "mine").close()
    said = f"{tmp_path}/mine: this file system has no locks; make sure that no other run works here"
    assert capsys.readouterr().err == said + "\n"


def test_other_errors_of_a_lock_are_none_of_these(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with pytest.raises(OSError, match="broken"):
        locks.claim(tmp_path / "mine")


def test_hdf5_takes_no_locks():
    code = "import ontogeny, os, h5py; print(os.environ['HDF5_USE_FILE_LOCKING'])"
    environment = {k: v for k, v in os.environ.items() if k != "HDF5_USE_FILE_LOCKING"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.stdout == "FALSE\n"
