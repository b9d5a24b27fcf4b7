"""Which positions have a row, and what is told of those that should have none."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from runs import Run, small
from safetensors.torch import load_file, save_file

from ontogeny import doubts, settings
from ontogeny.activations import norms, order, outliers
from ontogeny.activations.rows import RowPaths
from ontogeny.activations.sites import Site, rows_path
from ontogeny.activations.streamed import Streamed
from ontogeny.corpus.build import Tokens
from ontogeny.corpus.marks import Marks
from ontogeny.corpus.shares import fillers
from ontogeny.files import InputError
from ontogeny.settings import SettingsError

V, CONTEXT = 50, 16
MARKS = {"end_of_text": 0, "bos": 1, "padding": 2, "special": [0, 1, 2, 3]}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> Tokens:
    """Random ids of all kinds, in a file as the corpus stage writes it."""
    path = tmp_path_factory.mktemp("tokens") / "tokens.h5"
    ids = np.random.default_rng(0).integers(0, V, (30, CONTEXT)).astype(np.uint16)
    with h5py.File(path, "w") as file:
        file.create_dataset("tokens", data=ids, chunks=(2, CONTEXT))
        about: dict[str, Any] = {"vocabulary": V, "tokenizer": "", "corpus": "", "digest": "t"}
        about |= {"held_out": (0, 6), "train": (6, 30), "pretrain": (30, 30)} | MARKS
        file.attrs.update(about)
    return Tokens(path)


@pytest.mark.parametrize(
    ("leave_out", "ids"),
    [
        (["bos"], {1}),
        (["padding", "end_of_text"], {0, 2}),
        (["special"], {0, 1, 2, 3}),
        ([7, "9"], {7, 9}),
        ([{"ids": [7, "8"]}, "bos", "first"], {1, 7, 8}),
    ],
)
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_named_positions_have_no_row_and_all_others_one(tokens, leave_out, ids, split):
    a = settings.Activations.model_validate({"layers": [0], "leave_out": leave_out, "window": 64})
    rows = order.Order(tokens, split, a)
    first, last = tokens.splits[split]
    kept = ~np.isin(tokens.take(np.arange(first, last)), list(ids))
    kept[:, 0] &= "first" not in leave_out
    expected = np.argwhere(kept) + np.array([first, 0])
    found = np.concatenate([rows.position(window) for window in range(len(rows.windows))])
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, expected.tolist()))
    assert rows.rows == kept.sum()


def test_positions_above_the_bound_have_no_row(tokens):
    over = np.zeros((30, CONTEXT), bool)
    over[7, 3] = over[2, 5] = True
    a = settings.Activations(layers=[0], leave_out=[], leave_out_norm=10.0)
    for split, place in (("train", [7, 3]), ("held_out", [2, 5])):
        rows = order.Order(tokens, split, a, over)
        assert rows.rows == CONTEXT * tokens.size(split) - 1
        assert place not in rows.position(0).tolist()


def test_what_cannot_be_left_out_is_one_line(tokens):
    none = Marks(end=0)
    with pytest.raises(InputError, match="the tokenizer has no padding token; remove padding, or"):
        none.ids(["padding"], V)
    with pytest.raises(
        InputError, match=r"leave_out: 50 is not an id of the tokenizer, .* below 50"
    ):
        none.ids([50], V)
    assert none.ids(["end_of_text", "first", "special"], V) == [0]
    a = settings.Activations.model_validate({"layers": [0], "leave_out": list(range(V))})
    with pytest.raises(InputError, match="leave_out: no row of the train blocks remains"):
        order.Order(tokens, "train", a)
    for given in (["nothing"], [-1], [{"ids": 3}], [{"id": [3]}]):
        with pytest.raises(SettingsError, match=r"^activations\.leave_out\.0"):
            small(Path("text.txt"), {"activations.leave_out": given})
    with pytest.raises(SettingsError, match="trained here has no padding token; remove it"):
        small(Path("text.txt"), {"activations.leave_out": ["padding"]})


# What is found in rows


def drawn(times: float, where: np.ndarray) -> torch.Tensor:
    """Random rows, of which some have so many times the norm, in one direction."""
    rows = torch.randn(len(where), 24, generator=torch.Generator().manual_seed(0))
    rows[torch.from_numpy(where), 3] = times * 24**0.5
    return rows.half()


OFFSET = np.tile(np.arange(CONTEXT), 500)
TOKEN = np.random.default_rng(1).integers(0, 40, len(OFFSET))


@pytest.mark.parametrize(
    ("where", "kind", "number"),
    [
        (OFFSET == 0, "position", 0),
        (OFFSET == 5, "position", 5),
        (TOKEN == 11, "id", 11),
        ((TOKEN % 9 == 0) & (OFFSET % 7 == 3) & (np.arange(len(OFFSET)) % 3 == 0), "norm", None),
    ],
)
@pytest.mark.parametrize("times", [12.0, 130.0])
def test_rows_of_another_norm_are_found(where, kind, number, times):
    (found,) = outliers.find(drawn(times, where), OFFSET, TOKEN)
    assert found["kind"] == kind
    assert number in (None, found["number"])
    assert found["times"] == pytest.approx(times, rel=0.1)
    assert found["share"] > 0.4


def test_two_kinds_of_outliers_are_told_apart():
    rows = drawn(100.0, OFFSET == 0)
    rows[torch.from_numpy(TOKEN == 11), 7] = 150.0
    found = outliers.find(rows, OFFSET, TOKEN)
    assert {(each["kind"], each["number"]) for each in found} == {("position", 0), ("id", 11)}


@pytest.mark.parametrize("times", [1.0, 2.5])
def test_ordinary_rows_raise_no_alarm(times):
    assert outliers.find(drawn(times, OFFSET == 0), OFFSET, TOKEN) == []
    assert outliers.find(torch.zeros(100, 8), OFFSET[:100], TOKEN[:100]) == []


# Ids that fill blocks


def padded(share: float, left: bool = False) -> np.ndarray:
    """Blocks of Zipf's ids, which end (or begin) with id 49."""
    rng = np.random.default_rng(2)
    ids = np.minimum(rng.zipf(1.5, (400, 64)), 48)
    for block, length in zip(ids, rng.binomial(64, share, 400), strict=True):
        block[slice(0, length) if left else slice(64 - length, 64)] = 49
    return ids


