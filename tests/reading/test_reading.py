"""Reading a text: activations are those of the stored rows, whatever the crosscoder's kind."""

from __future__ import annotations

import io
import re
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from conftest import HOSTILE
from runs import Run
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import cross_entropy

from ontogeny import cli, show
from ontogeny.activations.rows import HeldOut, pieces
from ontogeny.activations.sites import Site
from ontogeny.corpus.pieces import Vocabulary
from ontogeny.files import InputError
from ontogeny.reading import passages, terminal
from ontogeny.reading.reading import Reading
from ontogeny.reading.tables import described
from ontogeny.reading.trace import run as traced
from ontogeny.snapshots import sites

LAYERS = {"layers": [0, 2], "streams": ["residual", "mlp_out"]}
KINDS = {
    "principal, of two snapshots": {
        "snapshots.steps": [0, 4],
        "crosscoders.topk.gate": "feature",
    },
    "hybrid with a table": {
        "crosscoders.topk.basis": "hybrid",
        "crosscoders.topk.gate": "snapshot",
        "crosscoders.topk.token_table": True,
    },
    "several sites": {
        "activations.layers": LAYERS["layers"],
        "activations.streams": LAYERS["streams"],
        "crosscoders.topk.inputs": LAYERS,
        "crosscoders.topk.basis": "full",
        "crosscoders.topk.gate": "snapshot",
        "crosscoders.topk.activation": "jumprelu",
        "crosscoders.topk.sparsity": 0.3,
    },
}


