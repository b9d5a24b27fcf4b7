"""Exchange: the same reconstructions in other libraries' formats, there and back.

Each format is held to its library's formulas, written out here, and, where the library's own
environment has been made (`python -m benchmarks.environments`), to the library.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import RESULTS, ROOT, tiny
from huggingface_hub import ModelCard, ModelCardData
from safetensors.numpy import load_file, save_file

from benchmarks import environments
from ontogeny import registry, settings
from ontogeny.activations.rows import Cached, HeldOut
from ontogeny.activations.sites import Site
from ontogeny.cli import main
from ontogeny.crosscoder import losses
from ontogeny.crosscoder.model import Crosscoder, Description, Weights, by_block
from ontogeny.crosscoder.readout import Readout
from ontogeny.exchange import card, hub, llamascopium, plain, saelens, scales
from ontogeny.experiment import Experiment
from ontogeny.features import histories
from ontogeny.files import InputError

F, N, D, B = 40, 5, 6, 200
STEPS = [0, 4, 16, 64, 256]
PEERS = ROOT / "tests" / "peers"
KINDS = [
    ("batch_topk", "feature", "principal"),
    ("batch_topk", "snapshot", "hybrid"),
    ("jumprelu", "feature", "full"),
    ("jumprelu", "snapshot", "full"),
    ("jumprelu", "snapshot", "hybrid"),
    ("relu", "feature", "principal"),
]


def crosscoder(
    activation: str = "batch_topk",
    gate: str = "feature",
    basis: str = "principal",
    sites: int = N,
) -> Crosscoder:
    """One with everything that has to be folded or carried; a decoder is 0, a feature is dead."""
    rng = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng)

    size = sites * D
    R = size if basis == "full" else size - 2
    written = R if basis == "principal" else size
    tensors = {
        "W_enc": normal(F, R) / R**0.5,
        "b_enc": normal(F) / 4,
        "W_dec": normal(F, written) / R**0.5 * torch.linspace(0.3, 2, F)[:, None],
        "b_dec": normal(written),
        "log_threshold": normal(F) / 2 - 1,
        "silent_rows": torch.tensor([0, 0, 100] + [0] * (F - 3)),
        "scales_in": torch.linspace(0.5, 3, sites),
        "scales_out": torch.linspace(0.5, 3, sites),
        "mean_in": normal(size),
    }
    if basis != "full":
        tensors["basis"] = torch.linalg.qr(normal(size, R))[0].contiguous()
    if basis != "principal" and sites > 1:
        tensors["W_dec"][7, D : 2 * D] = 0  # absent at the second snapshot
    tensors["mean_out"] = tensors["mean_in"].clone()
    places = [(step, 3, "residual") for step in STEPS[:sites]]
    about = Description(activation, gate, F, D, places, list(places),
                        basis,
                        0.4 if activation == "batch_topk" else 0.0,
                        5, {"dead_after_rows": 100}, "digest", "0.1.0", "2.13.0")  # fmt: skip
    return Crosscoder(about, tensors)


def rows(trained: Crosscoder) -> torch.Tensor:
    """Normalised activations, (B, N, D), with a mean."""
    rng = torch.Generator().manual_seed(4)
    sites = len(trained.about.inputs)
    return torch.randn(B, sites, D, generator=rng) + torch.linspace(-1, 1, D)


def ours(trained: Crosscoder, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """f (B, N, F) and normalised reconstructions (B, N, D)."""
    f = trained.encode(x)
    again = trained.decode(f).numpy()
    f = f[..., None].expand(-1, -1, again.shape[1]) if f.ndim == 2 else f
    return f.transpose(1, 2).numpy(), again


def agree(trained: Crosscoder, f: np.ndarray, reconstruction: np.ndarray, x: torch.Tensor) -> None:
    """The same features active, and reconstructions equal to float32's rounding."""
    wanted_f, wanted = ours(trained, x)
    assert 0.02 < (wanted_f > 0).mean() < 0.9
    np.testing.assert_array_equal(f > 0, wanted_f > 0)
    np.testing.assert_allclose(f, wanted_f, atol=2e-5)
    np.testing.assert_allclose(reconstruction, wanted, atol=3e-5)


def tabled(folder: Path) -> Crosscoder:
    """One with a token table, saved and loaded."""
    without = crosscoder("batch_topk", "snapshot", "full")
    about = replace(without.about, token_table=True)
    rng = torch.Generator().manual_seed(6)
    table = {"token": torch.tensor([0, 2, 5]), "token_table": torch.randn(N, 4, D, generator=rng)}
    table["token_table"] = table["token_table"].half()
    Crosscoder(about, without._tensors | table).save(folder)
    return Crosscoder.load(folder)


