"""Single functions against hand-made or planted cases."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from ontogeny import files, progress, provenance, settings
from ontogeny.activations import basis, extract, feed, store
from ontogeny.activations.basis import moments
from ontogeny.activations.basis_file import Kept
from ontogeny.activations.rows import Cached, HeldOut
from ontogeny.activations.sites import Site, rows_path
from ontogeny.activations.subspace import Projected, Subspace, project
from ontogeny.crosscoder import model
from ontogeny.files import InputError
from ontogeny.phases import levels, ngrams
from ontogeny.snapshots import copying, pretrain, sites

# Files


def failing_writer(path: Path) -> None:
    path.write_text("half of the sec")
    raise ZeroDivisionError


def test_a_crash_while_writing_leaves_what_was_there(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    files.write_text(path, "first")
    with pytest.raises(ZeroDivisionError), files.whole(path) as draft:
        failing_writer(draft)
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_is_replaced_whole(tmp_path):
    folder = tmp_path / "folder"
    for content in ("first", "second"):
        with files.whole(folder) as draft:
            draft.mkdir()
            (draft / content).write_text(content)
            assert content not in [p.name for p in folder.glob("*")]
    assert [p.name for p in folder.iterdir()] == ["second"]
    with pytest.raises(FileNotFoundError), files.whole(folder) as draft:
        (draft / "third").write_text("without a folder")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_drafts_of_dead_processes_are_removed_and_of_living_ones_kept(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    dead, other = tmp_path / f".a.txt.{ended.pid}.part", tmp_path / f".b.txt.{ended.pid}.part"
    alive = tmp_path / f".a.txt.{os.getppid()}.part"
    folder = tmp_path / f".a.txt.{ended.pid}0000000.part"
    for path in (dead, other, alive):
        path.write_text("half")
    folder.mkdir()
    files.write_text(tmp_path / "a.txt", "whole")
    assert {p.name for p in tmp_path.iterdir()} == {"a.txt", other.name, alive.name}


def test_tables_survive_both_formats(tmp_path):
    table = pd.DataFrame({"feature": [0, 1], "cosine": [0.25, np.nan]})
    files.write_table(tmp_path / "t.csv", table)
    files.write_table(tmp_path / "t.parquet", table)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "t.csv"), table)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet"), table)


def test_digests_do_not_depend_on_the_order_of_keys():
    assert files.digest_value({"a": 1, "b": [2]}) == files.digest_value({"b": [2], "a": 1})
    assert files.digest_value([1, 2]) != files.digest_value([2, 1])


def test_progress_is_lines_in_a_log(capsys):
    with progress.bar("read", 10, "rows", every=0) as bar:
        for _ in range(10):
            bar.update()
    said = capsys.readouterr().err
    assert "read: 10 of 10 rows (100%)" in said
    assert "\r" not in said


# Provenance


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A small package named like ours; returns a function that digests one of its modules."""
    (tmp_path / "low.py").write_text('"""Low."""\n\nVALUE = 1\n')
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "__init__.py").write_text("")
    (tmp_path / "room" / "middle.py").write_text(
        "from ontogeny import experiment, low\nfrom ontogeny.room import settings\nX = low.VALUE\n"
    )
    (tmp_path / "room" / "top.py").write_text(
        "def f():\n    from ontogeny.room.middle import X\n    return X\n"
    )
    (tmp_path / "room" / "beside.py").write_text("Y = 1\n")
    # What only declares is no code: sections of settings, the map, and what these import.
    for name in ("room/settings.py", "experiment.py"):
        (tmp_path / name).write_text("from ontogeny.room import beside\n\nZ = 1\n")
    monkeypatch.setattr(provenance, "ROOT", tmp_path)

    def digest(module: str = "ontogeny.room.top") -> str:
        for name in ("_root", "_file", "_source", "_imports", "code_digest"):
            getattr(provenance, name).cache_clear()
        return provenance.code_digest(module)

    yield digest
    monkeypatch.undo()
    provenance._kept.cache_clear()
    digest()


def test_imports_are_followed_wherever_they_stand(package):
    package()
    assert provenance.modules_of("ontogeny.room.top") == [
        "ontogeny.low",
        "ontogeny.room",
        "ontogeny.room.middle",
        "ontogeny.room.top",
    ]


