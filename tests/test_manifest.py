"""Digests of an experiment's files: what is damaged is named, and nothing is computed from it."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from runs import Run

from ontogeny import digests, manifest
from ontogeny.cli import main
from ontogeny.files import InputError, remove, write_text

TRAINED = "crosscoders/topk/seed0"
ROWS = "activations/residual.1"
# Each kind of file, and the command that reads it.
READERS = {
    "corpus/tokens.h5": ["extract", 3],
    "snapshots/step3/model.safetensors": ["extract", 3],
    "snapshots/step3/config.json": ["extract", 3],
    f"{ROWS}/step3.h5": ["stack", "residual.1"],
    f"{ROWS}/step3.rows0.h5": ["project", "residual.1", 0],
    f"{ROWS}/stack.h5": ["project", "residual.1", 0],
    "basis/residual.1.h5": ["project", "residual.1", 0],
    "basis/residual.1.rows0.h5": ["train", "topk", "--seed", 0],
    "token_tables/residual.1.h5": ["fidelity", "topk", "--seed", 0],
    f"{TRAINED}/crosscoder.safetensors": ["features"],
    f"{TRAINED}/density.parquet": ["features"],
    f"{TRAINED}/fidelity.csv": ["figure", "fidelity"],
    "features/topk/features.parquet": ["show", 0],
    "features/topk/strengths.parquet": ["figure", "peaks"],
    "features/topk/directions.csv": ["figure", "directions"],
    "features/topk/turning_point.json": ["figure", "directions"],
    "phases/levels.json": ["figure", "divergence"],
    "figures/peaks.png": [],
    "figures/peaks.pdf": [],
    "config.yaml": ["features"],
}


def flipped(data: bytes) -> bytes:
    """Ten bits, none of which is flipped twice."""
    damaged = bytearray(data)
    for place in random.Random(7).sample(range(8 * len(data)), 10):
        damaged[place // 8] ^= 1 << place % 8
    return bytes(damaged)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "last byte": lambda data: data[:-1],
    "ten bits": flipped,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Run:
    run = Run(tmp_path_factory.mktemp("made"))
    digests.begin(run.map.folder)
    write_text(run.map.path("config"), run.map.path("config").read_text())
    run.stages("corpus", "pretrain", "extract", "token_table", "basis", "project")
    run.stages("train", "fidelity", "phases", "features")
    run.command("pretrain", "--log")
    for figure in ("peaks", "directions", "fidelity", "divergence"):
        done = CliRunner().invoke(main, ["figure", figure, str(run.map.folder)])
        assert done.exit_code == 0, done.output
    return run


def ran(folder: Path, command: str, *words: object) -> tuple[int, str]:
    """Exit code and complaints of a command; it may not end in a traceback."""
    arguments = [command, folder, *words]
    if command == "figure":
        arguments = [command, words[0], folder]
    done = CliRunner().invoke(main, list(map(str, arguments)))
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    return done.exit_code, done.stderr


def test_sound_results_are_counted(made):
    done = CliRunner().invoke(main, ["verify", str(made.map.folder)])
    assert done.exit_code == 0, done.stderr
    assert re.fullmatch(r"\S+small: \d+ files, 0\.0\d+ GB, all as they were written\n", done.stdout)
    known = digests.known(made.map.folder)
    assert {made.map.folder / name for name in READERS} <= set(known)


@pytest.mark.parametrize("name", READERS)
def test_every_damage_is_found_and_nothing_is_computed_from_it(made, name):
    folder, path = made.map.folder, made.map.folder / name
    data = path.read_bytes()
    try:
        for damage, change in DAMAGES.items():
            path.write_bytes(change(data))
            code, said = ran(folder, "verify")
            assert code == 1, damage
            assert said.count("\n") == 1, said
            assert said.startswith(f"ontogeny: {path}: "), said
            if READERS[name]:
                code, said = ran(folder, *READERS[name])
                assert code == 1, (damage, said)
                assert str(path) in said, (damage, said)
    finally:
        path.write_bytes(data)
    assert ran(folder, "verify") == (0, "")


def test_the_mend_names_what_the_workflow_makes(made):
    folder = made.map.folder
    weights = folder / "snapshots/step3/model.safetensors"
    assert manifest.mend(weights, folder).endswith(
        "--force results/small/snapshots/step3` makes it again"
    )
    figure = manifest.mend(folder / "figures/peaks.png", folder)
    assert (
        "--configfile results/small/config.yaml --force results/small/figures/peaks.png`" in figure
    )


def test_what_is_missing_is_named_and_what_may_go_is_not(made, tmp_path):
    folder = tmp_path / "small"
    shutil.copytree(made.map.folder, folder)
    for path in folder.glob("activations/*/*.rows*.h5"):
        path.unlink()
    assert manifest.verify(folder, gone=["rows"]).faults == []
    assert len(manifest.verify(folder).faults) == 4
    (folder / "phases/phases.csv").unlink()
    (fault,) = manifest.verify(folder, gone=["rows"]).faults
    assert fault.startswith(f"{folder}/phases/phases.csv: missing; ")


def test_a_file_that_is_replaced_has_its_new_digest(tmp_path):
    digests.begin(tmp_path)
    write_text(tmp_path / "tables/a.csv", "1\n")
    write_text(tmp_path / "tables/a.csv", "2\n")
    manifest.check(tmp_path / "tables/a.csv")
    (tmp_path / "tables/a.csv").write_text("3\n")
    with pytest.raises(InputError, match=r"a\.csv: damaged: its content has changed since"):
        manifest.check({"table": [tmp_path / "tables/a.csv"]})
    (tmp_path / "tables/a.csv").write_text("33\n")
    with pytest.raises(InputError, match=r"has 3 of the 2 bytes that were written"):
        manifest.check(tmp_path / "tables/a.csv")


def test_without_digests_readers_say_what_is_damaged(made, tmp_path):
    folder = tmp_path / "small"
    shutil.copytree(made.map.folder, folder, ignore=shutil.ignore_patterns("digests"))
    for name, words in READERS.items():
        if not words or words[0] == "train":  # rows have digests of their own, tests/activations
            continue
        path = folder / name
        data = path.read_bytes()
        half = [] if path.suffix == ".csv" else ["half"]  # a cut CSV is a shorter table
        for damage in ["empty", *half]:
            path.write_bytes(DAMAGES[damage](data))
            code, said = ran(folder, *words)
            assert code == 1, (name, said)
            assert str(path) in said or str(path.parent) in said, (name, said)
        path.write_bytes(data)


def test_the_manifest_gathers_all_digests(made, tmp_path):
    output = tmp_path / "manifest.json"
    manifest.gather(made.map.folder, output)
    files = json.loads(output.read_text())["files"]
    assert files["corpus/tokens.h5"]["size"] == made.map.path("tokens").stat().st_size
    assert files["corpus/tokens.h5"]["xxh3"] == digests.of(made.map.path("tokens")).xxh3


def test_a_copy_that_has_lost_its_times_is_told(made, tmp_path):
    assert not digests.copied_without_times(made.map.folder)
    kept, lost = tmp_path / "kept", tmp_path / "lost"
    shutil.copytree(made.map.folder, kept)
    assert not digests.copied_without_times(kept)
    shutil.copytree(made.map.folder, lost, copy_function=shutil.copyfile)
    for path in lost.rglob("*"):
        os.utime(path, (2e9, 2e9))
    assert digests.copied_without_times(lost)
    assert "--touch --configfile" in manifest.copied(lost)


def test_what_is_removed_leaves_no_record_of_it(tmp_path):
    """A process that is killed while it records digests leaves a draft of the record."""
    digests.begin(tmp_path)
    records = tmp_path / digests.FOLDER
    for name in ("state/a/part.csv", "tables/[b].csv", "tables/c.csv"):
        write_text(tmp_path / name, "1\n")
        draft = records / name
        draft.with_name(f".{draft.name}.json.1.part").touch()
    remove(tmp_path / "state/a")
    write_text(tmp_path / "tables/[b].csv", "2\n")
    remove(tmp_path / "tables/c.csv")
    left = {str(p.relative_to(records)) for p in records.rglob("*") if p.is_file()}
    assert left == {digests.MARK, digests.PLACE, "tables/[b].csv.json"}
    assert [p.name for p in tmp_path.rglob("*.csv")] == ["[b].csv"]
    remove(tmp_path / "tables/c.csv")
