"""The activations' contract, on the files of the tiny experiment."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import RESULTS

from ontogeny.activations.rows import Cached, pieces
from ontogeny.activations.sites import Site
from ontogeny.activations.store import Stacks
from ontogeny.corpus.build import Tokens
from ontogeny.files import InputError
from ontogeny.snapshots import sites

pytestmark = pytest.mark.slow

STEPS = (0, 2, 8, 20, 40)
SPLITS = {"train": "", "held_out": "held_out/"}


@pytest.fixture(scope="module")
def here(finished) -> Path:
    return finished / RESULTS


@pytest.fixture(scope="module")
def tokens(here) -> Tokens:
    return Tokens(here / "corpus/tokens.h5")


def file_of(here: Path, step: int, name: str) -> Path:
    kind = ".h5" if name.startswith("held_out") else ".rows0.h5"
    return here / f"activations/residual.0/step{step}{kind}"


def read(here: Path, step: int, name: str) -> np.ndarray:
    with h5py.File(file_of(here, step, name)) as file:
        return file[name][:]


@pytest.mark.parametrize("split", SPLITS)
def test_all_files_hold_the_same_rows_each_once_without_end_of_text(here, tokens, split):
    name = f"{SPLITS[split]}position"
    position = read(here, STEPS[0], name)
    for step in STEPS[1:]:
        np.testing.assert_array_equal(read(here, step, name), position)
    first, last = tokens.splits[split]
    blocks = tokens.blocks[first:last]
    assert len(position) == (blocks != tokens.end_of_text).sum() < blocks.size
    assert len(np.unique(position, axis=0)) == len(position)
    assert position[:, 0].min() >= first
    assert position[:, 0].max() < last
    assert (tokens.blocks[position[:, 0], position[:, 1]] != tokens.end_of_text).all()
    flat = position[:, 0].astype(int) * blocks.shape[1] + position[:, 1]
    assert (np.diff(flat) > 0).all() == (split == "held_out")


def test_training_rows_are_shuffled_through_and_through(here, tokens):
    position = read(here, 0, "position").astype(float)
    order = np.arange(len(position))
    for column in position.T:
        assert abs(np.corrcoef(order, column)[0, 1]) < 0.05
    neighbours = np.diff(position[:, 0]) == 0
    assert neighbours.mean() < 0.03  # 1 of 128 by chance


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("step", [0, 40])
def test_values_are_the_models_own(here, tokens, split, step):
    model = sites.load_model(here / f"snapshots/step{step}", torch.device("cpu"), torch.float32)
    position = read(here, step, f"{SPLITS[split]}position")
    stored = read(here, step, f"{SPLITS[split]}activations")
    chosen = np.unique(position[:, 0])[:8]
    ids = torch.from_numpy(tokens.blocks[chosen].astype(np.int64))
    with torch.no_grad():
        hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[1].numpy()
    rows = np.flatnonzero(np.isin(position[:, 0], chosen))
    assert len(rows) > 400
    expected = hidden[np.searchsorted(chosen, position[rows, 0]), position[rows, 1]]
    np.testing.assert_allclose(stored[rows], expected, rtol=1e-3, atol=1e-5)


def test_files_carry_checksums_and_what_made_them(here, tokens):
    for step in STEPS:
        for prefix in SPLITS.values():
            with h5py.File(file_of(here, step, prefix)) as file:
                data = file[f"{prefix}activations"]
                assert data.fletcher32
                assert data.dtype == np.float16
                assert data.shape == (len(file[f"{prefix}position"]), 32)
                facts = dict(file.attrs)
        values = read(here, step, "activations").astype(float)
        centred = values - values.mean(0)
        assert facts["step"] == step
        assert (facts["layer"], facts["stream"], facts["dtype"]) == (0, "residual", "float16")
        assert facts["tokens"] == tokens.digest
        assert {"model", "seed", "ontogeny", "torch", "h5py"} <= set(facts)
        mean_norm, centred_norm = (np.linalg.norm(x, axis=1).mean() for x in (values, centred))
        assert facts["mean_norm"] == pytest.approx(mean_norm, rel=1e-5)
        assert facts["centred_norm"] == pytest.approx(centred_norm, rel=1e-5)
        (scale,) = Stacks(here / "activations", [Site(step, 0, "residual")]).scales
        assert scale == pytest.approx(32**0.5 / centred_norm, rel=1e-5)


def test_the_stack_shows_the_files(here):
    with h5py.File(here / "activations/residual.0/stack.h5") as stack:
        assert list(stack.attrs["steps"]) == list(STEPS)
        for prefix in SPLITS.values():
            together = stack[f"{prefix}activations"]
            assert together.is_virtual
            for i, step in enumerate(STEPS):
                np.testing.assert_array_equal(together[i], read(here, step, f"{prefix}activations"))
    wanted = [Site(40, 0, "residual"), Site(2, 0, "residual")]
    reader = Cached(here / "activations", wanted)
    rows = reader.read(5, 25)
    assert rows.shape == (20, 2, 32)
    for place, step in enumerate((40, 2)):
        raw = read(here, step, "activations")[5:25].astype(np.float32)
        np.testing.assert_allclose(rows[:, place], raw * reader.scales[place], rtol=1e-6)
    parts = list(pieces(reader, 1000))
    assert [start for start, _ in parts] == list(range(0, reader.rows, 1000))
    assert sum(len(piece) for _, piece in parts) == reader.rows


def test_a_flipped_byte_is_noticed(here, tmp_path):
    shutil.copytree(here / "activations", tmp_path / "activations")
    path = tmp_path / "activations/residual.0/step8.rows0.h5"
    with h5py.File(path) as file:
        offset = file["activations"].id.get_chunk_info(0).byte_offset
    with path.open("r+b") as file:
        file.seek(offset + 1000)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    with h5py.File(path) as file, pytest.raises(OSError, match="filter"):
        file["activations"][:]
    reader = Cached(tmp_path / "activations", [Site(8, 0, "residual")])
    with pytest.raises(
        InputError, match=r"step8\.rows0\.h5: damaged \(a checksum does not match\); delete it"
    ):
        reader.read(0, 100)


def test_a_missing_snapshot_is_not_taken_for_zeros(here, tmp_path):
    shutil.copytree(here / "activations", tmp_path / "activations")
    (tmp_path / "activations/residual.0/step8.h5").unlink()
    with pytest.raises(InputError, match=r"step8\.h5"):
        Stacks(tmp_path / "activations", [Site(8, 0, "residual")])
