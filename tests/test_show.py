"""`ontogeny show`: the numbers of the tables, on any terminal, whatever the tokens are."""

from __future__ import annotations

import io
import re
import sys
from dataclasses import replace

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from click.testing import CliRunner
from conftest import tiny

from ontogeny import cli, registry, show
from ontogeny.analyses.dimensionality.measure import of_decoders
from ontogeny.crosscoder.model import Crosscoder, Description
from ontogeny.experiment import Experiment
from ontogeny.features import contexts, histories

F, N, D = 12, 5, 6
STEPS = [0, 4, 16, 64, 256]
VOCABULARY = [
    b"\x1b[2J",
    b"<script>",
    b"\xe2\x80\xae",
    b" word",
    b"\x9b31m",
    b"\n",
    "漢字".encode(),
]
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def crosscoder(basis: bool = False, seed: int = 0) -> Crosscoder:
    """F features of N snapshots, one of them dead; strengths that no two snapshots share."""
    rng = torch.Generator().manual_seed(seed)
    R = N * D
    U = torch.linalg.qr(torch.randn(R, R, generator=rng))[0] if basis else None
    tensors = {
        "W_enc": torch.randn(F, R, generator=rng),
        "b_enc": torch.randn(F, generator=rng),
        "W_dec": torch.randn(F, R, generator=rng),
        "b_dec": torch.randn(R, generator=rng),
        "log_threshold": torch.randn(F, generator=rng),
        "silent_rows": torch.tensor([100] + [0] * (F - 1)),
        "scales_in": torch.ones(N),
        "scales_out": torch.ones(N),
        "mean_in": torch.zeros(R),
        "mean_out": torch.zeros(R),
    }
    sites = [(step, 3, "residual") for step in STEPS]
    about = Description("batch_topk", "feature", F, D, sites, sites,
                        "principal" if basis else "full", 0.5, seed,
                        {"dead_after_rows": 100}, "digest", "0", "0")  # fmt: skip
    return Crosscoder(about, tensors if U is None else tensors | {"basis": U})


def write_contexts(path) -> None:
    """A contexts file whose tokens are what a hostile text would hold."""
    dtype = contexts.record_type((2, 2, 0), 3, np.dtype("<u2"), 3, len(VOCABULARY))
    records = np.zeros(F - 1, dtype)
    records["feature"] = np.arange(1, F)
    records["found"] = (2, 2, 0)
    records["offset"], records["value"] = 3, [5.0, 4.0, 1.0, 2.0]
    records["token"] = [0, 1, 2, 3, 4, 5, 6]
    records["activation"][..., 3], records["activation"][..., 4] = 5, 1
    records["quantile"] = [0.25, 0.75]
    records["lens_site"], records["lens_strength"] = [0, 4, 2], 1
    records["lens_token"] = np.arange(len(VOCABULARY))
    with h5py.File(path, "w") as file:
        about = {"format": contexts.FORMAT, "rows": 100, "features": F, "context": 7}
        about |= {"window": 3, "top": 2, "quantiles": 2, "near_misses": 0}
        for name, value in about.items():
            file.attrs[name] = value
        file["feature"] = records["feature"]
        file["edges"] = contexts.bin_edges()
        file["vocabulary"] = np.frombuffer(b"".join(VOCABULARY), np.uint8)
        file["vocabulary_stop"] = np.cumsum([len(token) for token in VOCABULARY])
        file["sites/step"], file["sites/layer"] = STEPS, [3] * N
        file["sites/stream"] = ["residual"] * N
        file["features"] = records


