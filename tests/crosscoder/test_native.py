"""The core in C++: built once, kept whole, and left out with a line where it cannot be had."""

import os
import stat
from pathlib import Path

import pytest
import torch
from conftest import tiny

from ontogeny import settings
from ontogeny.crosscoder import native

SAID = "training runs in PyTorch, which is slower"
CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty cache of extensions."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def line(capsys) -> str:
    """What was said: one line."""
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


def test_a_library_that_was_built_is_loaded_and_one_that_is_damaged_is_built_again(
    folder, monkeypatch, capfd
):
    built, loaded = [], []

    def build(name, sources, build_directory, **options):
        built.append(name)
        (Path(build_directory) / f"{name}.so").write_text("a library")

    def load(path):
        if not Path(path).exists() or Path(path).read_text() != "a library":
            raise OSError("no library")
        loaded.append(path)

    monkeypatch.setattr(native.cpp_extension, "load", build)
    monkeypatch.setattr(torch.ops, "load_library", load)
    for _ in range(3):
        assert native.library.__wrapped__() is not None
    assert (len(built), len(loaded)) == (1, 2)
    (kept,) = folder.iterdir()
    kept.write_text("half of a lib")
    assert native.library.__wrapped__() is not None
    assert len(built) == 2
    assert kept.read_text() == "a library"


def test_another_source_or_processor_is_another_library(folder, monkeypatch, tmp_path):
    names = {native._cached(["-O3"]), native._cached(["-O2"])}
    (tmp_path / "core.cpp").write_text("// another")
    monkeypatch.setattr(native, "SOURCE", tmp_path / "core.cpp")
    names.add(native._cached(["-O3"]))
    assert len(names) == 3


def test_a_compiler_that_fails_is_told_in_a_line_and_leaves_nothing(
    folder, monkeypatch, tmp_path, capsys
):
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho 'core.cpp:1: error: out of order' >&2\nexit 1\n")
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(compiler))
    assert native.library.__wrapped__() is None
    *_, last = capsys.readouterr().err.splitlines()
    assert last == f"crosscoder core: core.cpp:1: error: out of order: {SAID}"
    assert list(folder.iterdir()) == []


def test_no_compiler_is_told_in_a_line(monkeypatch, capsys):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    assert native.library.__wrapped__() is None
    assert "no C++ compiler" in line(capsys)


def test_a_processor_without_avx_is_told_in_a_line(monkeypatch, capsys):
    monkeypatch.setattr(native.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert native.library.__wrapped__() is None
    assert line(capsys) == f"crosscoder core: this processor has no AVX2: {SAID}\n"


def test_a_cache_that_cannot_be_written_is_told_in_a_line(folder, capsys):
    folder.write_text("a file where the folder should be")
    assert native.library.__wrapped__() is None
    assert SAID in line(capsys)


def test_a_full_or_noexec_cache_is_told_in_a_line(folder, monkeypatch, capfd):
    def load(*arguments, **options):
        raise OSError("failed to map segment from shared object")

    monkeypatch.setattr(native.cpp_extension, "load", load)
    assert native.library.__wrapped__() is None
    assert f"failed to map segment from shared object: {SAID}" in capfd.readouterr().err
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "served"),
    [
        ({"basis": "hybrid", "gate": "snapshot"}, True),
        ({"basis": "full", "gate": "snapshot"}, True),
        ({"basis": "full", "activation": "jumprelu"}, True),
        ({"basis": "full", "gate": "feature"}, False),  # AuxK
        ({"basis": "full", "gate": "feature", "aux_features": 0}, True),
        ({"basis": "principal", "activation": "jumprelu"}, False),
        ({"basis": "full", "activation": "relu"}, False),
    ],
)
def test_which_losses_the_core_serves(changes, served):
    c = settings.Crosscoder(inputs={"layers": [0]}, features=64, steps=1, **changes)
    assert native.serves(c, CPU, 1) is served
    assert not native.serves(c, CPU, 2)
    assert not native.serves(c, torch.device("cuda"), 1)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("k_start", 2, "k_start: 2 is below k"),
        ("k_start", 4096, "k_start: 4096 exceeds the"),
        ("refit", True, "refit: applies only to activation: jumprelu; remove it"),
        ("l0", 5, "l0: applies only to activation: jumprelu; remove it"),
        ("penalty", "per_snapshot", "penalty: applies only to activation: jumprelu; remove it"),
        ("gate", "snapshot", "gate: a gate per snapshot needs basis: hybrid or full; set it"),
    ],
)
def test_keys_that_do_not_apply_are_refused_where_they_are_written(key, value, said):
    with pytest.raises(settings.SettingsError, match=said):
        settings.load(tiny({f"crosscoders.batchtopk.{key}": value}))


def test_defaults_of_keys_that_do_not_apply_are_no_fault():
    changes = {"basis": "hybrid", "gate": "snapshot", "aux_features": None}
    s = settings.load(tiny({f"crosscoders.batchtopk.{k}": v for k, v in changes.items()}))
    c = s.crosscoders["batchtopk"]
    assert c.aux == 0
    again = settings.load(s.model_dump(mode="json"))  # as results/NAME/config.yaml has it
    assert again.crosscoders["batchtopk"] == c


@pytest.mark.skipif(not os.access("/proc/cpuinfo", os.R_OK), reason="Linux tells the processor")
def test_here_the_core_is_there():
    """All tests of the core's numbers would pass in PyTorch as well, were it not."""
    assert native.library() is not None