@pytest.mark.parametrize("kept", ["{", "[]", '{"a": 1}', '{"a": {"imports": []}}'])
def test_what_was_found_in_sources_is_kept_and_may_be_damaged(package, tmp_path, monkeypatch, kept):
    monkeypatch.setattr(provenance, "_KEPT", tmp_path / "kept" / "sources.json")
    monkeypatch.setattr(provenance.sys, "dont_write_bytecode", False)
    provenance._kept.cache_clear()
    first = package()
    provenance._keep()
    provenance._kept.cache_clear()
    monkeypatch.setattr(provenance, "_digested", None)  # nothing is parsed again
    assert package() == first
    monkeypatch.undo()
    (tmp_path / "kept" / "sources.json").write_text(kept)
    monkeypatch.setattr(provenance, "_KEPT", tmp_path / "kept" / "sources.json")
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    provenance._kept.cache_clear()
    assert package() == first


def test_code_digest_sees_code_and_nothing_else(package, tmp_path):
    first = package()
    (tmp_path / "low.py").write_text('"""Other words."""\n# A comment\n\nVALUE  =  1\n')
    (tmp_path / "room" / "beside.py").write_text("Y = 2\n")
    assert package() == first
    (tmp_path / "low.py").write_text("VALUE = 2\n")
    assert package() != first
    (tmp_path / "low.py").write_text("VALUE = 1\n")
    assert package() == first
    for name in ("room/settings.py", "experiment.py"):
        (tmp_path / name).write_text("Z = 2\n")
    (tmp_path / "room" / "columns.yaml").write_text("table: {}\n")
    assert package() == first
    (tmp_path / "room" / "look.mplstyle").write_text("font.size: 8\n")
    assert package() != first


# Pre-training


def small(**changes):
    loaded = settings.load(tiny({f"snapshots.pretrain.{k}": v for k, v in changes.items()}))
    return loaded.snapshots.pretrain


def test_learning_rate_warms_up_and_decays():
    p = small(steps=100, warmup_steps=10, learning_rate=1.0, final_learning_rate=0.1)
    rates = [pretrain.learning_rate(step, p) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx((1 + 0.1) / 2)
    assert rates[100] == pytest.approx(0.1)
    assert (np.diff(rates[10:]) < 0).all()


def test_an_epoch_shows_every_block_once_in_an_order_of_its_own():
    p = small(batch_blocks=4, doubled_blocks=0.0)
    blocks = np.arange(13 * 64, dtype=np.uint16).reshape(13, 64)
    epochs = [
        torch.cat([pretrain.batch(step, blocks, p) for step in range(3 * e, 3 * e + 3)])
        for e in range(2)
    ]
    for epoch in epochs:
        firsts = epoch[:, 0].tolist()
        assert len(set(firsts)) == 12
        assert set(firsts) < set(blocks[:, 0].tolist())
    assert epochs[0].tolist() != epochs[1].tolist()
    assert torch.equal(pretrain.batch(4, blocks, p), epochs[1][4:8])


@pytest.mark.parametrize("distance", ["half", "varied"])
def test_a_doubled_block_holds_a_passage_twice(distance):
    blocks = np.arange(400 * 64).reshape(400, 64)
    doubled = copying.double_passages(blocks, 0.25, distance, np.random.default_rng(0))
    assert (blocks == np.arange(400 * 64).reshape(400, 64)).all()
    changed = np.flatnonzero((doubled != blocks).any(1))
    assert 70 <= len(changed) <= 130
    lengths = set()
    for row in changed:
        copied = np.flatnonzero(doubled[row] != blocks[row])
        length = len(copied)
        lengths.add(length)
        assert (np.diff(copied) == 1).all()
        np.testing.assert_array_equal(doubled[row, copied], blocks[row, copied - length])
    assert lengths == {32} if distance == "half" else min(lengths) >= 8 < max(lengths) <= 32


# Streams


def random_model(**changes) -> GPTNeoXForCausalLM:
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32, **changes,
    )  # fmt: skip
    return GPTNeoXForCausalLM(config).eval()