def test_a_token_table_goes_along_or_is_refused(tmp_path):
    made, without = tabled(tmp_path / "seed0"), crosscoder("batch_topk", "snapshot", "full")
    x, ids = rows(made), torch.arange(B) % 7
    T = made._tensors["token_table"].float()[:, [0, 3, 1, 3, 3, 2, 3]][:, ids].transpose(0, 1)
    f = made.encode(x + T, ids)
    torch.testing.assert_close(f, without.encode(x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(made.decode(f, ids), without.decode(f) + T, atol=1e-5, rtol=1e-5)
    hub.write(tmp_path / "seed0", tmp_path / "hub", None)
    hub.read(tmp_path / "hub", tmp_path / "back")
    assert torch.equal(Crosscoder.load(tmp_path / "back").encode(x, ids), made.encode(x, ids))
    card = (tmp_path / "hub/README.md").read_text()
    assert "crosscoder.decode(f, ids)" in card
    for write, site in ((llamascopium.write, {}), (saelens.write, {"step": 4})):
        with pytest.raises(InputError, match="token table, for which the format has no place"):
            write(made, tmp_path / "other", **site)
    file = tmp_path / "hub/crosscoder.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"token_table": tensors["token_table"][1:]}, file)
    with pytest.raises(InputError, match="token tables are"):
        hub.read(tmp_path / "hub", tmp_path / "again")


# llamascopium


def by_llamascopium(folder: Path, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Its Crosscoder's encode and decode of normalised activations (B, N, D), by its source."""
    config = json.loads((folder / "config.json").read_text())
    w = {name: value.astype(np.float64) for name, value in
         load_file(folder / "sae_weights.safetensors").items()}  # fmt: skip
    padded = np.zeros((*x.shape[:2], config["d_model"]))
    padded[..., : x.shape[2]] = x
    h = np.einsum("bnd,ndf->bnf", padded, w["W_E"]) + w["b_E"]
    h = h.sum(1, keepdims=True)
    norm = np.linalg.norm(w["W_D"], axis=2)
    z = h * norm
    if config["act_fn"] == "jumprelu":
        z = z * (z > np.exp(w["activation_function.log_jumprelu_threshold"]))
    else:
        z = z * (z > 0)
    f = z / norm
    return f, (np.einsum("bnf,nfd->bnd", f, w["W_D"]) + w["b_D"])[..., : x.shape[2]]


@pytest.mark.parametrize(("activation", "gate", "basis"), KINDS)
def test_llamascopium_by_its_formulas(activation, gate, basis, tmp_path):
    trained = crosscoder(activation, gate, basis)
    x = rows(trained)
    llamascopium.write(trained, tmp_path / "out")
    agree(trained, *by_llamascopium(tmp_path / "out", x.numpy()), x)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert int(config["d_model"] * config["expansion_factor"]) == F
    tensors = load_file(tmp_path / "out/sae_weights.safetensors")
    for name, scale in zip(config["hook_points"], trained.scales_in.tolist(), strict=True):
        norm = tensors[f"dataset_average_activation_norm.{name}"]
        assert config["d_model"] ** 0.5 / norm == pytest.approx(scale, rel=1e-6)


@pytest.mark.parametrize("sites", [1, N])
@pytest.mark.parametrize(("activation", "gate", "basis"), KINDS)
def test_llamascopium_there_and_back(activation, gate, basis, sites, tmp_path):
    trained = crosscoder(activation, gate, basis, sites)
    x = rows(trained)
    llamascopium.write(trained, tmp_path / "out")
    back = llamascopium.read(tmp_path / "out")
    assert back.about == replace(trained.about, basis="full")
    f, again = ours(back, x)
    agree(trained, f, again, x)
    assert back.dead.nonzero().ravel().tolist() == [2]
    torch.testing.assert_close(back.scales_out, trained.scales_out)
    torch.testing.assert_close(back.strength, trained.strength, atol=1e-6, rtol=1e-5)


def test_a_description_of_another_crosscoder_is_not_believed(tmp_path):
    llamascopium.write(crosscoder(), tmp_path / "out")
    told = json.loads((tmp_path / "out/config.json").read_text())["ontogeny"]
    one_site = {"outputs": [[0, 3, "residual"]]}
    for change in ({"features": F + 1}, {"width": D + 1}, {"dead": [F]}, one_site):
        changed(tmp_path / "out", ontogeny=told | change)
        with pytest.raises(InputError, match="'ontogeny' belongs to another crosscoder"):
            llamascopium.read(tmp_path / "out")


def test_llamascopium_by_each_heads_own_norm(tmp_path):
    """Another function than one gate a feature: that of a gate a feature and snapshot."""
    trained = crosscoder()
    x = rows(trained)
    llamascopium.write(trained, tmp_path / "out", "heads")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["d_model"] == D
    f, again = by_llamascopium(tmp_path / "out", x.numpy())
    of_heads = Crosscoder(replace(trained.about, gate="snapshot"), trained._tensors)
    agree(of_heads, f, again, x)
    assert ((f > 0) != (ours(trained, x)[0] > 0)).any()
    assert llamascopium.read(tmp_path / "out").about.gate == "snapshot"


@pytest.mark.parametrize("width", [6, 7, 129, 768, 769])
def test_llamascopium_reckons_the_number_of_features_back(width):
    for features in (1, 40, 1000, 32_768, 98_304, 100_001):
        assert int(width * llamascopium.expansion(features, width)) == features


def foreign(folder: Path, act: str = "batchtopk", norm: str = "dataset-wise") -> Path:
    """A folder as the library itself writes it, that knows nothing of us."""
    rng = np.random.default_rng(0)
    heads = [f"blocks.6.hook_resid_post@{step}" for step in STEPS]
    tensors = {
        "W_E": rng.normal(size=(N, D, F)) / 5,
        "b_E": rng.normal(size=(N, F)) / 9,
        "W_D": rng.normal(size=(N, F, D)) / 3,
        "b_D": rng.normal(size=(N, D)),
    }
    if act == "jumprelu":
        tensors["activation_function.log_jumprelu_threshold"] = rng.normal(size=F) / 2 - 1
    for i, head in enumerate(heads):
        tensors[f"dataset_average_activation_norm.{head}"] = np.array(2.0 + i)
    folder.mkdir(parents=True)
    tensors = {name: value.astype(np.float32) for name, value in tensors.items()}
    save_file(tensors, folder / "sae_weights.safetensors")
    config = {"sae_type": "crosscoder", "d_model": D, "expansion_factor": F / D, "act_fn": act}
    config |= {"norm_activation": norm, "hook_points": heads, "top_k": 8}
    config |= {"use_decoder_bias": True, "sparsity_include_decoder_norm": True}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(("act", "norm"), [("jumprelu", "dataset-wise"), ("relu", "inference")])
def test_a_foreign_folder_is_read(act, norm, tmp_path):
    folder = foreign(tmp_path / "theirs", act, norm)
    found = llamascopium.read(folder, STEPS, 6, "residual")
    x = rows(found)
    agree(found, *by_llamascopium(folder, x.numpy()), x)
    scale = [D**0.5 / (2 + i) for i in range(N)] if norm == "dataset-wise" else [1.0] * N
    assert found.scales_in.tolist() == pytest.approx(scale)
    assert found.about.outputs == [(step, 6, "residual") for step in STEPS]
    assert found.about.tokens == ""


def test_a_foreign_batchtopk_takes_the_threshold_that_is_given(tmp_path):
    folder = foreign(tmp_path / "theirs")
    found = llamascopium.read(folder, STEPS, 6, "residual", threshold=0.7)
    x = rows(found)
    f, _ = ours(found, x)
    w = load_file(folder / "sae_weights.safetensors")
    h = np.einsum("bnd,ndf->bf", x.numpy(), w["W_E"]) + w["b_E"].sum(0)
    score = h[:, None] * np.linalg.norm(w["W_D"], axis=2)
    np.testing.assert_array_equal(f > 0, score > 0.7)


def test_what_is_imported_goes_on_to_histories_and_single_features(tmp_path):
    """The stages that follow read it from its folder as one of our own."""
    folder = foreign(tmp_path / "theirs", "jumprelu")
    words = ["--steps", ",".join(map(str, STEPS)), "--layer", "6", "--stream", "residual"]
    made = tmp_path / "made"
    with pytest.raises(SystemExit) as end:
        main(["import", "llamascopium", str(folder), str(made), *words])
    assert end.value.code == 0
    loaded = Crosscoder.load(made)
    density = tmp_path / "density.parquet"
    pd.DataFrame({"density": np.full(F, 0.1), "dead": np.zeros(F, bool)}).to_parquet(density)
    changes = {"snapshots.steps": STEPS, "snapshots.pretrain.steps": STEPS[-1]}
    experiment = Experiment(tmp_path / "tiny", settings.load(tiny(changes)))
    tables = {name: experiment.path(name) for name in registry.stages()["features"].makes}
    histories.describe(experiment.settings, [made], [density], **tables)
    strengths = experiment.table("strengths")["strength"].to_numpy()
    W_D = load_file(folder / "sae_weights.safetensors")["W_D"]
    np.testing.assert_allclose(strengths.reshape(F, N).T, np.linalg.norm(W_D, axis=2), rtol=1e-5)
    x, which = rows(loaded), torch.tensor([3, 9])
    readout = Readout(loaded, which)
    sums = torch.zeros(B, 2)
    for site in range(N):
        sums += (x[:, site] - readout.centre(site)) @ readout.weights(site).T
    found = readout.activations(sums, torch.arange(2))
    torch.testing.assert_close(found, loaded.encode(x).amax(2)[:, which], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_other_constants_of_the_activations_leave_the_function(kind, tmp_path):
    """Of raw activations the same: exactly with one gate a feature, or constants in proportion."""
    llamascopium.write(crosscoder(*kind), tmp_path / "out")
    trained = llamascopium.read(tmp_path / "out")
    x = rows(trained)
    f, again = ours(trained, x)
    spread = torch.linspace(0.6, 1.7, N) if kind[1] == "feature" else torch.full((N,), 1.3)
    wanted = trained.scales_in * spread
    found, moved = scales.rescaled(trained, wanted, "theirs")
    assert moved == pytest.approx(0, abs=1e-6)
    assert found.about.tokens == "theirs"
    other_f, other = ours(found, x * spread[:, None])
    np.testing.assert_array_equal(other_f > 0, f > 0)
    np.testing.assert_allclose(other / spread[:, None].numpy(), again, atol=3e-5)
    if kind[1] == "snapshot":
        _, moved = scales.rescaled(trained, trained.scales_in * torch.linspace(0.9, 1.1, N), "")
        assert 0.05 < moved < 0.15


def changed(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


def with_tensor(folder: Path, name: str, value: np.ndarray | None) -> None:
    tensors = load_file(folder / "sae_weights.safetensors")
    tensors.pop(name)
    if value is not None:
        tensors[name] = value
    save_file(tensors, folder / "sae_weights.safetensors")


FAULTS = {
    "lacks act_fn": lambda f: changed(f, act_fn=None),
    "act_fn 'layertopk' is not supported; supported are relu, jumprelu, batchtopk": lambda f: (
        changed(f, act_fn="layertopk")
    ),
    "sae_type is 'clt', not crosscoder": lambda f: changed(f, sae_type="clt"),
    "norm_activation 'token-wise' scales each token": lambda f: changed(
        f, norm_activation="token-wise"
    ),
    "hook_points must be a list of different names": lambda f: changed(f, hook_points=["a", "a"]),
    "d_model is 'six', not a positive number": lambda f: changed(f, d_model="six"),
    "'ontogeny' is of another version; remove it": lambda f: changed(f, ontogeny={"seed": 1}),
    r"lacks the tensor W_D; it has \[.*'W_E'": lambda f: with_tensor(f, "W_D", None),
    r"W_D is \(4, 40, 6\), not \(5, 40, 6\)": lambda f: with_tensor(
        f, "W_D", np.zeros((4, F, D), np.float32)
    ),
    "b_D has values that are not finite": lambda f: with_tensor(
        f, "b_D", np.full((N, D), np.nan, np.float32)
    ),
    "is not positive; export it after training": lambda f: with_tensor(
        f, "dataset_average_activation_norm.blocks.6.hook_resid_post@4", np.zeros((), np.float32)
    ),
    "config.json: not JSON": lambda f: (f / "config.json").write_text("{"),
    "config.json: missing; name a folder": lambda f: (f / "config.json").unlink(),
    "sae_weights.safetensors: missing or damaged": lambda f: (
        f / "sae_weights.safetensors"
    ).write_bytes(b"no"),
    "has none of sae_weights.safetensors": lambda f: (f / "sae_weights.safetensors").unlink(),
}


@pytest.mark.parametrize("told", FAULTS)
def test_a_folder_that_is_not_of_the_format_is_told_what_it_lacks(told, tmp_path):
    folder = foreign(tmp_path / "theirs", "jumprelu")
    FAULTS[told](folder)
    with pytest.raises(InputError, match=told):
        llamascopium.read(folder, STEPS, 6, "residual")


def test_names_in_a_foreign_folder_do_not_drive_the_terminal(tmp_path):
    hostile = "\x1b[2J"
    changes = [{key: hostile} for key in ("act_fn", "sae_type", "norm_activation", "d_model")]
    changes += [{"ontogeny": {hostile: 1}}, {"hook_points": [f"{hostile}{i}" for i in range(N)]}]
    for i, change in enumerate(changes):
        folder = foreign(tmp_path / str(i), "relu")
        changed(folder, **change)
        with pytest.raises(InputError, match=r"\\x1b\[2J|remove it") as told:
            llamascopium.read(folder)
        assert "\x1b" not in str(told.value)


@pytest.mark.parametrize(
    ("act", "given", "told"),
    [
        ("batchtopk", {}, "act_fn batchtopk has no threshold for single tokens; give --threshold"),
        ("relu", {"threshold": 1.0}, "--threshold: act_fn relu has its own"),
        ("relu", {"steps": [1, 2]}, "--steps: 2 for 5 hook points"),
        ("relu", {"layer": None}, "do not say which sites they are; give --steps .*5 in order"),
    ],
)
def test_options_that_are_missing_or_wrong(act, given, told, tmp_path):
    folder = foreign(tmp_path / "theirs", act)
    with pytest.raises(InputError, match=told):
        llamascopium.read(folder, **({"steps": STEPS, "layer": 6, "stream": "residual"} | given))


def test_what_a_format_cannot_state_is_refused(tmp_path):
    one = crosscoder()
    other = replace(one.about, outputs=[(9, 3, "residual")] * N)
    with pytest.raises(InputError, match="read and write the same sites"):
        llamascopium.write(Crosscoder(other, one._tensors), tmp_path / "out")
    with pytest.raises(InputError, match=r"several sites .* there are steps 0, 4, 16, 64, 256 of"):
        saelens.write(one, tmp_path / "out")
    with pytest.raises(InputError, match="no site of that --step"):
        saelens.write(one, tmp_path / "out", 5)


@pytest.mark.parametrize("write", [llamascopium.write, lambda c, o: saelens.write(c, o, 4)])
def test_a_folder_is_written_whole_and_never_over_another(write, tmp_path, monkeypatch):
    write(crosscoder(), tmp_path / "out")
    with pytest.raises(InputError, match="exists already"):
        write(crosscoder(), tmp_path / "out")

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(plain, "save_file", full)
    with pytest.raises(OSError, match="no space"):
        write(crosscoder(), tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# SAELens


def by_saelens(folder: Path, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Its encode and decode of raw activations (B, d_in), as its source has them."""
    config = json.loads((folder / "cfg.json").read_text())
    assert config["normalize_activations"] == "none"
    assert config["apply_b_dec_to_input"] is False
    w = {name: value.astype(np.float64) for name, value in
         load_file(folder / "sae_weights.safetensors").items()}  # fmt: skip
    h = x @ w["W_enc"] + w["b_enc"]
    f = np.maximum(h, 0) * (h > w["threshold"] if config["architecture"][:4] == "jump" else 1)
    return f, f @ w["W_dec"] + w["b_dec"]


def raw_of(trained: Crosscoder, x: torch.Tensor) -> np.ndarray:
    return (x / trained.scales_in[:, None]).flatten(1).numpy()


@pytest.mark.parametrize(("activation", "gate", "basis"), KINDS)
@pytest.mark.parametrize("sites", [1, N])
def test_saelens_by_its_formulas(activation, gate, basis, sites, tmp_path):
    """One site: an SAE. More: a transcoder from all of them to one, the second here."""
    trained = crosscoder(activation, gate, basis, sites)
    site = min(1, sites - 1)
    x = rows(trained)
    config = saelens.write(trained, tmp_path / "out", STEPS[site])
    kind = "transcoder" if sites > 1 else "standard"
    if activation != "relu":
        kind = "jumprelu_transcoder" if sites > 1 else "jumprelu"
    assert config["architecture"] == kind
    assert config["d_in"] == sites * D
    f, again = by_saelens(tmp_path / "out", raw_of(trained, x))
    wanted_f, wanted = ours(trained, x)
    assert (wanted_f[:, site] > 0).any()
    np.testing.assert_array_equal(f > 0, wanted_f[:, site] > 0)
    np.testing.assert_allclose(f, wanted_f[:, site], atol=2e-5)
    scale = float(trained.scales_out[site])
    np.testing.assert_allclose(again * scale, wanted[:, site], atol=3e-5)


def test_an_sae_of_one_snapshot_alone_is_the_least_squares_one(finished, tmp_path):
    """On the tiny experiment: the weights are NumPy's, and what is told is what it does."""
    seed = finished / RESULTS / "crosscoders/batchtopk/seed0"
    trained = Crosscoder.load(seed)
    activations = finished / RESULTS / "activations"
    config = saelens.write(trained, tmp_path / "out", 8, alone=activations)
    assert config["architecture"] == "jumprelu"
    sites = [Site(*place) for place in trained.about.inputs]
    train, held_out = Cached(activations, sites), HeldOut(activations, sites)
    own = [place[0] for place in trained.about.inputs].index(8)
    x = torch.from_numpy(train.read(0, train.rows))
    design = np.c_[x[:, own].double().numpy(), np.ones(len(x))]
    h = trained.pre_activations(x).double().numpy()
    best = np.linalg.lstsq(design, h, rcond=None)[0]
    w = load_file(tmp_path / "out/sae_weights.safetensors")
    scale = float(trained.scales_in[own])
    np.testing.assert_allclose(w["W_enc"] / scale, best[:-1], atol=1e-3 * np.abs(best).max())
    np.testing.assert_allclose(w["b_enc"], best[-1], atol=1e-3 * np.abs(best).max())
    held = held_out.read(0, held_out.rows)
    f, again = by_saelens(tmp_path / "out", held[:, own] / scale)
    there, lost = held[:, own] - held[:, own].mean(0), held[:, own] - again * scale
    told = config["metadata"]
    explained = 1 - (lost**2).sum() / (there**2).sum()
    assert told["alone"]["explained_variance"] == pytest.approx(explained, abs=1e-4)
    assert told["alone"]["l0"] == pytest.approx((f > 0).sum(1).mean(), rel=1e-3)
    fidelity = pd.read_csv(seed / "fidelity.csv").set_index("step")
    wanted = fidelity.loc[8, "explained_variance"]
    assert told["crosscoder"]["explained_variance"] == pytest.approx(wanted, abs=1e-4)
    assert told["alone"]["explained_variance"] < told["crosscoder"]["explained_variance"]


def test_an_import_is_scaled_as_the_activations_that_it_is_used_on(finished, tmp_path):
    """Of a folder with other constants: explained variance is that of the crosscoder exported."""
    seed = finished / RESULTS / "crosscoders/batchtopk/seed0"
    activations = finished / RESULTS / "activations"
    trained = Crosscoder.load(seed)
    other, _ = scales.rescaled(saved_again(trained, tmp_path), trained.scales_in * 1.5, "")
    llamascopium.write(other, tmp_path / "theirs")
    found, _ = scales.for_activations(llamascopium.read(tmp_path / "theirs"), activations)
    held_out = HeldOut(activations, [Site(*place) for place in trained.about.inputs])
    assert found.about.tokens == trained.about.tokens
    assert found.scales_in.tolist() == held_out.scales.tolist()
    x = torch.from_numpy(held_out.read(0, 500))
    agree(trained, *ours(found, x), x)
    with pytest.raises(InputError, match=r"residual\.3"):  # a layer that is not there
        scales.for_activations(crosscoder(), activations)


def saved_again(trained: Crosscoder, folder: Path) -> Crosscoder:
    """The same without its subspace and centre."""
    llamascopium.write(trained, folder / "plain")
    return llamascopium.read(folder / "plain")


# The libraries themselves


def reads(peer: str, folders: list[Path]) -> None:
    """Have a peer's library, in its own environment, read folders and use them."""
    python = environments.python_of(peer, ROOT / environments.ENVIRONMENTS)
    if python is None:
        pytest.skip(f"{peer} is not there; python -m benchmarks.environments {peer}")
    words = [python, PEERS / f"{peer}_reads.py", *folders]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def test_llamascopium_itself_reconstructs_the_same(tmp_path):
    cases = []
    for i, (activation, gate, basis) in enumerate(KINDS):
        trained = crosscoder(activation, gate, basis)
        folder = tmp_path / str(i)
        llamascopium.write(trained, folder)
        x = rows(trained)
        np.save(folder / "raw.npy", (x / trained.scales_in[:, None]).numpy())
        cases.append((trained, folder, x))
    reads("llamascopium", [folder for _, folder, _ in cases])
    for trained, folder, x in cases:
        again = np.load(folder / "reconstruction.npy") * trained.scales_out[:, None].numpy()
        agree(trained, np.load(folder / "f.npy"), again, x)
        back = llamascopium.read(folder / "saved")  # of which the library has written each byte
        assert back.about.outputs == trained.about.outputs
        assert (back.about.gate, back.about.width) == (trained.about.gate, D)
        agree(trained, *ours(back, x), x)


def test_llamascopium_itself_has_the_same_loss(tmp_path):
    """And gradients, on the same weights and rows: a step of either is a step of one training."""
    trained, sparsity = crosscoder("jumprelu", "snapshot", basis=False), 0.3
    folder = tmp_path / "made"
    llamascopium.write(trained, folder)
    x = rows(trained)
    np.save(folder / "raw.npy", (x / trained.scales_in[:, None]).numpy())
    np.save(folder / "sparsity.npy", np.array(sparsity))
    reads("llamascopium", [folder])
    theirs = np.load(folder / "loss.npz")
    held = plain.plain(trained)
    W = Weights(
        held.E.flatten(0, 1).T.contiguous(), held.b, by_block(held.W_dec), held.b_dec.flatten(),
        trained.weights.log_threshold,
    )  # fmt: skip
    G = Weights(**{name: torch.zeros_like(t) for name, t in W.named().items()})
    out = losses.jumprelu(
        W, G, x.flatten(1), x.transpose(0, 1), torch.tensor(sparsity), torch.arange(B), sites=N,
        per_site=True, penalty="pooled", bandwidth=2.0, refit=False,
    )  # fmt: skip
    assert theirs["tanh-quad loss"] == pytest.approx(out.loss.item(), rel=1e-5)
    wanted = {
        "W_E": G.W_enc.T.unflatten(0, (N, D)),
        "W_D": G.W_dec.transpose(0, 1),
        "b_D": G.b_dec.unflatten(0, (N, D)),
    }
    for name, gradient in wanted.items():
        found = theirs[f"tanh-quad {name}"]
        living = held.W_dec.norm(dim=2).T > 0  # (N, F); their gradient of no decoder divides by 0
        if name == "W_D":
            found, gradient = found[living], gradient[living]
        gap = np.abs(found - gradient.numpy()).max()
        assert gap < 2e-5 * gradient.abs().max(), name


def test_saelens_itself_reconstructs_the_same(tmp_path):
    cases = []
    for activation, gate, basis in KINDS:
        for sites in (1, N):
            trained = crosscoder(activation, gate, basis, sites)
            folder = tmp_path / f"{activation}-{gate}-{basis}-{sites}"
            site = min(1, sites - 1)
            saelens.write(trained, folder, STEPS[site])
            x = rows(trained)
            np.save(folder / "raw.npy", raw_of(trained, x))
            cases.append((trained, site, folder, x))
    reads("saelens", [folder for _, _, folder, _ in cases])
    classes = set()
    for trained, site, folder, x in cases:
        f, again = ours(trained, x)
        np.testing.assert_array_equal(np.load(folder / "f.npy") > 0, f[:, site] > 0)
        found = np.load(folder / "reconstruction.npy") * float(trained.scales_out[site])
        np.testing.assert_allclose(found, again[:, site], atol=3e-5)
        classes.add((folder / "class.txt").read_text())
    assert classes == {"StandardSAE", "JumpReLUSAE", "Transcoder", "JumpReLUTranscoder"}


# A folder for the hub


def test_the_hubs_folder_of_an_experiment(finished, tmp_path):
    """Its card has the experiment's numbers; there and back the bytes are the same."""
    results = finished / RESULTS
    seed = results / "crosscoders/batchtopk/seed0"
    done = finished.command("ontogeny", "export", "hub", str(results), str(tmp_path / "out"),
                            "--licence", "mit")  # fmt: skip
    assert done.returncode == 0, done.stderr
    read = ModelCard.load(tmp_path / "out/README.md")
    assert isinstance(read.data, ModelCardData)
    assert read.data.license == "mit"
    assert read.data.library_name == "ontogeny"
    assert "crosscoder" in read.data.tags
    fidelity = pd.read_csv(seed / "fidelity.csv")
    dead = pd.read_parquet(seed / "density.parquet")["dead"]
    for wanted in (
        "| snapshots (training steps) | 0, 2, 8, 20, 40 |",
        "| sites | residual.0 |",
        f"mean {fidelity['explained_variance'].mean():.4f}, least",
        f"| L0 | {fidelity['l0'].mean():.2f} |",
        f"| dead features | {dead.mean():.2%} |",
        "| licence of the text | leads of English Wikipedia articles, CC BY-SA |",
        "| rows of activations trained on | 153,600 |",
        "2509.17196",
        "results/tiny/crosscoders/batchtopk/seed0/crosscoder.safetensors",
        "torch 2.",
    ):
        assert wanted in read.text, wanted
    for row in fidelity.to_dict("records"):
        cells = [f"{row[k]:.4g}" for k in ("explained_variance", "l0", "loss", "loss_spliced")]
        assert f"| {row['step']} | {' | '.join(cells)} | " in read.text
    configuration = yaml.safe_load((tmp_path / "out/experiment.yaml").read_text())
    assert configuration["name"] == "tiny"
    hub.read(tmp_path / "out", tmp_path / "back")
    for name in ("config.json", "crosscoder.safetensors"):
        assert (tmp_path / "back" / name).read_bytes() == (seed / name).read_bytes()


def test_a_card_without_an_experiment_says_what_is_known(tmp_path):
    crosscoder().save(tmp_path / "made")
    hub.write(tmp_path / "made", tmp_path / "out", None, data_licence="CC0")
    text = (tmp_path / "out/README.md").read_text()
    metadata = yaml.safe_load(text.split("---\n")[1])
    assert set(metadata) == {"library_name", "tags"}
    assert "40 features (39 living)" in text
    assert "threshold 0.4" in text
    assert "| licence of the text | CC0 |" in text
    assert "experiment.yaml" not in text
    assert "explained variance" not in text


def test_names_in_a_card_are_no_markup(tmp_path):
    """A name of an experiment, a repository or a licence ends neither the YAML nor a table."""
    hostile = "a | b\n---\n<script>x</script> `c` [d](e)"
    trained = crosscoder()
    trained.save(tmp_path / "made")
    plainly = settings.load(tiny())
    hub_ = settings.Hub.model_construct(repository=hostile)
    corpus = plainly.corpus.model_copy(
        update={"wheels": None, "dataset": settings.Dataset(name=hostile)}
    )
    snapshots = plainly.snapshots.model_copy(update={"hub": hub_, "pretrain": None})
    named = {"name": hostile, "corpus": corpus, "snapshots": snapshots}
    experiment = Experiment(tmp_path, plainly.model_copy(update=named))
    text = card.write(trained, tmp_path / "made", experiment, hostile, hostile)
    metadata = yaml.safe_load(text[4:].split("\n---\n\n# ")[0])
    assert metadata["license"] == metadata["base_model"] == hostile
    assert metadata["datasets"] == [hostile]
    body = text.split("\n---\n\n# ", 1)[1]
    assert "<script>" not in body
    for line in body.splitlines():
        if line.startswith("| model "):
            assert line.replace(r"\|", "").count("|") == 3


def test_the_hubs_folder_is_checked_on_the_way_back(tmp_path):
    trained = crosscoder(basis="full")
    trained.save(tmp_path / "made")
    with pytest.raises(InputError, match=r"config.json: missing; name a folder of this format"):
        hub.read(tmp_path, tmp_path / "back")
    changed(tmp_path / "made", features=F + 1)
    with pytest.raises(InputError, match=rf"decoders are \({F}, 5, 6\), but its config says \(41"):
        hub.read(tmp_path / "made", tmp_path / "back")
    changed(tmp_path / "made", gate=None)
    with pytest.raises(InputError, match="lacks gate"):
        hub.read(tmp_path / "made", tmp_path / "back")
    shutil.copy(tmp_path / "made/config.json", tmp_path / "made/crosscoder.safetensors")
    changed(tmp_path / "made", gate="feature", features=F)
    with pytest.raises(InputError, match="not a crosscoder of this version"):
        hub.read(tmp_path / "made", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_no_such_crosscoder_is_said(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tiny()))
    made, damaged = tmp_path / "crosscoders/batchtopk/seed3", tmp_path / "damaged"
    crosscoder().save(made)
    damaged.mkdir()
    (damaged / "crosscoder.safetensors").write_bytes(b"no")
    for words, told in (
        ([tmp_path], "seed0: no crosscoder; there are batchtopk/seed3"),
        ([tmp_path, "--seed", "3", "--crosscoder", "other"], "there are batchtopk/seed3"),
        ([damaged], "not a crosscoder of this version"),
        ([tmp_path / "none"], "not the folder of an experiment; name its folder"),
        ([made, "--seed", "3"], "this is already a crosscoder; leave out --crosscoder and --seed"),
    ):
        with pytest.raises(SystemExit):
            main(["export", "hub", *map(str, words), str(tmp_path / "o")])
        assert told in capsys.readouterr().err


def test_a_crosscoders_own_folder_takes_the_experiments_place(finished, tmp_path):
    """It is found to be one of the experiment around it, or of none."""
    results = finished / RESULTS
    seed = results / "crosscoders/batchtopk/seed1"
    words = ["--crosscoder", "batchtopk", "--seed", "1"]
    shutil.copytree(seed, tmp_path / "alone")
    for name, given in (
        ("named", [results, *words]),
        ("found", [seed]),
        ("bare", [tmp_path / "alone"]),
    ):
        with pytest.raises(SystemExit) as end:
            main(["export", "hub", *map(str, given), str(tmp_path / name)])
        assert end.value.code == 0
    read = {
        name: (tmp_path / name / "README.md").read_text() for name in ("named", "found", "bare")
    }
    assert read["named"] == read["found"]
    assert (tmp_path / "found/experiment.yaml").exists()
    assert "experiment.yaml" not in read["bare"]
    with pytest.raises(SystemExit):
        main(["export", "saelens", str(tmp_path / "alone"), str(tmp_path / "x"), "--alone"])