def opened(folder) -> Experiment:
    """The experiment of a folder, with STEPS and one crosscoder of the seed 7."""
    changes = {"name": folder.name, "snapshots.steps": STEPS, "snapshots.pretrain.steps": STEPS[-1]}
    changes |= {"analysis.bootstrap": 10}
    (folder / "config.yaml").write_text(
        yaml.safe_dump(tiny(changes | {"crosscoders.batchtopk.seeds": [7]}))
    )
    return Experiment.open(folder)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """An experiment with every table that is shown; its features table is the stage's own."""
    folder = tmp_path_factory.mktemp("results") / "small"
    folder.mkdir()
    made = opened(folder)
    seed = made.path("trained")
    crosscoder().save(seed)
    dead = np.arange(F) == 0
    pd.DataFrame({"density": np.linspace(0, 0.1, F), "dead": dead}).to_parquet(seed / "d.parquet")
    tables = {name: made.path(name) for name in registry.stages()["features"].makes}
    histories.describe(made.settings, [seed, seed], [seed / "d.parquet"] * 2, **tables)
    made.path("dimensionality").write_text("made\n")
    write_contexts(made.path("contexts"))
    pd.DataFrame({"feature": [5], "kind": ["previous_token"]}).to_parquet(made.path("kinds"))
    spans = {"feature": [5, 5], "run": ["alone", "replaced"], "span": [3.0, 6.0]}
    spans |= {"span_low": [2.0, 4.0], "span_high": [5.0, 9.0]}
    pd.DataFrame(spans).to_parquet(made.path("span"))
    attributed = {"task": ["agree"] * 3, "feature": [5] * 3, "step": [0, 64, 256]}
    attributed |= {"attribution": [0.1, -2.0, 0.5], "standard_error": [0.2, 0.1, 0.1]}
    attributed |= {"told": [False, True, True]}
    made.path("attribution").parent.mkdir(parents=True)
    pd.DataFrame(attributed).to_parquet(made.path("attribution"))
    return made


def printed(experiment, feature: int = 5, width: int = 100, terminal: bool = False, **more) -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=more.pop("encoding", "utf-8"))
    stream.isatty = lambda: terminal
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("NO_COLOR", raising=False)
        patch.setattr(sys, "stdout", stream)
        show.write(show.show(experiment, feature, None, 5, width), width)
    stream.flush()
    return stream.buffer.getvalue().decode(stream.encoding)


def test_the_numbers_are_those_of_the_tables(experiment):
    said = printed(experiment)
    one = experiment.table("features").loc[5]
    W = crosscoder().W_dec.numpy()
    strength = np.linalg.norm(W, axis=2)[5]
    k = int(strength.argmax())
    assert f"step {STEPS[k]} (snapshot {k + 1} of 5), norm {strength[k]:.4g}" in said
    assert f"onset      step {one['onset_step']:.4g}\n" in said
    assert f"lifetime   {one['lifetime']:.0%} of the snapshots" in said
    assert "density    4.545% of held-out tokens" in said
    assert "kind       previous token" in said
    assert "span       6 tokens of context (quartiles 4 to 9), earlier tokens replaced" in said
    assert "agree: largest -2 ± 0.1* at step 64, at the last +0.5 ± 0.1*" in said
    of_dimension = of_decoders(W[1:].swapaxes(0, 1))[4]  # among the living
    for step, s, d in zip(STEPS, strength, of_dimension, strict=True):
        bar = re.search(rf"^ +{step} (\S+) +{s:.3g}  D {d:.2f}$", said, re.MULTILINE)
        assert bar, (step, said)
        assert abs(len(bar[1]) - 24 * s / strength.max()) <= 1
    flat = W.reshape(F, -1)
    cosine = flat @ flat[5] / np.linalg.norm(flat, axis=1) / np.linalg.norm(flat[5])
    cosine[[0, 5]] = -2  # dead, and itself
    near = [int(i) for i in np.argsort(-cosine)[:5]]
    tail = said.split("nearest features")[1]
    assert [int(i) for i in re.findall(r"(\d+) \(-?0\.\d\d, peak", tail)] == near
    assert f"{near[0]} ({cosine[near[0]]:.2f}, peak at step " in tail


def test_in_a_principal_subspace_the_numbers_are_those_of_the_full_decoders():
    one = crosscoder(basis=True)
    t = one._tensors
    alive = np.arange(F) > 0
    decoders = show.Decoders(t["W_dec"].numpy(), t["basis"].numpy(), N)
    found = show.dimensionality_of(decoders, 5, alive)
    np.testing.assert_allclose(
        found, of_decoders(one.W_dec.numpy()[1:].swapaxes(0, 1))[4], rtol=1e-4
    )