@pytest.mark.parametrize("parallel", [False, True])
def test_streams_are_what_forward_hooks_see(parallel):
    lm = random_model(use_parallel_residual=parallel)
    ids = torch.randint(50, (2, 7))
    seen = {}

    def keep(key):
        def hook(module, args, out):
            seen[key] = (args[0], out[0] if isinstance(out, tuple) else out)

        return hook

    for i, block in enumerate(lm.gpt_neox.layers):
        block.mlp.register_forward_hook(keep((i, "mlp")))
        block.attention.register_forward_hook(keep((i, "attention")))
    with torch.no_grad():
        hidden = lm(input_ids=ids, output_hidden_states=True).hidden_states
    wanted = [(i, s) for i in (0, 1) for s in ("residual", "mlp_in", "mlp_out", "attention_out")]
    got = sites.read(lm, ids, wanted)
    for i in (0, 1):
        torch.testing.assert_close(got[i, "residual"], hidden[i + 1])
        torch.testing.assert_close(got[i, "mlp_in"], seen[i, "mlp"][0])
        torch.testing.assert_close(got[i, "mlp_out"], seen[i, "mlp"][1])
        torch.testing.assert_close(got[i, "attention_out"], seen[i, "attention"][1])
    if not parallel:  # attention and MLP write to the stream one after the other
        total = hidden[1] + got[1, "attention_out"] + got[1, "mlp_out"]
        torch.testing.assert_close(got[1, "residual"], total)


def test_reading_stops_after_the_last_wanted_layer_and_leaves_no_hook():
    lm = random_model()
    calls = []
    lm.gpt_neox.layers[1].register_forward_hook(lambda *_: calls.append(1))
    ids = torch.randint(50, (1, 5))
    before = lm(input_ids=ids).logits
    assert len(calls) == 1
    sites.read(lm, ids, [(0, "residual"), (0, "mlp_in")])
    assert len(calls) == 1
    torch.testing.assert_close(lm(input_ids=ids).logits, before)


@pytest.mark.parametrize("stream", ["residual", "mlp_in", "mlp_out", "attention_out"])
def test_replacing_a_stream_changes_the_model_there_and_only_inside_the_block(stream):
    lm = random_model()
    ids = torch.randint(50, (2, 7))
    with torch.no_grad():
        before = lm(input_ids=ids).logits
        own = sites.read(lm, ids, [(1, stream)])[1, stream]
        with sites.replaced(lm, 1, stream, own):
            torch.testing.assert_close(lm(input_ids=ids).logits, before)
        with sites.replaced(lm, 1, stream, own + 1e3 * torch.randn(own.shape)):
            assert not torch.allclose(lm(input_ids=ids).logits, before, atol=1e-2)
        torch.testing.assert_close(lm(input_ids=ids).logits, before)


# Principal subspace

N, D, RANK = 4, 6, 5


@pytest.fixture(scope="module")
def activations(tmp_path_factory):
    """Four snapshots of 2,000 rows that share five directions, with a little noise beside."""
    folder = tmp_path_factory.mktemp("activations")
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(2000, RANK)) * np.linspace(3, 1, RANK)
    paths = []
    import h5py

    for step in range(N):
        values = latent @ rng.normal(size=(RANK, D)) + 0.05 * rng.normal(size=(2000, D)) + step
        path = folder / "residual.0" / f"step{step}.h5"
        path.parent.mkdir(exist_ok=True)
        with h5py.File(path, "w") as file, h5py.File(rows_path(path, 0), "w") as train:
            store.Writer(train, "activations", 2000, D, "float32").write(values)
            store.Writer(file, "held_out/activations", 2000, D, "float32").write(values)
            file["held_out/position"] = np.zeros((2000, 2), np.uint32)
            file["held_out/token"] = np.zeros((2000, 2), np.int32)
            norms = extract.norms(torch.from_numpy(values))
            facts = {"layer": 0, "stream": "residual", "dtype": "float32", "tokens": "t"}
            facts |= {"shard_rows": [2000], "seed": 0, "step": step}
            store.describe(train, facts)
            store.describe(file, facts | norms)
        paths.append(path)
    store.stack(paths, list(range(N)), folder / "residual.0" / "stack.h5")
    return folder


SITES = [Site(step, 0, "residual") for step in range(N)]


CPU = torch.device("cpu")


def directions(activations: Path, output: Path, **changes) -> Subspace:
    rows = Cached(activations, SITES)
    basis.build(settings.Basis(**changes), rows, output, CPU)
    return Subspace(output)


def built(activations: Path, tmp_path: Path, lost: float) -> Subspace:
    return directions(activations, tmp_path / "basis.h5", max_variance_lost=lost)


