"""Stored passages: what the tables hold is what the stored rows and the models give."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import HOSTILE
from runs import Run

from ontogeny import registry, running
from ontogeny.activations.rows import HeldOut, pieces
from ontogeny.activations.sites import Site
from ontogeny.analyses.circuits import tasks
from ontogeny.analyses.passages import measure
from ontogeny.analyses.passages.settings import Passages
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.figures import style, token_losses
from ontogeny.files import InputError

CHANGES = {
    "crosscoders.topk.basis": "full",
    "crosscoders.topk.gate": "snapshot",
    "passages": {"held_out": 3, "length": 10, "prompts": 2, "features": 4},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    made = Run(tmp_path_factory.mktemp("passages"), CHANGES)
    made.stages("corpus", "pretrain", "extract", "train", "passages")
    return made


def test_held_out_passages_have_the_activations_of_their_rows(run):
    experiment, data, section = run.map, run.map.tokens(), run.settings.section(Passages)
    table, kept = experiment.table("passages"), experiment.table("passage_features")
    assert set(table["source"]) == {"held-out text"}
    assert len(table) == 3 * 10 * 4
    assert table.groupby(["passage", "position"]).size().eq(4).all()
    assert table["loss"].notna().all()  # what stands before a passage in its block was read
    place = ["passage", "position", "step"]
    assert kept.groupby(place).size().max() == section.features
    falls = kept.groupby(place)["contribution"].apply(lambda own: own.is_monotonic_decreasing)
    assert falls.all()

    crosscoder = experiment.crosscoder()
    about = crosscoder.about
    sites = [Site(*site) for site in about.inputs]
    rows = HeldOut(experiment.path("activations"), sites, crosscoder.scales_in.numpy())
    (_, x), *_ = pieces(rows, rows.rows)
    places = rows.tokens_at(0, rows.rows)
    f = crosscoder.encode(torch.from_numpy(x), places[:, 1]).numpy()
    first, last = data.splits["held_out"]
    blocks = first + np.linspace(0, last - first - 1, 3).round().astype(int)
    row = {(int(block), int(offset)): i for i, (block, offset) in enumerate(rows.position)}
    start = data.context // 2
    steps = {step: n for n, step in enumerate(experiment.steps)}
    strength = crosscoder.strength.numpy()
    for one in kept.to_dict("records"):
        i = row[int(blocks[one["passage"]]), start + one["position"]]
        expected = f[i, one["feature"], steps[one["step"]]]
        assert one["activation"] == pytest.approx(expected, rel=0.02, abs=2e-3)
        norm = strength[one["feature"], steps[one["step"]]]
        assert one["contribution"] == pytest.approx(one["activation"] * norm, rel=1e-4)


def test_the_figure_draws_the_tables_losses(run):
    running.call(run.map, registry.figures()["passages"])
    drawn = pd.read_csv(run.map.figure("passages", "csv"))
    table = run.map.table("passages")
    np.testing.assert_allclose(drawn["loss"], table["loss"], rtol=1e-5)
    assert list(drawn["step"]) == list(table["step"])


def test_tokens_are_drawn_as_they_are(tmp_path):
    tokens = [*HOSTILE, "$x$", r"\frac{", "a very long token of many letters"]
    axis = style.new_figure(80, 80).subplots()
    table = pd.DataFrame({"position": range(len(tokens)), "token": tokens, "step": 0, "loss": 1.0})
    token_losses.draw(axis, table, 2)
    axis.figure.savefig(tmp_path / "x.png")
    drawn = [text.get_text() for text in axis.get_yticklabels()]
    assert drawn[-3:] == ["$x$", r"\frac{", "a␣very␣long␣t…"]
    assert not any(set(text) & set("\x00\x1b\u202e\u2028") for text in drawn)


def test_prompts_of_tasks_come_after_the_text_without_what_begins_them(run, tmp_path):
    experiment, data = run.map, run.map.tokens()
    end = data.end_of_text
    clean = np.array([[end, 5, 6, 7], [end, 8, 9, end], [end, 10, 11, 12]])
    answers = np.array([13, 14, 15])
    task = tasks.Task("mine", clean, clean[:, ::-1], np.array([4, 3, 4]), answers, answers)
    tasks.write(tmp_path / "tasks", [task], data.digest)
    arguments = [experiment.settings, experiment.path("trained"), experiment.path("snapshots")]
    arguments += [experiment.path("tokens"), experiment.path("tokenizer"), tmp_path / "tasks"]
    outputs = [tmp_path / "p.parquet", tmp_path / "f.parquet"]
    measure.measure(*arguments, *outputs)
    table = pd.read_parquet(outputs[0])
    own = table[table["source"] == "mine"].groupby("passage")["position"].nunique()
    assert own.to_dict() == {3: 3, 4: 2}
    before = experiment.table("passages")
    assert table[table["source"] != "mine"].reset_index(drop=True).equals(before)

    (tmp_path / "tasks").write_bytes(b"none")
    with pytest.raises(InputError, match="tasks: "):
        measure.measure(*arguments, *outputs)


def test_a_crosscoder_of_other_tokens_is_refused(run, tmp_path):
    experiment = run.map
    trained = experiment.crosscoder()
    trained.about.__dict__["tokens"] = "other"
    Crosscoder.save(trained, tmp_path / "other")
    with pytest.raises(InputError, match=r"trained on other tokens than .*; train it again"):
        measure.measure(
            experiment.settings, tmp_path / "other", experiment.path("snapshots"),
            experiment.path("tokens"), experiment.path("tokenizer"), None,
            tmp_path / "p.parquet", tmp_path / "f.parquet",
        )  # fmt: skip
