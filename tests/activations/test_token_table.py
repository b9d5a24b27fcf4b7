"""The token table: its closed form, the rows that it leaves, and dictionaries trained on them."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from ontogeny import settings
from ontogeny.activations import basis, extract, feed, store, token_table
from ontogeny.activations.rows import Cached, HeldOut, RowPaths
from ontogeny.activations.sites import Site, basis_name, rows_path
from ontogeny.activations.subspace import Subspace, project
from ontogeny.activations.table import Table
from ontogeny.crosscoder import fidelity, train
from ontogeny.crosscoder.data import Data
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.crosscoder.readout import Readout
from ontogeny.files import InputError
from ontogeny.settings import Settings

STEPS, D, V = [0, 4], 16, 50
SITES = [Site(step, 1, "residual") for step in STEPS]
CPU = torch.device("cpu")
TABLE = "tables/residual.1.h5"
MEASURES = ("table", "left_norm", "explained", "explained_by_pairs")
SPLITS = {"held_out": (0, 6), "train": (6, 46), "pretrain": (46, 46)}
COMMON = {"inputs": {"layers": [1]}, "features": 40, "k": 4, "steps": 120, "batch_rows": 64,
          "aux_features": 0, "seeds": [0], "learning_rate": 3e-3, "token_table": True}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "principal": {"basis": "principal"},
    "hybrid": {"basis": "hybrid", "gate": "snapshot"},
    "full": {"basis": "full", "gate": "snapshot", "scale": "activations"},
    "plain": {"basis": "principal", "token_table": False},
}


def configured(**changes: object) -> Settings:
    crosscoders = {name: COMMON | kind for name, kind in KINDS.items()}
    return settings.load(
        tiny(
            {"device": "cpu", "corpus.train_blocks": 40, "corpus.held_out_blocks": 6}
            | {"corpus.context": 32, "snapshots.steps": STEPS, "crosscoders": crosscoders}
            | {"activations": {"layers": [1], "window": 500}, "primary": "full"}
            | {"analysis.spliced_blocks": 3, **changes}
        )
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Random models' activations, of text in which some tokens are rare and few follow a token."""
    place = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(0)
    follows = rng.integers(1, V, (V, 3))
    ids = np.zeros((46, 32), np.uint16)
    for block in ids:
        for t in range(1, 32):
            block[t] = follows[block[t - 1], rng.choice(3, p=[0.8, 0.17, 0.03])]
    ids[:6, 5] = V - 1  # a token of the held-out text that training never sees
    ids[6:][ids[6:] == V - 1] = 1
    with h5py.File(place / "tokens.h5", "w") as file:
        file.create_dataset("tokens", data=ids, chunks=(2, 32))
        about = {"vocabulary": V, "tokenizer": "", "corpus": "", "digest": "t", "end_of_text": 0}
        file.attrs.update(SPLITS | about)
    s = configured()
    sizes = {"hidden_size": D, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": V}
    for step in STEPS:
        torch.manual_seed(step)
        made = GPTNeoXConfig(**sizes, num_attention_heads=2, initializer_range=0.3)
        GPTNeoXForCausalLM(made).save_pretrained(place / f"snapshots/step{step}")
        where = (place / f"snapshots/step{step}", step, place / "tokens.h5", place / "activations")
        extract.extract(s, *where)
    here = place / "activations/residual.1"
    store.stack([here / f"step{t}.h5" for t in STEPS], STEPS, here / "stack.h5")
    token_table.measure(s, 1, "residual", paths(place), place / "tables/residual.1.h5")
    return place


def paths(place: Path, name: str = "") -> RowPaths:
    """Where rows lie, of a dictionary with a basis once `directions` made it."""
    found, projected = place / f"{name}.h5", place / f"{name}.rows.h5"
    return RowPaths(
        place / "activations",
        found if found.exists() else None,
        (projected,) if projected.exists() else (),
        place / "snapshots",
        place / "tokens.h5",
        place / "tables",
    )


def directions(s: Settings, name: str, folder: Path) -> RowPaths:
    """A dictionary's basis and projected rows, as the commands make them."""
    c = s.crosscoders[name]
    table = feed.table_of(c, SITES, paths(folder))
    if c.basis == "full":
        return paths(folder, name)
    rows = Cached(folder / "activations", SITES, table)
    basis.build(s.basis, rows, folder / f"{name}.h5", CPU)
    project(folder / f"{name}.h5", rows, 0, folder / f"{name}.rows.h5", CPU)
    return paths(folder, name)


# The closed form


def raw(folder: Path, step: int, held_out: bool = False) -> Iterator[tuple[int, int, np.ndarray]]:
    """Previous token, or −1, current token, and row of a snapshot; tokens by their positions."""
    path, group = folder / f"activations/residual.1/step{step}.h5", "held_out/" if held_out else ""
    with h5py.File(path if held_out else rows_path(path, 0)) as file:
        values, position = file[f"{group}activations"][:], file[f"{group}position"][:]
    with h5py.File(folder / "tokens.h5") as file:
        ids = file["tokens"][:].astype(int)
    for value, (block, offset) in zip(values.astype(float), position.astype(int), strict=True):
        yield (ids[block, offset - 1] if offset else -1), ids[block, offset], value


def loop(folder: Path, step: int) -> tuple[dict[int, np.ndarray], np.ndarray, dict[Any, Any]]:
    """T by token, the mean of all, and the pair table: a plain loop in float64."""
    by: dict[Any, list[np.ndarray]] = defaultdict(list)
    for before, token, value in raw(folder, step):
        by["all"].append(value)
        by[token].append(value)
        if before >= 0:
            by[before, token].append(value)
    mean = np.mean(by.pop("all"), 0)
    tokens = {
        token: (np.sum(rows, 0) + 5 * mean) / (len(rows) + 5)
        for token, rows in by.items()
        if not isinstance(token, tuple)
    }
    pairs = {
        pair: (np.sum(rows, 0) + 5 * tokens[pair[1]]) / (len(rows) + 5)
        for pair, rows in by.items()
        if isinstance(pair, tuple)
    }
    return tokens, mean, pairs


@pytest.mark.parametrize("i", range(len(STEPS)))
def test_the_tables_are_those_of_a_plain_loop(folder, i):
    tokens, mean, pairs = loop(folder, STEPS[i])
    with h5py.File(folder / TABLE) as file:
        assert file["token"][:].tolist() == sorted(tokens)
        assert V - 1 not in tokens
        assert file["count"][:].sum() == file.attrs["rows"]
        assert file.attrs["covered"] == 1
        found = {name: file[name][i] for name in MEASURES}
    np.testing.assert_allclose(found["table"][-1], mean, rtol=1e-5, atol=1e-6)
    for token, row in zip(sorted(tokens), found["table"], strict=False):
        np.testing.assert_allclose(row, tokens[token], rtol=1e-5, atol=1e-6)
    first = [value - tokens[token] for _, token, value in raw(folder, STEPS[i])][:500]
    assert found["left_norm"] == pytest.approx(np.linalg.norm(first, axis=1).mean(), rel=1e-5)
    values, left, left_by_pairs = [], [], []
    for before, token, value in raw(folder, STEPS[i], held_out=True):
        of_token = tokens.get(token, mean)
        values.append(value)
        left.append(value - of_token)
        left_by_pairs.append(value - pairs.get((before, token), of_token))
    there = np.square(values - np.mean(values, 0)).sum()
    by_token, by_pair = (1 - np.square(rows).sum() / there for rows in (left, left_by_pairs))
    assert found["explained"] == pytest.approx(by_token, abs=1e-6)
    assert found["explained_by_pairs"] == pytest.approx(by_pair, abs=1e-6)
    assert 0 < by_token < by_pair < 1


def test_a_table_that_would_be_too_large_is_of_frequent_tokens(monkeypatch):
    count = np.array([3, 0, 20, 500, 19, 21, 20])
    assert token_table.entries(count, 10).tolist() == [0, 2, 3, 4, 5, 6]
    monkeypatch.setattr(token_table, "FULL_TABLE", 59)
    assert token_table.entries(count, 10).tolist() == [2, 3, 5, 6]
    monkeypatch.setattr(token_table, "LARGEST_TABLE", 30)
    assert token_table.entries(count, 10).tolist() == [2, 3, 5]
    monkeypatch.setattr(token_table, "LARGEST_TABLE", 9)
    assert token_table.entries(count, 10).tolist() == []


# Rows beyond it


@pytest.mark.parametrize("name", ["principal", "full"])
def test_rows_are_those_less_their_tokens_mean_at_the_scale_of_the_rest(folder, name):
    s = configured()
    table = feed.table_of(s.crosscoders[name], SITES, paths(folder))
    rows = Cached(folder / "activations", SITES, table)
    found = rows.read(0, rows.rows)
    for i, step in enumerate(STEPS):
        tokens, *_ = loop(folder, step)
        left = np.array([value - tokens[token] for _, token, value in raw(folder, step)])
        np.testing.assert_allclose(found[:, i], left * rows.scales[i], atol=4e-3)
    norms = np.linalg.norm(found[:500], axis=2).mean(0)
    own = Cached(folder / "activations", SITES).scales
    if name == "principal":
        np.testing.assert_allclose(norms, D**0.5, rtol=1e-3)
        assert (rows.scales > 1.2 * own).all()
    else:
        np.testing.assert_array_equal(rows.scales, own)
        assert (norms < D**0.5 / 1.2).all()


def test_streamed_rows_and_tables_are_the_cached_ones(folder, tmp_path):
    cached, streamed = configured(), configured(**{"activations.mode": "streamed"})
    token_table.measure(streamed, 1, "residual", paths(folder), tmp_path / "other.h5")
    with h5py.File(tmp_path / "other.h5") as one, h5py.File(folder / TABLE) as other:
        for name, values in other.items():
            np.testing.assert_array_equal(one[name][:], values[:])
    for name in ("full", "principal"):
        c = cached.crosscoders[name]
        where = directions(cached, name, folder)
        table = feed.table_of(c, SITES, where)
        read = []
        for s in (cached, streamed):
            if c.basis == "full":
                rows = feed.site_rows(s, SITES, where, CPU, table)
            else:
                subspace = Subspace(where.basis)
                rows = feed.principal_rows(s, SITES, subspace, where, CPU, table)
            read.append(np.concatenate([rows.read(400, 700), rows.read(0, 300)]))
        np.testing.assert_array_equal(*read)


# Dictionaries


@pytest.mark.parametrize("name", ["principal", "hybrid", "full"])
def test_a_dictionary_of_the_rest_adds_the_table_to_what_it_reconstructs(
    name, folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(train.devices, "compiled", lambda function, device: function)
    s, saved = configured(), []
    where = directions(s, name, folder)
    for mode in ("cached", "streamed"):
        s = configured(**{"activations.mode": mode})
        train.train(s, name, 0, where, tmp_path / mode, tmp_path / f"state-{mode}")
        saved.append((tmp_path / mode / "crosscoder.safetensors").read_bytes())
    assert saved[0] == saved[1]
    trained = Crosscoder.load(tmp_path / "cached")
    assert trained.about.token_table
    test = HeldOut(folder / "activations", SITES, trained.scales_in.numpy())
    x, ids = torch.from_numpy(test.read(0, test.rows)), test.token[:, 1]
    with pytest.raises(ValueError, match="token of each row as ids"):
        trained.encode(x)
    table = []
    for i, step in enumerate(STEPS):
        tokens, mean, _ = loop(folder, step)
        table.append([tokens.get(token, mean) * float(trained.scales_in[i]) for token in ids])
    T = torch.tensor(np.array(table), dtype=torch.float32).transpose(0, 1)
    centred = (x - T).flatten(1) - trained._mean
    basis_of = trained._basis if trained._basis is not None else torch.eye(len(STEPS) * D)
    h = centred @ basis_of @ trained.weights.W_enc.T + trained.weights.b_enc
    torch.testing.assert_close(trained.pre_activations(x, ids), h, atol=0.02, rtol=0.01)
    f = trained.encode(x, ids)
    each = f if f.ndim == 3 else f[:, :, None].expand(-1, -1, len(STEPS))
    sparse = torch.einsum("bfn,fnd->bnd", each, trained.W_dec) + trained.b_dec
    torch.testing.assert_close(trained.decode(f, ids), sparse + T, atol=0.01, rtol=0.01)

    # What is reported, by hand: of the whole, and of what the table leaves.
    files = tmp_path / "fidelity.csv", tmp_path / "density.parquet"
    fidelity.measure(s, tmp_path / "cached", where, *files)
    report = pd.read_csv(files[0])
    lost = (x - trained.decode(f, ids)).square().sum((0, 2))
    there, left = (x - x.mean(0)).square().sum((0, 2)), (x - T).square().sum((0, 2))
    for column, wanted in (
        ("explained_variance", 1 - lost / there),
        ("explained_variance_beyond", 1 - lost / left),
        ("token_explained_variance", 1 - left / there),
    ):
        np.testing.assert_allclose(report[column], wanted.numpy(), atol=1e-3)
    assert (report["explained_variance"] > report["token_explained_variance"]).all()
    assert (report["pca_explained_variance"] > report["token_explained_variance"]).all()
    assert (report["pair_explained_variance"] > report["token_explained_variance"]).all()

    some = torch.tensor([3, 9])
    readout, sums = Readout(trained, some), 0
    for site in range(len(STEPS)):
        sums += (x[:, site] - readout.centre(site, ids)) @ readout.weights(site).T
    again = readout.activations(sums, torch.arange(2))
    wanted = (f if f.ndim == 2 else f.amax(2))[:, some]
    torch.testing.assert_close(again, wanted, atol=1e-4, rtol=1e-4)


def test_other_tables_are_other_rows_to_resume_on(folder, tmp_path):
    s = configured()
    shutil.copytree(folder / "activations", tmp_path / "activations")
    shutil.copytree(folder / "tables", tmp_path / "tables")
    shutil.copy(folder / "tokens.h5", tmp_path / "tokens.h5")
    one = paths(tmp_path)
    digests = [Data(s, s.crosscoders["full"], one, CPU).digest for _ in range(2)]
    assert digests[0] == digests[1]
    with h5py.File(tmp_path / TABLE, "r+") as file:
        file["table"][0, 2] += 1
    assert Data(s, s.crosscoders["full"], one, CPU).digest != digests[0]


def test_what_a_table_cannot_be_is_refused(folder, tmp_path):
    full = {"layers": [1], "streams": ["mlp_in"]}
    for changes, why in (
        ({"scale": "activations", "token_table": False}, r"scale: applies only with token_table"),
        ({"outputs": full, "basis": "full"}, r"token_table: needs outputs equal to the inputs"),
    ):
        kinds = {"full": COMMON | KINDS["full"] | {"scale": "residual"} | changes}
        with pytest.raises(settings.SettingsError, match=rf"crosscoders\.full\.{why}"):
            configured(**{"crosscoders": kinds, "activations.streams": ["residual", "mlp_in"]})
    names = {basis_name(c) for c in configured().crosscoders.values()}
    assert names == {"residual.1", "residual.1-table-residual", "residual.1-table-activations"}
    with pytest.raises(InputError, match=r"residual\.1\.h5: has no step 8"):
        Table(folder / "tables", [Site(8, 1, "residual")])
    shutil.copytree(folder / "tables", tmp_path / "tables")
    with h5py.File(tmp_path / TABLE, "r+") as file:
        file["left_norm"][1] = 0
    with pytest.raises(
        InputError, match=r"residual\.1/step4: the token alone determines every row"
    ):
        Table(tmp_path / "tables", SITES)
    (tmp_path / TABLE).write_bytes(b"x")
    with pytest.raises(InputError, match=r"residual\.1\.h5: truncated or not a token table"):
        Table(tmp_path / "tables", SITES)
