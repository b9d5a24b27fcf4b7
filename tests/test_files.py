"""Files are whole or not there, also where the system cannot write."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from ontogeny import files
from ontogeny.files import (
    InputError,
    explained,
    failure,
    whole,
    whole_hdf5,
    write_table,
    write_text,
)

MEGABYTE = 1 << 20
# The largest file is limited, which the system reports as it does a full disk: in a write.
LIMITED = """
import resource, signal, sys
import numpy as np, pandas as pd
from functools import partial
from pathlib import Path
from ontogeny.files import InputError, whole, whole_hdf5, write_table
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit, kind, path = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    if kind == "rows":
        from ontogeny.activations.store import Writer
        with whole_hdf5(path) as file:
            writer = Writer(file, "activations", 4000, 512, "float16")
            for start in range(0, 4000, 250):
                writer.write(np.ones((250, 512), np.float16))
    elif kind == "datasets":
        with whole_hdf5(path, libver="latest") as file:
            file.create_dataset("x", data=np.ones(10**6), chunks=(10**4,), fletcher32=True)
            file["y"] = np.arange(10**5)
            file.attrs["z"] = "w" * 1000
    elif kind == "table":
        write_table(path, pd.DataFrame({"a": np.random.default_rng(0).random(10**6)}))
    elif kind == "tensors":
        from safetensors.numpy import save_file
        with whole(path) as draft:
            save_file({"a": np.ones(10**6)}, draft)
except InputError as error:
    print(error)
    sys.exit(1)
"""


@pytest.mark.parametrize("kind", ["rows", "datasets", "table", "tensors"])
@pytest.mark.parametrize("limit", [100, 50_000, MEGABYTE])
def test_what_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path, kind, limit):
    path = tmp_path / f"made.{'parquet' if kind == 'table' else 'bin'}"
    words = [sys.executable, "-c", LIMITED, str(limit), kind, str(path)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith(f"{path}: the file exceeds what this system allows")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path) -> Path:
    """A file system of two megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    try:
        done = subprocess.run(words, capture_output=True)
    except OSError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip("file systems can be mounted by root alone")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_one_line_and_keeps_what_was_there(small_disk):
    path = small_disk / "rows.h5"
    with whole_hdf5(path) as file:
        file["x"] = np.arange(1000)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"rows\.h5: no space is left on this disk; free some"):
        with whole_hdf5(path) as file:
            file.create_dataset("x", data=np.ones(10**6), chunks=(10**4,), fletcher32=True)
    assert path.read_bytes() == before
    assert [p.name for p in small_disk.iterdir()] == ["rows.h5"]
    with pytest.raises(InputError, match=r"t\.csv: no space is left on this disk"):
        write_table(small_disk / "t.csv", pd.DataFrame({"a": np.arange(10**6)}))


def test_a_file_system_that_cannot_be_written_to(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(InputError, match=r"/a: this file system cannot be written to"):
        write_text(small_disk / "a/b.txt", "x")
    with pytest.raises(InputError, match=r"/b\.txt: this file system cannot be written to"):
        write_text(small_disk / "b.txt", "x")


def test_files_are_read_back_as_they_were_written(tmp_path):
    path, values = tmp_path / "x.h5", np.random.default_rng(0).random((3000, 64))
    with whole_hdf5(path, libver="latest") as file:
        file.create_dataset("x", data=values, chunks=(100, 64), fletcher32=True)
        file.attrs["name"] = "value"
    with h5py.File(path) as file:
        assert np.array_equal(file["x"][:], values)
        assert file.attrs["name"] == "value"


def test_an_error_of_our_own_leaves_nothing(tmp_path):
    def rows() -> None:
        with whole_hdf5(tmp_path / "x.h5") as file:
            file["x"] = np.arange(10)
            raise ValueError("mine")

    def folder() -> None:
        with whole(tmp_path / "folder") as draft:
            draft.mkdir()
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        rows()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="mine"):
        folder()
    assert list(tmp_path.iterdir()) == []


def test_the_systems_error_is_found_in_those_of_libraries():
    full = os.strerror(errno.ENOSPC)
    for said in (
        "I/O error: No space left on device (os error 28)",
        "write failed: errno = 28, error message = 'No space left on device'",
        "[Errno 28] Error writing bytes to file",
    ):
        assert failure(RuntimeError(said)).strerror == full
    assert failure(ValueError("28 of 30")) is None
    assert explained(PermissionError(errno.EACCES, "x", "a/b")).startswith("a/b: it may not be")


@pytest.mark.parametrize("read", [files.reading, partial(files.read_hdf5, what="a file of rows")])
def test_an_intact_file_is_not_called_damaged(tmp_path, read):
    path = tmp_path / "a.h5"
    h5py.File(path, "w").close()
    with pytest.raises(InputError, match=r"a\.h5: the disk failed to read or write"), read(path):
        raise OSError(errno.EIO, "Input/output error")
    with pytest.raises(RuntimeError, match="CUDA out of memory"), read(path):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
    with pytest.raises(InputError, match=r"a\.h5: .*delete it to make it again"), read(path):
        raise ValueError("not as it was written")