@pytest.mark.parametrize("lost", [0.2, 0.01])
def test_subspace_loses_no_more_than_asked_and_all_that_it_says(activations, tmp_path, lost):
    basis = built(activations, tmp_path, lost)
    U = basis.U.astype(float)
    np.testing.assert_allclose(U.T @ U, np.eye(basis.dimensions), atol=1e-5)
    x = Cached(activations, SITES).read(0, 2000).reshape(2000, -1).astype(float)
    centred = x - x.mean(0)
    np.testing.assert_allclose(basis.mean, x.mean(0), atol=1e-4)
    left = (centred - centred @ U @ U.T).reshape(2000, N, D)
    share = 1 - (left**2).sum((0, 2)) / (centred.reshape(2000, N, D) ** 2).sum((0, 2))
    np.testing.assert_allclose(basis.kept, share, atol=1e-4)
    assert basis.kept.min() >= 1 - lost
    assert (left**2).sum() / 2000 == pytest.approx(
        basis.eigenvalues[basis.dimensions :].sum(), rel=1e-3, abs=1e-5
    )
    assert basis.dimensions <= RANK  # the smallest that does
    rows = Cached(activations, SITES)
    project(tmp_path / "basis.h5", rows, 0, tmp_path / "rows.h5", CPU)
    projected = Projected([tmp_path / "rows.h5"])
    np.testing.assert_allclose(projected.read(0, 2000), centred @ U, atol=0.01)
    leading = basis.leading(basis.dimensions).astype(float)
    np.testing.assert_allclose(leading @ leading.T, U @ U.T, atol=1e-4)
    variances = ((centred @ leading) ** 2).mean(0)
    np.testing.assert_allclose(variances, basis.eigenvalues[: basis.dimensions], rtol=1e-3)


def test_randomised_directions_hold_what_exact_ones_hold(activations, tmp_path):
    exact = built(activations, tmp_path, 0.01)
    U = torch.from_numpy(exact.U)
    few = {"max_variance_lost": 0.01, "exact_limit": 1, "largest": 7}
    found = directions(activations, tmp_path / "randomised.h5", **few)
    assert found.dimensions == exact.dimensions == RANK
    np.testing.assert_allclose(found.kept, exact.kept, atol=1e-4)
    np.testing.assert_allclose(found.mean, exact.mean, atol=1e-4)
    np.testing.assert_allclose(found.eigenvalues[:RANK], exact.eigenvalues[:RANK], rtol=1e-3)
    angles = torch.linalg.svdvals(U.T @ torch.from_numpy(found.U))
    assert angles.min() > 0.999


def test_a_subspace_of_too_few_directions_is_made_and_told_and_refused(
    activations, tmp_path, capsys
):
    output = tmp_path / "basis.h5"
    for limit in (1, 8192):  # randomised, exact
        few = settings.Basis(max_variance_lost=0.01, exact_limit=limit, largest=3)
        found = directions(
            activations, output, max_variance_lost=0.01, exact_limit=limit, largest=3
        )
        assert found.dimensions == 3
        said = capsys.readouterr().out
        least = found.kept.argmin()
        assert f"keep {found.kept[least]:.1%} of the variance of {SITES[least].name}" in said
        assert all(
            f"{site.name} {x:.1%}" in said for site, x in zip(SITES, found.kept, strict=True)
        )
        with pytest.raises(InputError, match=r"^basis\.largest: the 3 dimensions keep 0\."):
            Kept.read(output).check(few)
        Kept.read(output).check(few.model_copy(update={"least_kept": float(found.kept.min())}))
    with pytest.raises(InputError, match=r"^basis\.dimensions: the 3 dimensions keep 0\."):
        Kept.read(output).check(settings.Basis(dimensions=3))
    directions(activations, output, max_variance_lost=0.01)
    assert capsys.readouterr().out.endswith("and no less of any other site's\n")


def test_too_few_rows_or_directions_are_an_error(activations, tmp_path):
    output = tmp_path / "basis.h5"
    few = {"exact_limit": 1, "largest": 3}
    with pytest.raises(InputError, match=r"basis.dimensions: 4 exceeds the 3 directions"):
        directions(activations, output, dimensions=4, **few)
    with pytest.raises(InputError, match=r"basis.dimensions: 5 training rows span fewer than 6"):
        directions(activations, output, dimensions=6, rows=5)
    assert not output.exists()
    assert directions(activations, output, dimensions=4).dimensions == 4