def made(folder, changes) -> Run:
    run = Run(folder, changes)
    run.stages("corpus", "pretrain", "extract")
    if run.settings.crosscoders["topk"].token_table:
        run.stage("token_table")
    if run.map.basis_of("topk"):
        run.stages("basis", "project")
    run.stage("train")
    return run


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Run:
    return made(tmp_path_factory.mktemp("small"), KINDS["hybrid with a table"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_held_out_block_has_the_activations_of_its_stored_rows(kind, small, tmp_path):
    run = small if kind == "hybrid with a table" else made(tmp_path, KINDS[kind])
    experiment, data = run.map, run.map.tokens()
    crosscoder, about = experiment.crosscoder(), experiment.crosscoder().about
    block = data.take(np.arange(*data.splits["held_out"])[1:2])[0]
    passage = passages.of_ids(experiment.settings, data, block)
    snapshots = experiment.path("snapshots")
    found = traced(run.settings, crosscoder, snapshots, [passage], data.vocabulary, 3)

    inputs = [Site(*site) for site in about.inputs]
    rows = HeldOut(experiment.path("activations"), inputs, crosscoder.scales_in.numpy())
    (_, x), *_ = pieces(rows, rows.rows)
    places = rows.tokens_at(0, rows.rows)
    own = rows.position[:, 0] == 1
    f = crosscoder.encode(torch.from_numpy(x[own]), places[own, 1])
    f = (f if f.ndim == 3 else f[:, :, None].expand(-1, -1, len(about.outputs))).numpy()
    expected = np.zeros((len(block), *f.shape[1:]), np.float32)
    expected[rows.position[own, 1]] = f
    got = np.zeros_like(expected)
    got[found.row, found.feature] = found.activation
    assert (expected > 0).any()
    np.testing.assert_allclose(got, expected, atol=2e-3 * expected.max())
    norm = crosscoder.strength.numpy()
    strength = norm[found.feature] * found.activation
    np.testing.assert_allclose(found.contribution, strength, rtol=1e-5)
    assert found.steps == experiment.steps

    for i, step in enumerate(found.steps):
        model = sites.load_model(snapshots / f"step{step}", torch.device("cpu"), torch.float32)
        ids = torch.from_numpy(block.astype(np.int64))
        logits = model(input_ids=ids[None]).logits[0].detach()
        loss = cross_entropy(logits[:-1], ids[1:], reduction="none")
        np.testing.assert_allclose(found.loss[1:, i], loss, rtol=1e-4)
        assert np.isnan(found.loss[0, i])
        np.testing.assert_array_equal(found.following[:, i, 0], logits.argmax(1))
        p = logits.softmax(1).max(1).values
        np.testing.assert_allclose(found.probability[:, i, 0], p, rtol=1e-4)


def words(run: Run, count: int) -> str:
    return " ".join((run.results / "text.txt").read_text().split(" ")[:count])


def test_a_reading_is_tables_whose_columns_say_what_they_hold(small):
    text = words(small, 5)
    reading = small.map.read(text, top=2)
    tokens, features = reading.tokens, reading.features
    assert "".join(tokens.drop_duplicates("position")["token"]) == text
    count = tokens["position"].nunique()
    assert len(tokens) == count * 4
    assert list(tokens["step"][:4]) == small.map.steps
    assert tokens["loss"].notna().all()  # the token that ends a text stands before the first
    assert (tokens["probability_1"] >= tokens["probability_2"]).all()
    assert (features["activation"] > 0).all()
    assert not features.duplicated(["position", "step", "layer", "stream", "feature"]).any()
    largest = features.groupby(["position", "feature"])["share"].max()
    np.testing.assert_allclose(largest, 1)
    every = reading.everything
    assert set(every["position"]) == set(range(count))
    assert every["feature"].notna().sum() == len(features)
    for table in ("tokens", "features", "everything"):
        assert all(reading.columns(table).values()), reading.columns(table)
        assert list(reading.columns(table)) == list(getattr(reading, table).columns)


def test_since_is_the_first_step_of_the_stretch_that_goes_on(small):
    reading = small.map.read(words(small, 6))
    table = reading.features
    for step in small.map.steps:
        since = reading.since(step)
        wide = table.pivot_table(index=["position", "feature"], columns="step", values="share")
        wide = wide.reindex(columns=small.map.steps).fillna(0)
        for (position, feature), share in wide.iterrows():
            row = int(np.flatnonzero(reading.trace.position == position)[0])
            there = [s for s in small.map.steps if s <= step]
            while there and share[there[-1]] >= 0.5:
                first = there.pop()
            expected = None if share[step] < 0.5 else first
            assert since.get((row, feature)) == expected


def test_names_and_kinds_come_from_the_tables_that_are_there(small):
    table = pd.DataFrame({"feature": [3, 5], "name": ["a word", ""], "rule": ["token", ""]})
    kinds = pd.DataFrame({"feature": [3, 5], "kind": ["context", "none"]})
    both = described({"names": table, "kinds": kinds})
    assert both.loc[3].to_list() == ["a word", "context"]
    one = described({"kinds": kinds}).reindex([5, 7]).fillna("")
    assert one.to_numpy().tolist() == [["", "none"], ["", ""]]
    assert described({}).reindex([1]).fillna("").to_numpy().tolist() == [["", ""]]


def said(run: Run, *words: str, status: int = 0, stdin: str | None = None) -> str:
    given = ["read", str(run.map.folder), *words]
    done = CliRunner(env={"COLUMNS": "100"}).invoke(cli.main, given, input=stdin)
    assert done.exit_code == status, done.output
    return done.output


def test_the_command_shows_losses_predictions_and_features(small):
    text = words(small, 4)
    reading = small.map.read(text)
    shown = said(small, text)
    assert shown == said(small, "-", stdin=text)
    header = next(line for line in shown.splitlines() if line.startswith("token"))
    assert header.split()[1:5] == ["0", "1", "3", "4"]
    last = reading.tokens[reading.tokens["step"] == 4]
    for row in last.to_dict("records"):
        token = row["token"].replace(" ", "␣")
        assert re.search(rf"^{re.escape(token)} +.*{row['loss']:.2f}  ", shown, re.MULTILINE)
    best = reading.features[reading.features["step"] == 4].groupby("position").head(1)
    for row in best.to_dict("records"):
        assert f"#{row['feature']} {row['contribution']:.2g}" in shown
    long = said(small, text, "--long", "--step", "1", "--step", "3", "--features", "1")
    assert long.count("step 1: ") == long.count("step 3: ") == last["position"].nunique()
    assert re.search(r"#\d+ +\d+\.\d\d  f +\d+\.\d\d  (since step \d|below half by now) ", long)


def test_csv_holds_everything(small, tmp_path):
    text = words(small, 4)
    told = said(small, text, "--csv", str(tmp_path / "all.csv"), "--predictions", "5")
    table = pd.read_csv(tmp_path / "all.csv", keep_default_na=False)
    expected = small.map.read(text).everything
    assert f"all.csv: {len(expected)} rows" in told
    assert list(table.columns) == list(expected.columns)
    assert list(table["token"]) == list(expected["token"])
    own = table["contribution"].replace("", "nan").astype(float)
    np.testing.assert_allclose(own, expected["contribution"], rtol=1e-5)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "the text has no tokens; write at least one word"),
        (
            "word " * 99,
            r"the text has \d+ tokens, but a context holds only 31; shorten it, .* first \d+",
        ),
        ("a\udc80b", "not valid Unicode"),
    ],
)
def test_a_text_that_cannot_be_read_is_told_in_a_line(small, text, told):
    with pytest.raises(InputError, match=told) as caught:
        small.map.read(text)
    assert "\n" not in str(caught.value)