def test_a_hybrids_decoders_are_read_as_the_full_ones_that_they_are(tmp_path):
    made = opened(tmp_path)
    one = crosscoder()
    one.about = replace(one.about, basis="hybrid")
    one._tensors |= {"basis": torch.eye(N * D)[:, :10].contiguous()}
    one.save(made.path("trained"))
    decoders = show.Subject(made, made.primary, 5).decoders(F)
    found = show.dimensionality_of(decoders, 5, np.arange(F) > 0)
    np.testing.assert_allclose(
        found, of_decoders(one.W_dec.numpy()[1:].swapaxes(0, 1))[4], rtol=1e-4
    )


def test_what_is_not_there_is_left_out(experiment, tmp_path):
    (tmp_path / "bare").mkdir()
    bare = opened(tmp_path / "bare")
    bare.path("features").parent.mkdir(parents=True)
    for name in ("features", "strengths"):
        bare.path(name).write_bytes(experiment.path(name).read_bytes())
    said = printed(bare)
    assert "strength by snapshot\n" in said
    for word in ("kind", "complexity", "contexts", "promoted", "attribution", "nearest", "D 0"):
        assert word not in said


def test_a_dead_feature_has_no_history(experiment):
    said = printed(experiment, 0)
    assert "dead: silent" in said
    for word in ("peak", "strength", "contexts", "nearest"):
        assert word not in said


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("width", [24, 37, 100])
def test_hostile_tokens_show_as_text_and_no_line_is_too_wide(experiment, terminal, width):
    said = printed(experiment, 5, width, terminal)
    marks = set(ESCAPES.findall(said))
    assert marks == ({show.OWN, show.ACTIVE, show.HEAD, show.RESET} if terminal else set())
    plain = ESCAPES.sub("", said)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", plain)
    joined = re.sub(r"\s", "", plain)
    own = "word" if terminal else "[word]"
    assert rf"\x1b[2J<script>\u{{202e}}{own}\x9b31m↵漢字" in joined
    assert max(show.cells(line) for line in plain.splitlines()) <= width


def test_a_terminal_without_the_letters_gets_their_codes(experiment):
    said = printed(experiment, encoding="ascii")
    assert r"\u2588" in said
    assert r"\u6f22\u5b57" in said


def test_promoted_tokens_stand_by_snapshot(experiment):
    said = printed(experiment, width=200)
    names = re.findall(r"^  (\w+), step (\d+): ", said, re.MULTILINE)
    assert names == [("first", "0"), ("peak", "16"), ("last", "256")]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["12"], "no feature 12; they are numbered 0 to 11"),
        (["--", "-1"], "no feature -1; they are numbered 0 to 11"),
        (["1", "--crosscoder", "other"], "no features of a crosscoder other; there are batchtopk"),
    ],
)
def test_what_does_not_exist_is_said(experiment, words, told, capsys):
    given = [str(experiment.folder), *words]
    assert CliRunner().invoke(cli.main, ["show", *given]).exit_code == 1
    with pytest.raises(SystemExit):
        cli.main(["show", *given])
    assert re.search(f"^ontogeny: .*{told}", capsys.readouterr().err)


def test_where_there_is_no_experiment_the_others_are_named(experiment, capsys):
    with pytest.raises(SystemExit):
        cli.main(["show", str(experiment.folder.parent / "none"), "1"])
    assert re.search(
        "^ontogeny: .*not the folder of an experiment; .* there are small", capsys.readouterr().err
    )


def test_damaged_tables_are_said(tmp_path):
    (tmp_path / "bad").mkdir()
    bad = opened(tmp_path / "bad")
    bad.path("features").parent.mkdir(parents=True)
    bad.path("features").write_bytes(b"not parquet")
    with pytest.raises(show.InputError, match=r"features.parquet: damaged; delete it"):
        show.show(bad, 1, None, 5, 80)