@pytest.mark.parametrize("share", [0.1, 0.3, 0.62, 0.9])
@pytest.mark.parametrize("left", [False, True])
def test_padding_is_found_by_what_it_does(share, left):
    ((number, found),) = fillers(padded(share, left), [])
    assert number == 49
    assert found == pytest.approx(share, abs=0.03)
    assert fillers(padded(share, left), [49]) == []


def test_frequent_tokens_of_ordinary_text_raise_no_alarm():
    code = Path(doubts.__file__).read_bytes() * 2  # characters, a fifth of them spaces
    letters = np.frombuffer(code, np.uint8)[: len(code) // 64 * 64].reshape(-1, 64).astype(int)
    assert fillers(letters, []) == []
    assert fillers(padded(0.0), []) == []
    bases = np.random.default_rng(0).choice(4, (200, 64), p=[0.4, 0.2, 0.2, 0.2])
    assert fillers(bases, []) == []
    named = padded(0.0)
    named[:, ::20] = 49
    assert fillers(named, []) == []
    assert fillers(named, [], padding=49)[0][0] == 49


# The whole way: a snapshot with a sink


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Run:
    """The small experiment as far as its snapshots; at one, a frequent token is a sink."""
    run = Run(tmp_path_factory.mktemp("model"))
    run.stages("corpus", "pretrain")
    path = run.map.path("snapshot", step=run.map.steps[2]) / "model.safetensors"
    weights = load_file(path)
    weights["gpt_neox.embed_in.weight"][sink(run)] *= 300
    save_file(weights, path, {"format": "pt"})
    return run


def sink(run: Run) -> int:
    """The id of a frequent token, which does not end texts."""
    text = Tokens(run.map.path("tokens"))
    return int(np.bincount(text.split("train").ravel())[1:].argmax()) + 1


def made(model: Run, folder: Path, changes: dict[str, Any]) -> Run:
    run = Run(folder, changes)
    for name in ("corpus", "snapshots"):
        shutil.copytree(model.map.folder / name, run.map.folder / name)
    return run


@pytest.mark.parametrize("mode", ["cached", "streamed"])
def test_a_sink_is_told_with_its_mend(model, mode, tmp_path):
    run = made(model, tmp_path, {"activations.mode": mode})
    run.stage("extract")
    (line,) = [line for line in doubts.found(run.map) if "median norm" in line]
    assert line.startswith("residual.1 at step 3: the token of id")
    assert f"set activations.leave_out: [end_of_text, {sink(run)}]" in line
    with h5py.File(run.map.path("held_out", site="residual.1", step=3)) as file:
        assert np.isfinite(file.attrs["norm_by_offset"][1:]).all()
    (tmp_path / "mended").mkdir()
    mend = {"activations.mode": mode, "activations.leave_out": ["end_of_text", sink(run)]}
    mended = made(model, tmp_path / "mended", mend)
    mended.stage("extract")
    assert doubts.found(mended.map) == []


def test_a_bound_on_the_norm_leaves_out_the_same_positions_everywhere(model, tmp_path):
    run = made(model, tmp_path, {"activations.leave_out_norm": 10})
    for step in run.map.steps:
        run.command("extract", step, "--norms")
    run.stage("extract")
    assert doubts.found(run.map) == []
    number, positions = sink(run), []
    for step in run.map.steps:
        with h5py.File(rows_path(run.map.path("held_out", site="residual.1", step=step), 0)) as f:
            assert not (f["token"][:, 1] == number).any()
            positions.append(f["position"][:])
    assert all(np.array_equal(positions[0], other) for other in positions[1:])
    text = Tokens(run.map.path("tokens"))
    ordinary = text.split("train") != text.end_of_text
    assert len(positions[0]) == (ordinary & (text.split("train") != number)).sum()

    streamed = run.settings.model_copy(
        update={"activations": run.settings.activations.model_copy(update={"mode": "streamed"})}
    )
    paths = RowPaths(run.map.path("activations"), snapshots=run.map.path("snapshots"),
                     tokens=run.map.path("tokens"), norms=run.map.path("norms"))  # fmt: skip
    rows = Streamed(streamed, [Site(3, 1, "residual")], paths, torch.device("cpu"))
    assert rows.rows == len(positions[0])
    assert not (rows.tokens_at(0, rows.rows)[:, 1] == number).any()


def test_norms_that_are_missing_or_of_another_bound_are_one_line(model, tmp_path):
    run = made(model, tmp_path, {"activations.leave_out_norm": 10})
    given = run.settings, run.map.path("norms"), Tokens(run.map.path("tokens"))
    with pytest.raises(InputError, match=r"norms/step0\.h5: missing or damaged; make it again"):
        order.above_bound(*given)
    folder, place = run.map.path("snapshot", step=0), run.map.path("norms_of", step=0)
    other = run.settings.activations.model_copy(update={"leave_out_norm": 5.0})
    changed = run.settings.model_copy(update={"activations": other})
    norms.measure(changed, folder, 0, run.map.path("tokens"), place)
    with pytest.raises(
        InputError, match="made from other tokens or with another bound; make it again"
    ):
        order.above_bound(*given)