def test_the_part_that_the_tokenizer_does_not_know_is_named(small, tmp_path):
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / "t.json"))
    data = small.map.tokens()
    with pytest.raises(InputError, match=r"no token for 'ö', characters 2 to 3 of the text"):
        passages.of_text(small.settings, data, tmp_path / "t.json", "a ö b")
    fine = passages.of_text(small.settings, data, tmp_path / "t.json", "a b")
    assert fine.ids.tolist() == [data.end_of_text, 1, 2]
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(InputError, match="not a tokenizer; delete it"):
        passages.of_text(small.settings, data, tmp_path / "t.json", "a b")


def test_what_is_not_there_yet_is_told_with_what_makes_it(small, tmp_path):
    folder = tmp_path / "small"
    shutil.copytree(small.map.folder, folder)
    copy = type(small.map).open(folder)
    shutil.rmtree(copy.path("snapshot", step=3))
    with pytest.raises(
        InputError, match=rf"steps 3 were removed, .* `ontogeny snapshot {folder} 3`"
    ):
        copy.read("a word")
    shutil.rmtree(copy.path("trained"))
    with pytest.raises(InputError, match=r"none yet; `snakemake --cores 2 --configfile .*` trains"):
        copy.read("a word")
    with pytest.raises(InputError, match="no crosscoder; there are"):
        small.map.read("a word", "other")


@pytest.mark.parametrize("width", [24, 60, 120])
def test_hostile_tokens_show_as_text_and_no_line_is_too_wide(small, width):
    reading = small.map.read(words(small, 6))
    tokens = [HOSTILE[i % len(HOSTILE)].encode() for i in range(len(reading.vocabulary.tokens))]
    names = pd.DataFrame({"feature": range(48), "name": [HOSTILE[4]] * 48})
    hostile = Reading(
        reading.trace, Vocabulary(tokens), described({"names": names}), reading.source
    )
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        show.write(list(terminal.lines(hostile, terminal.Wanted(), width)), width)
    stream.flush()
    plain = stream.buffer.getvalue().decode()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\u2028]", plain)
    assert r"\x00\x1b[31m" in re.sub(r"\s", "", plain)
    assert max(show.cells(line) for line in plain.splitlines()) <= width


def test_a_feature_that_is_taken_out_takes_its_part_along(small):
    reading = small.map.read(words(small, 6))
    step, layer = 3, 1
    crosscoder = small.map.crosscoder()
    n = small.map.steps.index(step)
    own = reading.features[reading.features["step"] == step]
    feature = int(own.loc[own["contribution"].idxmax(), "feature"])
    table = reading.ablate(feature, step)

    pairs = reading.trace.feature == feature
    f = torch.zeros(len(reading.trace.ids))
    f[reading.trace.row[pairs]] = torch.from_numpy(reading.trace.activation[pairs, n])
    part = f[:, None] * crosscoder.W_dec[feature, n] / crosscoder.scales_out[n]
    folder = small.map.path("snapshot", step=step)
    model = sites.load_model(folder, torch.device("cpu"), torch.float32)
    model.gpt_neox.layers[layer].register_forward_hook(lambda m, a, out: out - part)
    ids = torch.from_numpy(reading.trace.ids)
    with torch.no_grad():
        logits = model(input_ids=ids[None]).logits[0]
    expected = cross_entropy(logits[:-1], ids[1:], reduction="none")
    np.testing.assert_allclose(table["loss_without"], expected, rtol=1e-4)
    with_it = reading.tokens.loc[reading.tokens["step"] == step, "loss"]
    np.testing.assert_allclose(table["loss"], with_it, rtol=1e-4)
    assert (table["loss"] - table["loss_without"]).abs().max() > 1e-4
    assert table["divergence"].max() > 0

    idle = set(range(48)) - set(reading.trace.feature)
    unchanged = reading.ablate(min(idle), step)
    np.testing.assert_allclose(unchanged["loss_without"], unchanged["loss"], rtol=1e-6)
    with pytest.raises(InputError, match="no feature 48; they are numbered 0 to 47"):
        reading.ablate(48, step)
    with pytest.raises(
        InputError, match=r"has 0 output sites at step 2; choose a step from \[0, 1, 3"
    ):
        reading.ablate(1, 2)
