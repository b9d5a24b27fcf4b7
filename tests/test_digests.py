"""Digests of an experiment's files: what is reported as changed, and what is left out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from benchmarks import digests

STRENGTHS = "features/batchtopk/strengths.parquet"


@pytest.fixture
def made(tmp_path) -> Path:
    """An experiment's folder with a file of each kind."""
    folder = tmp_path / "results"
    for name in ("figures", "features/batchtopk", "crosscoders/seed0", "logs", "pretrain/archive"):
        (folder / name).mkdir(parents=True)
    rows = pd.DataFrame({"feature": [0, 1, 2], "strength": [0.5, np.nan, 1.5], "kind": list("abc")})
    rows.to_parquet(folder / STRENGTHS)
    rows.to_csv(folder / "figures/peaks.csv", index=False)
    log = pd.DataFrame({"step": [50, 60], "loss": [2.0, 1.0], "rows_per_second": [9e3, 8e3]})
    log.to_csv(folder / "crosscoders/seed0/metrics.csv", index=False)
    log.to_csv(folder / "pretrain/log.csv", index=False)
    numbers = pd.DataFrame({"quantity": ["final_loss", "wall_seconds_train"], "mean": [1.0, 20.0]})
    numbers.to_csv(folder / "numbers.csv", index=False)
    tensors = {"W_dec": np.ones((2, 3), np.float32), "b_dec": np.zeros(3, np.float32)}
    save_file(tensors, folder / "crosscoders/seed0/crosscoder.safetensors")
    write_json(folder / "summary.json", {"final_loss": 3.0, "wall_seconds_train": 4.0})
    with h5py.File(folder / "stack.h5", "w") as file:
        file["held_out/activations"] = np.arange(12, dtype=np.float16).reshape(4, 3)
        file["words"] = ["one", "two"]
        file.attrs.update({"steps": [0, 8], "ontogeny": "0.1.0", "format": 1})
    for name in ("figures/peaks.pdf", "logs/train.log", "pretrain/archive/log.json", "words.js"):
        (folder / name).write_text("[]")
    return folder


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value))


def changed(folder: Path, change) -> list[str]:
    """What is reported once a change is made."""
    before = digests.record(folder)
    change()
    return list(digests.differences(before, digests.record(folder)))


def test_what_is_recorded(made):
    record = digests.record(made)
    assert list(record) == [
        "crosscoders/seed0/crosscoder.safetensors", "crosscoders/seed0/metrics.csv", STRENGTHS,
        "figures/peaks.csv", "numbers.csv", "pretrain/log.csv", "stack.h5", "summary.json",
        "words.js",
    ]  # fmt: skip
    assert list(record["crosscoders/seed0/metrics.csv"]) == ["step", "loss"]
    assert list(record["summary.json"]) == ["final_loss"]
    assert list(record[STRENGTHS]) == ["feature", "strength", "kind"]
    assert set(record["stack.h5"]) == {"@format", "@steps", "held_out/activations", "words"}
    assert record == digests.record(made)


def test_a_changed_value_is_reported(made):
    table = pd.read_parquet(made / STRENGTHS)
    table.loc[2, "strength"] = np.nextafter(1.5, 2)
    assert changed(made, lambda: table.to_parquet(made / STRENGTHS)) == [
        f"{STRENGTHS}: strength differs"
    ]
    peaks = made / "figures/peaks.csv"
    text = peaks.read_text().replace("1.5", "1.50")
    assert changed(made, lambda: peaks.write_text(text)) == ["figures/peaks.csv: strength differs"]
    weights = made / "crosscoders/seed0/crosscoder.safetensors"
    tensors = load_file(weights)
    tensors["W_dec"][1, 2] = -1
    assert changed(made, lambda: save_file(tensors, weights)) == [
        "crosscoders/seed0/crosscoder.safetensors: W_dec differs"
    ]
    summary = {"final_loss": 3.5, "wall_seconds_train": 4.0}
    assert changed(made, lambda: write_json(made / "summary.json", summary)) == [
        "summary.json: final_loss differs"
    ]


@pytest.mark.parametrize(
    ("name", "value", "reported"),
    [
        ("held_out/activations", np.float16(7), "held_out/activations differs"),
        ("words", "three", "words differs"),
    ],
)
def test_a_changed_dataset_is_reported(made, name, value, reported):
    def change():
        with h5py.File(made / "stack.h5", "r+") as file:
            file[name][1] = value

    assert changed(made, change) == [f"stack.h5: {reported}"]


def test_types_and_attributes_are_reported(made):
    table = pd.read_parquet(made / STRENGTHS).astype({"feature": "int32"})
    assert changed(made, lambda: table.to_parquet(made / STRENGTHS)) == [
        f"{STRENGTHS}: feature differs"
    ]

    def change():
        with h5py.File(made / "stack.h5", "r+") as file:
            file.attrs["steps"] = [0, 9]

    assert changed(made, change) == ["stack.h5: @steps differs"]


def test_a_renamed_column_is_reported(made):
    table = pd.read_parquet(made / STRENGTHS).rename(columns={"strength": "norm"})
    assert changed(made, lambda: table.to_parquet(made / STRENGTHS)) == [
        f"{STRENGTHS}: strength is missing"
    ]
    more = pd.read_csv(made / "figures/peaks.csv").assign(peak=1)
    assert changed(made, lambda: more.to_csv(made / "figures/peaks.csv", index=False)) == [
        "figures/peaks.csv: peak is new"
    ]


def test_missing_and_new_files_are_reported(made):
    before = digests.record(made)
    (made / STRENGTHS).rename(made / "features/strengths.parquet")
    assert list(digests.differences(before, digests.record(made))) == [
        f"{STRENGTHS}: missing",
        "features/strengths.parquet: new",
    ]


def test_times_versions_and_pictures_are_not(made):
    def change():
        metrics = made / "crosscoders/seed0/metrics.csv"
        pd.read_csv(metrics).assign(rows_per_second=1.0).to_csv(metrics, index=False)
        numbers = pd.DataFrame({"quantity": ["final_loss", "wall_seconds"], "mean": [1.0, 21.0]})
        numbers.to_csv(made / "numbers.csv", index=False)
        write_json(made / "summary.json", {"final_loss": 3.0, "disk_bytes": 5})
        (made / "figures/peaks.pdf").write_text("drawn on another day")
        write_json(made / "provenance.json", {"commit": "0"})
        with h5py.File(made / "stack.h5", "r+") as file:
            file.attrs["ontogeny"] = "0.2.0"

    assert changed(made, change) == []


def test_the_command(made, tmp_path):
    def run(*words: str):
        return CliRunner().invoke(digests.main, [str(made), *words])

    written = str(tmp_path / "before.json")
    assert run("--write", written).exit_code == 0
    same = run("--against", written)
    assert (same.exit_code, same.output) == (0, f"all 9 files are as in {written}\n")
    shutil.rmtree(made / "features")
    other = run("--against", written)
    assert (other.exit_code, other.output) == (1, f"{STRENGTHS}: missing\n")