@pytest.mark.parametrize("rank", [30, 7])
def test_columns_are_made_orthonormal_in_place_whatever_their_rank(rank):
    generator = torch.Generator().manual_seed(0)
    scales = 10.0 ** -torch.linspace(0, 9, rank)  # float32 alone sees the first seven decades
    parts = torch.randn(300, rank, generator=generator), torch.randn(rank, 30, generator=generator)
    matrix = (parts[0] * scales) @ parts[1]
    before = matrix.clone()
    basis.orthonormalise(matrix)
    torch.testing.assert_close(matrix.T @ matrix, torch.eye(30), atol=1e-5, rtol=0)
    left = before - matrix @ (matrix.T @ before)
    assert left.norm() < 1e-5 * before.norm()


@pytest.mark.parametrize("matrix", [torch.zeros(300, 9), torch.ones(300, 9)])
def test_columns_that_are_alike_are_made_orthonormal_too(matrix):
    matrix = matrix.clone()
    basis.orthonormalise(matrix)
    torch.testing.assert_close(matrix.T @ matrix, torch.eye(9), atol=1e-5, rtol=0)


def test_directions_come_from_the_first_rows_alone(activations, tmp_path):
    some = directions(activations, tmp_path / "some.h5", dimensions=4, rows=500)
    x = Cached(activations, SITES).read(0, 500).reshape(500, -1)
    np.testing.assert_allclose(some.mean, x.mean(0), atol=1e-5)
    _, values, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    np.testing.assert_allclose(some.eigenvalues[:4], values[:4] ** 2 / 500, rtol=1e-3)


def test_without_training_rows_all_but_their_reading_goes_on(activations, tmp_path):
    shutil.copytree(activations, tmp_path / "a")
    for path in (tmp_path / "a" / "residual.0").glob("*.rows0.h5"):
        path.unlink()
    rows = Cached(tmp_path / "a", SITES)
    assert rows.rows == 2000
    assert HeldOut(tmp_path / "a", SITES).read(0, 10).any()
    with pytest.raises(
        InputError, match=r"step0.rows0.h5: these training rows were deleted after use"
    ):
        rows.read(0, 10)


def test_one_dimension_less_would_lose_more_than_asked(activations, tmp_path):
    basis = built(activations, tmp_path, 0.2)
    rows = Cached(activations, SITES)
    covariance = moments(rows, rows.rows, CPU)[1].numpy()
    _, vectors = np.linalg.eigh(covariance)
    fewer = vectors[:, ::-1][:, : basis.dimensions - 1]
    lost = np.diag(covariance - fewer @ fewer.T @ covariance)
    share = lost.reshape(N, D).sum(1) / np.diag(covariance).reshape(N, D).sum(1)
    assert share.max() > 0.2


def test_in_all_dimensions_the_basis_changes_nothing(activations, tmp_path):
    basis = built(activations, tmp_path, 1e-9)
    assert basis.dimensions == N * D
    U, mean = torch.from_numpy(basis.U), torch.from_numpy(basis.mean)
    full = model.initial("full", N, N, 32, D, None, seed=3)
    generator = torch.Generator().manual_seed(1)
    full.W_dec = torch.randn(32, N * D, generator=generator)
    full.b_enc = torch.randn(32, generator=generator)
    turned = model.Weights(
        full.W_enc @ U, full.b_enc, full.W_dec @ U, full.b_dec, full.log_threshold
    )
    about = model.Description(
        activation="batch_topk", gate="feature", features=32, width=D, threshold=0.3, seed=0,
        inputs=[(s.snapshot, 0, "residual") for s in SITES],
        outputs=[(s.snapshot, 0, "residual") for s in SITES],
        basis="full", settings={"dead_after_rows": 1}, tokens="t", ontogeny="", torch="",
    )  # fmt: skip
    rest = {"scales_in": torch.ones(N), "scales_out": torch.ones(N), "mean_in": mean}
    rest |= {"mean_out": mean, "silent_rows": torch.zeros(32)}
    plain = model.Crosscoder(about, full.named() | rest)
    inside = model.Crosscoder(
        replace(about, basis="principal"), turned.named() | rest | {"basis": U}
    )
    x = torch.from_numpy(Cached(activations, SITES).read(0, 200))
    assert 0 < (plain.encode(x) > 0).float().mean() < 1
    torch.testing.assert_close(
        inside.decode(inside.encode(x)), plain.decode(plain.encode(x)), rtol=1e-3, atol=1e-3
    )


