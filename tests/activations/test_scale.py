"""The scale of a site, of whose rows the mean vector is large beside what varies."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import tiny
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from ontogeny import settings
from ontogeny.activations import extract, store
from ontogeny.activations.rows import Cached
from ontogeny.activations.sites import Site, rows_path
from ontogeny.activations.sizes import PIECE_ROWS

STEPS, D, ROWS = [0, 4], 16, 2 * PIECE_ROWS + 100
SITES = [Site(step, 0, "residual") for step in STEPS]


def rows_at(step: int) -> np.ndarray:
    """Rows (ROWS, D) whose mean grows with the step, and whose spread does not."""
    rng = np.random.default_rng(step)
    values = rng.normal(size=(ROWS, D)) + 10 * step * rng.normal(size=D)
    return values.astype(np.float16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Files of the sites' rows, one snapshot each, with their norms."""
    place = tmp_path_factory.mktemp("activations") / "residual.0"
    place.mkdir()
    for step in STEPS:
        values, path = rows_at(step), place / f"step{step}.h5"
        facts = {"layer": 0, "stream": "residual", "dtype": "float16", "tokens": "t", "seed": 0}
        facts |= {"step": step, "shard_rows": [ROWS], **extract.norms(torch.from_numpy(values))}
        with h5py.File(path, "w") as file, h5py.File(rows_path(path, 0), "w") as train:
            store.Writer(train, "activations", ROWS, D, "float16").write(values)
            store.Writer(file, "held_out/activations", ROWS, D, "float16").write(values)
            file["held_out/position"] = np.zeros((ROWS, 2), np.uint32)
            file["held_out/token"] = np.zeros((ROWS, 2), np.int32)
            store.describe(train, facts)
            store.describe(file, facts)
    return place.parent


@pytest.mark.parametrize("step", STEPS)
def test_norms_are_those_of_float64(step):
    values = rows_at(step)
    exact = values.astype(float)
    found = extract.norms(torch.from_numpy(values))
    assert found["mean_norm"] == pytest.approx(np.linalg.norm(exact, axis=1).mean(), rel=1e-6)
    centred = np.linalg.norm(exact - exact.mean(0), axis=1).mean()
    assert found["centred_norm"] == pytest.approx(centred, rel=1e-6)
    assert (found["mean_norm"] > 20 * centred) == (step > 0)


@pytest.mark.parametrize("scale", ["centred", "mean_norm"])
def test_what_the_key_names_has_mean_norm_root_d(folder, scale):
    place = folder / "residual.0"
    store.stack([place / f"step{t}.h5" for t in STEPS], STEPS, place / "stack.h5", scale=scale)
    rows = Cached(folder, SITES).read(0, ROWS).astype(float)
    centred = rows - rows.mean(0)
    norms = {
        "centred": np.linalg.norm(centred, axis=2).mean(0),
        "mean_norm": np.linalg.norm(rows, axis=2).mean(0),
    }
    np.testing.assert_allclose(norms.pop(scale), D**0.5, rtol=1e-5)
    (other,) = norms.values()
    assert other.max() / other.min() > 20


def test_equal_rows_have_no_centred_norm():
    row = np.random.default_rng(0).normal(size=D).astype(np.float16)
    found = extract.norms(torch.from_numpy(np.tile(row, (ROWS, 1))))
    assert found["centred_norm"] == 0
    assert found["mean_norm"] == pytest.approx(np.linalg.norm(row.astype(float)), rel=1e-6)


def test_a_site_whose_rows_are_all_equal_has_the_scale_0(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 40}
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, num_attention_heads=2))
    torch.nn.init.zeros_(model.gpt_neox.layers[1].mlp.dense_4h_to_h.weight)
    torch.nn.init.ones_(model.gpt_neox.layers[1].mlp.dense_4h_to_h.bias)
    model.save_pretrained(tmp_path / "step4")
    with h5py.File(tmp_path / "tokens.h5", "w") as file:
        ids = np.random.default_rng(0).integers(0, 40, (6, 32)).astype(np.uint16)
        file.create_dataset("tokens", data=ids, chunks=(2, 32))
        file.attrs.update(
            {"held_out": (0, 2), "train": (2, 6), "pretrain": (6, 6), "end_of_text": -1}
            | {"vocabulary": 40, "tokenizer": "", "corpus": "", "digest": "tokens"}
        )
    made = ["residual", "mlp_out"]
    for scale in ("centred", "mean_norm"):
        s = settings.load(
            tiny(
                {"device": "cpu", "corpus.train_blocks": 4, "corpus.context": 32}
                | {"crosscoders.batchtopk.batch_rows": 64}
                | {"activations": {"layers": [0, 1], "streams": made, "scale": scale}}
            )
        )
        where = (tmp_path / "step4", 4, tmp_path / "tokens.h5", tmp_path / "activations")
        extract.extract(s, *where)
        for place in ("residual.0", "residual.1", "mlp_out.0", "mlp_out.1"):
            folder = tmp_path / "activations" / place
            store.stack([folder / "step4.h5"], [4], folder / "stack.h5", scale=scale)
            with h5py.File(folder / "stack.h5") as file:
                (found,) = file.attrs["scales"]
            assert (found == 0) == (place == "mlp_out.1")
            assert np.isfinite(found)
