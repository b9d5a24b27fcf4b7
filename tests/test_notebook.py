"""The notebook in docs/ runs from its first cell to its last, on experiments that are there."""

from __future__ import annotations

import importlib.util
import json
import shutil

import pytest
import yaml
from conftest import RESULTS, ROOT

import ontogeny
from ontogeny import plots
from ontogeny.files import InputError, write_text

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def runner():
    spec = importlib.util.spec_from_file_location("notebook", ROOT / "docs" / "notebook.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shown(notebook: dict) -> list[dict]:
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [output for cell in cells for output in cell["outputs"]]


@pytest.mark.slow
def test_the_notebook_runs_and_shows_tables_and_plots(finished, tmp_path, monkeypatch):
    for name in ("tiny", "other"):
        shutil.copytree(finished / RESULTS, tmp_path / name)
    config = tmp_path / "other" / "config.yaml"
    write_text(config, yaml.safe_dump(yaml.safe_load(config.read_text()) | {"name": "other"}))
    folders = json.dumps([str(tmp_path / "tiny"), str(tmp_path / "other")])
    given = {'["results/default"]': folders, "def get(self": "The first paragraph (with"}
    outputs = shown(runner().run(NOTEBOOK, given))
    kinds = [sorted(output.get("data", {"stream": 0})) for output in outputs]
    assert kinds.count(["image/png", "text/plain"]) == 5
    assert kinds.count(["text/html", "text/plain"]) == 5
    said = "".join("".join(output.get("text", "")) for output in outputs)
    assert "5 snapshots, steps 0 to 40" in said
    table = "".join(outputs[-1]["data"]["text/plain"])
    assert {"tiny", "other"} <= set(table.split())


def test_the_stored_notebook_is_whole(tmp_path):
    notebook = json.loads(NOTEBOOK.read_text())
    outputs = shown(notebook)
    assert len(outputs) >= 10
    assert all(output["output_type"] != "error" for output in outputs)
    assert "/tmp/" not in NOTEBOOK.read_text()
    assert NOTEBOOK.stat().st_size < 500_000
    counts = [cell["execution_count"] for cell in notebook["cells"] if "outputs" in cell]
    assert counts == list(range(1, len(counts) + 1))


def test_a_cell_that_fails_stores_nothing(tmp_path):
    cell = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
    path = tmp_path / "n.ipynb"
    path.write_text(json.dumps({"cells": [cell | {"source": ["1 / 0"]}]}))
    before = path.read_text()
    with pytest.raises(ZeroDivisionError):
        runner().main(str(path))
    assert path.read_text() == before
    path.write_text(json.dumps({"cells": [cell | {"source": ["1"]}]}))
    with pytest.raises(ValueError, match="no cell holds absent"):
        runner().run(path, {"absent": "x"})


@pytest.mark.slow
def test_plots_draw_the_tables_numbers(finished):
    experiment = ontogeny.open(finished / RESULTS)
    loss = plots.loss(experiment).lines[0]
    assert loss.get_ydata().tolist() == experiment.table("phases")["loss"].tolist()
    features = experiment.table("features")
    living = features[features["alive"]]
    one = int(living["feature"].iloc[0])
    strengths = experiment.table("strengths")
    own = strengths.loc[strengths["feature"] == one, "normalised_strength"]
    assert plots.lives(experiment, [one]).lines[0].get_ydata().tolist() == own.tolist()
    axis = plots.onsets(experiment, label="a")
    assert plots.onsets(experiment, axis=axis, label="b") is axis
    counted = living[living["matched"]] if living["matched"].any() else living
    assert len(axis.lines[0].get_xdata()) == counted["onset_step"].notna().sum()
    with pytest.raises(InputError, match="feature 64 has no history"):
        plots.lives(experiment, [one, 64])