def test_batches_run_around_the_data_and_depend_on_the_step_alone(activations):
    source = Cached(activations, SITES)
    data = source.read(0, 2000).reshape(2000, -1)
    batches = [b.flatten(1).numpy() for (b,) in feed.batches([source], 300, 0, 20, CPU)]
    assert len(batches) == 20
    np.testing.assert_array_equal(np.concatenate(batches), np.concatenate([data] * 3))
    later = [b.flatten(1).numpy() for (b,) in feed.batches([source], 300, 13, 20, CPU)]
    np.testing.assert_array_equal(np.concatenate(later), np.concatenate(batches[13:]))


# N-grams


def dense(fitted):
    """p₂(b|a) of all pairs, (V, V)."""
    own = fitted.own(np.arange(len(fitted.unigram))).toarray()
    return own + fitted.shared[:, None] * fitted.unigram


def test_ngrams_by_hand():
    fitted = ngrams.fit(np.array([[0, 1, 0, 1], [0, 2, 2, 1]]), vocabulary=4)
    np.testing.assert_allclose(fitted.unigram, np.array([4, 4, 3, 1]) / 12)
    m = fitted.strength
    # After 0: 1 twice, 2 once; no pair spans two blocks.
    expected = (np.array([0, 2, 1, 0]) + m * fitted.unigram) / (3 + m)
    bigram = dense(fitted)
    np.testing.assert_allclose(bigram[0], expected)
    np.testing.assert_allclose(bigram[3], fitted.unigram)
    np.testing.assert_allclose(bigram.sum(1), 1)
    unigram, level = fitted.cross_entropies(np.array([[3, 0, 1]]))
    assert unigram == pytest.approx(-math.log(4 / 12))
    assert level == pytest.approx(-(math.log(4 / 12) + math.log(expected[1])) / 2)


def test_smoothing_serves_held_out_text_and_the_levels_are_in_order():
    rng = np.random.default_rng(0)
    chain = rng.dirichlet(np.full(40, 0.1), 40)
    text = np.zeros((300, 32), int)
    for t in range(1, 32):
        text[:, t] = [rng.choice(40, p=chain[a]) for a in text[:, t - 1]]
    fitted = ngrams.fit(text[:150], 40)
    unigram, bigram = fitted.cross_entropies(text[150:])
    a, b = text[150:, :-1].ravel(), text[150:, 1:].ravel()
    truth = -np.log(chain[a, b]).mean()
    assert truth < bigram < unigram
    assert bigram == pytest.approx(-np.log(dense(fitted)[a, b]).mean())
    others = []
    for strength in (*ngrams.STRENGTHS, 1e-9):
        fitted.strength = strength
        others.append(fitted.cross_entropies(text[150:])[1])
    assert bigram < others[-1] - 0.05
    assert bigram < min(others) + 0.02


def test_divergences_from_the_ngrams_are_those_of_the_whole_distributions():
    rng = np.random.default_rng(0)
    p = settings.Pretrain(width=16, layers=1, heads=2)
    model = pretrain.make_model(p, 40, 16).eval()
    text = (3 * rng.choice(40, (60, 16)).cumsum(1)) % 40 // rng.integers(1, 3, (60, 1))
    fitted, held_out = ngrams.fit(text[:50], 40), text[50:]
    with torch.no_grad():
        log_q = model(input_ids=torch.from_numpy(held_out)).logits[:, :-1].double().log_softmax(-1)
    log_q = log_q.flatten(0, 1).numpy()
    p1, p2 = fitted.unigram, dense(fitted)[held_out[:, :-1].ravel()]
    truth = {
        "loss": -log_q[np.arange(len(log_q)), held_out[:, 1:].ravel()].mean(),
        "kl_unigram": (p1 * (np.log(p1) - log_q)).sum(1).mean(),
        "kl_bigram": (p2 * (np.log(p2) - log_q)).sum(1).mean(),
    }
    assert abs(truth["kl_bigram"] / truth["kl_unigram"] - 1) > 0.01
    assert levels.against_ngrams(model, held_out, fitted) == pytest.approx(truth, rel=1e-5)


def test_crossings_are_interpolated_in_log_steps():
    steps, loss = np.array([0, 1, 3, 7]), np.array([8.0, 6.0, 4.0, 3.0])
    assert levels.crossing(steps, loss, 5.0) == pytest.approx(2 * 2**0.5 - 1)
    assert levels.crossing(steps, loss, 6.0) == pytest.approx(1)
    assert levels.crossing(steps, loss, 9.0) == 0
    assert math.isnan(levels.crossing(steps, loss, 1.0))
