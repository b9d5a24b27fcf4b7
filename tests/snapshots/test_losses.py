"""A snapshot whose held-out loss does not fit between its neighbours' is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ontogeny.figures import training
from ontogeny.snapshots import losses

# The held-out loss of a training, from its initialisation to where it hardly falls any more.
FALL = [10.8, 10.79, 10.7, 10.2, 9, 7.5, 6.5, 5.8, 5.1, 4.6, 4.2, 3.9, 3.7, 3.6, 3.55, 3.53]


def apart(values: list[float]) -> list[int]:
    return [int(i) for i in np.flatnonzero(losses.out_of_place(np.array(values)))]


@pytest.mark.parametrize("at", range(3, 12))
@pytest.mark.parametrize("of", [0, 15])
def test_weights_of_the_first_or_last_step_elsewhere(at, of) -> None:
    if abs(FALL[of] - FALL[at]) < 0.7:
        return
    swapped = list(FALL)
    swapped[at] = FALL[of] + 1e-6
    assert apart(swapped) == [at]


def test_the_first_and_the_last_snapshot_can_be_wrong_too() -> None:
    assert apart([FALL[-1], *FALL[1:]]) == [0]
    assert apart([*FALL[:-1], FALL[0]]) == [15]


@pytest.mark.parametrize(
    "values",
    [
        FALL,
        FALL[::4],
        FALL[:2],
        FALL[:3],
        [3.0, 9.0],
        [3.0, 9.0, 3.0],
        [3.0, 3.0, 3.0, 3.0],
        [8, 6, 5, 4.5, 4.2, 4.1, 4.3, 4.6, 5.0, 5.4],  # another text than it was trained on
        [3, 3.4, 3.45, 3.5],  # fine-tuned away from the text
        [10.8, 10.9, 10.7, 9, 8],  # a warm-up that begins too fast
        [4.01, 4.0, 4.02, 3.99, 4.01, 3.98, 4.0],  # a plateau
    ],
)
def test_ordinary_curves_are_left_alone(values) -> None:
    assert apart(values) == []


def test_noise_and_any_spacing_are_left_alone() -> None:
    random = np.random.default_rng(0)
    wrong = 0
    for _ in range(500):
        x = np.sort(random.uniform(0, 12, random.integers(2, 60)))
        fall = 3 + 6 / (1 + np.exp(1.2 * (x - random.uniform(2, 9))))
        wrong += bool(apart(list(fall + random.normal(0, random.choice([0, 0.01, 0.02]), len(x)))))
    assert wrong == 0


def test_a_loss_that_is_no_number_is_left_to_the_stage_that_reads_it() -> None:
    assert apart([5, 4, float("nan"), 3, 2]) == []


def written(folder: Path, values: list[float]) -> list[Path]:
    steps = [0, *(2**i for i in range(len(values) - 1))]
    paths = [folder / f"step{step}.json" for step in steps]
    for path, step, loss in zip(paths, steps, values, strict=True):
        path.write_text(json.dumps({"step": step, "loss": loss}))
    return paths


def test_the_table_and_its_sentence(tmp_path, capsys) -> None:
    swapped = list(FALL)
    swapped[8] = FALL[-1]
    losses.gather(written(tmp_path, swapped), tmp_path / "losses.csv")
    table = pd.read_csv(tmp_path / "losses.csv")
    assert table.columns.tolist() == ["step", "loss", "out_of_place"]
    assert table.loc[table["out_of_place"], "step"].tolist() == [128]
    said = capsys.readouterr().out.splitlines()
    assert said == [f"advice: {line}" for line in losses.doubts(table)]
    assert losses.doubts(table) == [
        "snapshots: the held-out loss of step 128, 3.53, is far from those of its neighbours (5.80 "
        "at step 64, 4.60 at step 256); it may hold the weights of another step: leave it out"
    ]


def test_the_training_figure_marks_it(tmp_path) -> None:
    swapped = list(FALL)
    swapped[8] = FALL[-1]
    losses.gather(written(tmp_path, swapped), tmp_path / "losses.csv")
    table = pd.read_csv(tmp_path / "losses.csv")
    table.assign(snapshot_index=range(1, 17)).to_csv(tmp_path / "phases.csv", index=False)
    levels = {f"{n}_{of}": None for n in ("unigram", "bigram") for of in ("crossing_step",)}
    levels |= {"unigram_cross_entropy": 6.0, "bigram_cross_entropy": 5.0}
    (tmp_path / "levels.json").write_text(json.dumps(levels))
    paths = [tmp_path / name for name in ("phases.csv", "levels.json", "losses.csv")]
    training.draw(None, *paths, tmp_path / "training")
    drawn = pd.read_csv(tmp_path / "training.csv")
    marked = drawn[drawn["panel"] == "out_of_place"]
    assert marked[["step", "value"]].to_numpy().tolist() == [[128, 3.53]]
    losses.gather(written(tmp_path, FALL), tmp_path / "losses.csv")
    training.draw(None, *paths, tmp_path / "training")
    assert "out_of_place" not in set(pd.read_csv(tmp_path / "training.csv")["panel"])
