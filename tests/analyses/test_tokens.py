"""What is measured of token means, against plain loops on tables that are made up."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import tiny

from ontogeny import settings
from ontogeny.activations.table import FORMAT
from ontogeny.analyses.tokens import figure, measure, numbers

STEPS, D = [0, 2, 8, 20, 40], 6


@pytest.fixture
def tables(tmp_path) -> tuple[Path, np.ndarray, np.ndarray]:
    """A file of tables with a pair of tokens that part at the third snapshot; T, and counts."""
    rng = np.random.default_rng(1)
    table = rng.normal(size=(len(STEPS), 8, D)).astype(np.float32)
    table[:, -1] *= 0.1
    for i in range(2):
        table[i, 3] = table[i, -1] + 2 * (table[i, 2] - table[i, -1])
    count = np.array([400, 20, 60, 25, 19, 3, 90])
    with h5py.File(tmp_path / "residual.0.h5", "w") as file:
        file.attrs.update({"format": FORMAT, "steps": STEPS})
        file["token"], file["count"] = np.arange(7), count
        file["table"] = table
        for name in ("explained", "explained_by_pairs", "left_norm"):
            file[name] = np.array([0.9, 0.3, 0.5, 0.6, 0.7], np.float32)
    return tmp_path / "residual.0.h5", table.astype(float), count


def test_the_measures_are_those_of_a_plain_loop(tables, tmp_path):
    path, table, count = tables
    s = settings.load(tiny())
    measure.measure(s, [path], tmp_path / "means.csv")
    found = pd.read_csv(tmp_path / "means.csv")
    assert found["snapshot_index"].tolist() == [1, 2, 3, 4, 5]
    assert found["step"].tolist() == STEPS

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    for i in range(len(STEPS)):
        apart, last = table[i, :-1] - table[i, -1], table[-1, :-1] - table[-1, -1]
        rows = [x for x in range(7) for _ in range(count[x])]
        norm = np.mean([np.linalg.norm(apart[x]) for x in rows])
        assert found["norm"][i] == pytest.approx(norm, rel=1e-5)
        turned = np.mean([cosine(apart[x], last[x]) for x in rows])
        assert found["cosine_last"][i] == pytest.approx(turned, rel=1e-5)
        known = [x for x in range(7) if count[x] >= 20]
        closest = [max(cosine(apart[x], apart[y]) for y in known if y != x) for x in known]
        assert found["nearest_cosine"][i] == pytest.approx(np.median(closest), rel=1e-5)
        assert found["distinct"][i] == np.mean(np.array(closest) < 0.9)
    assert found["distinct"].tolist()[:2] == [0.6, 0.6]
    assert found["distinct"][2] == 1

    gathered = numbers.of_place(found)
    assert gathered["token_means_distinct_step"] == 8
    assert gathered["token_table_least_step"] == 2
    figure.draw(s, tmp_path / "means.csv", tmp_path / "tokens")
    drawn = pd.read_csv(tmp_path / "tokens.csv")
    assert set(drawn["series"]) >= {"explained", "distinct", "cosine_last"}
    assert len(drawn) == 6 * len(STEPS)
    said = figure.title(found)
    assert "90% of the variance at step 0, 30% at step 2 and 70% at step 40" in said


@pytest.mark.parametrize(
    ("values", "step"),
    [([0.8, 0.9, 1], 0), ([0.8, 0.1, 0.7], 20), ([0.1, 0.8, 0.6], None), ([np.nan, 1, 1], 8)],
)
def test_the_step_from_which_on_a_level_is_kept(values, step):
    assert numbers.since(np.array([0, 8, 20]), np.array(values), 0.7) == step
