"""Every kind of dictionary trains from the one implementation: the sites alone differ."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import RESULTS, tiny

from ontogeny import settings
from ontogeny.activations import basis, extract, store
from ontogeny.activations.rows import Cached, RowPaths
from ontogeny.activations.sites import expand
from ontogeny.activations.subspace import Subspace, project
from ontogeny.crosscoder import fidelity, train
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.features.held_out import inputs_of
from ontogeny.files import InputError

CPU = torch.device("cpu")

STEPS = [0, 40]
ALL = {"layers": [0, 1], "streams": ["residual", "mlp_in", "mlp_out"]}
COMMON = {"features": 64, "k": 6, "steps": 200, "batch_rows": 256, "aux_features": 0, "seeds": [0]}
COMMON["gate"] = "feature"
COMMON |= {"learning_rate": 3e-3, "dead_after_rows": 20_000}


def sites(layers: list[int], streams: list[str], steps: list[int]) -> dict:
    return {"layers": layers, "streams": streams, "snapshots": steps}


LAST = [40]
KINDS = {
    "sae": {"inputs": sites([1], ["residual"], LAST), "basis": "full"},
    "transcoder": {
        "inputs": sites([1], ["mlp_in"], LAST),
        "outputs": sites([1], ["mlp_out"], LAST),
        "basis": "full",
    },
    "cross_layer": {"inputs": sites([0, 1], ["residual"], LAST), "basis": "full"},
    "cross_snapshot": {"inputs": sites([0], ["residual"], STEPS), "basis": "principal"},
    "per_snapshot_jumprelu": {
        "inputs": sites([0], ["residual"], STEPS),
        "basis": "full",
        "activation": "jumprelu",
        "gate": "snapshot",
        "sparsity": 0.02,
    },
    "relu": {
        "inputs": sites([0], ["residual"], STEPS),
        "basis": "full",
        "activation": "relu",
        "sparsity": 0.5,
    },
    "hybrid": {"inputs": sites([0], ["residual"], STEPS), "basis": "hybrid", "gate": "snapshot"},
    "hybrid_falling_k": {
        "inputs": sites([0], ["residual"], STEPS),
        "basis": "hybrid",
        "gate": "snapshot",
        "k_start": 12,
    },
    "hybrid_jumprelu": {
        "inputs": sites([0], ["residual"], STEPS),
        "basis": "hybrid",
        "activation": "jumprelu",
        "gate": "snapshot",
        "penalty": "per_snapshot",
        "sparsity": 0.02,
    },
    "hybrid_auxk": {
        "inputs": sites([0], ["residual"], STEPS),
        "basis": "hybrid",
        "aux_features": 16,
        "aux_k": 4,
    },
}


@pytest.fixture(scope="module")
def experiment(finished, tmp_path_factory) -> tuple[settings.Settings, Path]:
    """Activations of both layers' streams at two snapshots of the tiny model."""
    changes = {"activations": ALL, "crosscoders": {n: COMMON | k for n, k in KINDS.items()}}
    s = settings.load(tiny(changes | {"snapshots.steps": STEPS, "primary": "sae"}))
    folder = tmp_path_factory.mktemp("kinds")
    for step in STEPS:
        snapshot = finished / RESULTS / f"snapshots/step{step}"
        tokens = finished / RESULTS / "corpus/tokens.h5"
        extract.extract(s, snapshot, step, tokens, folder)
    for place in sorted(folder.iterdir()):
        files = [place / f"step{step}.h5" for step in STEPS]
        store.stack(files, STEPS, place / "stack.h5")
    return s, folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_trains_and_explains_its_outputs(kind, experiment, tmp_path, monkeypatch):
    s, activations = experiment
    monkeypatch.setattr(train.devices, "compiled", lambda function, device: function)
    c = s.crosscoders[kind]
    paths = RowPaths(activations)
    if c.basis != "full":
        directions, projected = tmp_path / "basis.h5", tmp_path / "rows.h5"
        rows = Cached(activations, expand(c.inputs, STEPS))
        basis.build(s.basis, rows, directions, CPU)
        project(directions, rows, 0, projected, CPU)
        paths = RowPaths(activations, directions, (projected,))
    train.train(s, kind, 0, paths, tmp_path / "out", tmp_path / "state")
    trained = Crosscoder.load(tmp_path / "out")
    outputs = expand(c.outputs or c.inputs, STEPS)
    assert trained.about.outputs == [[o.snapshot, o.layer, o.stream] for o in outputs]
    assert trained.W_dec.shape == (64, len(outputs), 32)
    by_site, by_feature, kept = fidelity.explained(trained, activations, 0.1, 100)
    assert len(by_site) == len(outputs)
    assert by_site["explained_variance"].min() > 0.4
    inputs = inputs_of(trained, activations)
    whole = trained.encode(torch.from_numpy(inputs.read(0, inputs.rows)))
    peak = trained.encode_peak(torch.from_numpy(inputs.read(0, inputs.rows)))
    on = whole > 0
    assert torch.equal(peak, whole if whole.ndim == 2 else whole.amax(2))
    l0 = on.sum(1).float().mean(0).expand(len(outputs)).numpy()
    np.testing.assert_allclose(by_site["l0"], l0, rtol=1e-5)
    density = (on if on.ndim == 2 else on.any(2)).float().mean(0).numpy()
    np.testing.assert_allclose(by_feature["density"], density, atol=1e-6)
    given, (_, y) = trained.decode(whole), fidelity._held_out(trained, activations)
    lost = (torch.from_numpy(y.read(0, y.rows)) - given).square().sum((0, 2))
    there = torch.from_numpy(y.read(0, y.rows))
    there = (there - there.mean(0)).square().sum((0, 2))
    np.testing.assert_allclose(by_site["explained_variance"], 1 - lost / there, atol=1e-5)
    f = whole[:100]
    gates = [f[:, :, n] for n in range(len(outputs))] if c.gate == "snapshot" else [f]
    for mine, own in zip(kept, gates, strict=True):
        torch.testing.assert_close(mine.to_dense(), own)
    pca = fidelity.pca(s, trained, paths, 6)
    assert (0 < pca).all()
    if c.outputs is None:  # components of the outputs see what a transcoder has to predict
        assert (pca < by_site["explained_variance"]).all()
    if c.activation == "batch_topk":
        assert by_site["l0"].mean() == pytest.approx(6, rel=0.15)
    assert 0 < by_feature["density"].max() <= 1
    metrics = pd.read_csv(tmp_path / "out" / "metrics.csv")
    assert metrics["explained_variance"].iloc[-1] > metrics["explained_variance"].iloc[0]


def test_sparsity_is_steered_to_a_wanted_l0(experiment, tmp_path, monkeypatch, capsys):
    """To half of what λ alone leaves. More than it begins with is not reached, and that is told."""
    s, activations = experiment
    monkeypatch.setattr(train.devices, "compiled", lambda function, device: function)
    kind, ends = "per_snapshot_jumprelu", []
    own = s.crosscoders[kind].model_copy(update={"steps": 900, "penalty": "per_snapshot"})
    for case in ("free", "half", "most"):
        wanted = {"free": None, "half": ends[0]["l0"] / 2 if ends else 0, "most": 60.0}[case]
        monkeypatch.setitem(s.crosscoders, kind, own.model_copy(update={"l0": wanted}))
        folder = tmp_path / str(wanted)
        train.train(s, kind, 0, RowPaths(activations), folder, folder / "state")
        ends.append(pd.read_csv(folder / "metrics.csv").iloc[-4:].mean())
        told = f"crosscoders.{kind}.l0: L0 ended at" in capsys.readouterr().err
        assert told == (case == "most")
    free, steered, _ = ends
    assert free["sparsity"] == pytest.approx(own.peak_sparsity)
    assert steered["sparsity"] > free["sparsity"]
    assert steered["l0"] == pytest.approx(free["l0"] / 2, rel=0.25)


def test_at_full_rank_the_subspace_gives_the_full_dictionary(experiment, tmp_path):
    """With nothing left out, U only turns the space: reconstructions agree to rounding."""
    s, activations = experiment
    rows = Cached(activations, expand(s.crosscoders["cross_snapshot"].inputs, STEPS))
    file = tmp_path / "basis.h5"
    exact = s.basis.model_copy(update={"max_variance_lost": 1e-9})
    basis.build(exact, rows, file, CPU)
    U = torch.from_numpy(Subspace(file).U)
    if U.shape[0] != U.shape[1]:
        pytest.fail(f"the subspace has {U.shape[1]} of {U.shape[0]} dimensions")
    W = torch.randn(16, U.shape[0], generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(rows.read(0, 64)).flatten(1)
    turned = (x @ U @ (W @ U).T) @ (W @ U) @ U.T
    torch.testing.assert_close(turned, (x @ W.T) @ W, rtol=1e-3, atol=1e-2)


@pytest.mark.usefixtures("saved_at_each_look")
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(
    experiment, tmp_path, monkeypatch
):
    s, activations = experiment
    monkeypatch.setattr(train.devices, "compiled", lambda function, device: function)
    monkeypatch.setattr(train.native, "library", lambda: None)
    real = train.losses.batch_topk

    def fails_in_step_73(W, G, x, *rest, **options):
        out = real(W, G, x, *rest, **options)
        steps.append(len(x))
        at = len(steps) - len(train.NORM_GRID)
        return out._replace(loss=out.loss * float("nan")) if at == 73 else out

    steps: list[int] = []
    monkeypatch.setattr(train.losses, "batch_topk", fails_in_step_73)
    state = tmp_path / "state"
    first = 72 * 256 % Cached(activations, expand(s.crosscoders["sae"].inputs, STEPS)).rows
    with pytest.raises(InputError, match=rf"not finite at step 73 \(rows {first} to .*lower it"):
        train.train(s, "sae", 0, RowPaths(activations), tmp_path / "out", state)
    with h5py.File(state / "state.h5") as file:
        assert file.attrs["step"] == 50
    assert not (tmp_path / "out").exists()


def test_an_activation_that_is_not_finite_is_named(experiment, tmp_path, monkeypatch):
    s, activations = experiment
    real = Cached.read

    def damaged(self, start, stop):
        rows = real(self, start, stop)
        if start <= 777 < stop:
            rows[777 - start, 1, 8] = np.inf
        return rows

    monkeypatch.setattr(Cached, "read", damaged)
    paths = RowPaths(activations)
    with pytest.raises(
        InputError, match=r"activations of residual.1/step40: a value in row 777 is not finite;"
    ):
        train.train(s, "cross_layer", 0, paths, tmp_path / "out", tmp_path / "state")


@pytest.mark.parametrize(
    ("aux_features", "dead", "size"),
    [(128, 0, 0), (128, 1, 32), (128, 33, 64), (128, 65, 128), (128, 500, 128), (16, 3, 16),
     (16, 16, 16), (20, 17, 20), (0, 5, 0)],
)  # fmt: skip
def test_auxk_looks_at_as_many_features_as_the_dead_ask_for(aux_features, dead, size):
    c = settings.Crosscoder(
        inputs={"layers": [0]}, features=1000, steps=1, aux_features=aux_features, aux_k=16
    )
    silent = torch.zeros(1000, dtype=torch.long)
    silent[:dead] = c.dead_after_rows
    assert train.aux_size(silent, c) == size
    relu = c.model_copy(update={"activation": "relu"})
    assert train.aux_size(silent, relu) == 0


def test_compact_moments_train_as_well(experiment, tmp_path, monkeypatch):
    s, activations = experiment
    monkeypatch.setattr(train.devices, "compiled", lambda function, device: function)
    ends = {}
    for moments in ("float32", "compact"):
        s.crosscoders["sae"] = s.crosscoders["sae"].model_copy(update={"moments": moments})
        train.train(s, "sae", 0, RowPaths(activations), tmp_path / moments, tmp_path / "state")
        ends[moments] = pd.read_csv(tmp_path / moments / "metrics.csv").iloc[-1]
        shutil.rmtree(tmp_path / "state", ignore_errors=True)
    assert ends["compact"]["bytes_per_parameter"] < 11 < ends["float32"]["bytes_per_parameter"]
    gap = ends["compact"]["explained_variance"] - ends["float32"]["explained_variance"]
    assert abs(gap) < 0.05


@pytest.mark.usefixtures("saved_at_each_look")
@pytest.mark.parametrize("kind", ["sae", "per_snapshot_jumprelu"])
@pytest.mark.parametrize("core", [True, False])
def test_a_training_goes_on_from_its_state_to_the_same_bytes(
    kind, core, experiment, tmp_path, monkeypatch
):
    s, activations = experiment
    monkeypatch.setattr(train.devices, "compiled", lambda function, device: function)
    if not core:
        monkeypatch.setattr(train.native, "library", lambda: None)
    state = tmp_path / "state"
    train.train(s, kind, 0, RowPaths(activations), tmp_path / "out", state)
    with h5py.File(state / "state.h5") as file:
        assert file.attrs["step"] == 150
    again = tmp_path / "again"
    train.train(s, kind, 0, RowPaths(activations), again, state)
    one, other = (folder / "crosscoder.safetensors" for folder in (tmp_path / "out", again))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.usefixtures("saved_at_each_look")
def test_a_state_of_other_rows_is_not_gone_on_from(experiment, tmp_path, monkeypatch):
    """Text or a checkpoint that was changed in its place leaves the state's name as it was."""
    s, activations = experiment
    monkeypatch.setattr(train.devices, "compiled", lambda function, device: function)
    other = tmp_path / "activations"
    shutil.copytree(activations, other)
    for path in other.glob("residual.*/stack.h5"):
        with h5py.File(path, "r+") as file:
            file.attrs["scales"] = 1.5 * file.attrs["scales"]
    weights = []
    for places, state in ((activations, "kept"), (other, "kept"), (other, "new")):
        out = tmp_path / f"out{len(weights)}"
        train.train(s, "sae", 0, RowPaths(places), out, tmp_path / state)
        weights.append((out / "crosscoder.safetensors").read_bytes())
    assert weights[0] != weights[1] == weights[2]


def test_loss_recovered_and_its_interval_over_blocks():
    given = settings.load(tiny({"analysis.bootstrap": 2000}))
    rng = np.random.default_rng(0)
    loss = rng.uniform(30, 40, 400)
    damage = rng.uniform(10, 30, 400)
    noise = rng.normal(0, 4, 400)
    made = fidelity.recovered(loss, loss + 0.2 * damage + noise, loss + damage, 10, given)
    assert made["loss"] == pytest.approx(loss.mean() / 10)
    assert made["loss_ablated"] == pytest.approx((loss + damage).mean() / 10)
    expected = 0.8 - noise.sum() / damage.sum()
    assert made["loss_recovered"] == pytest.approx(expected)
    # noise of 4 on damage of 20, over 400 blocks
    width = 2 * 1.96 * 4 / 20 / 400**0.5
    assert made["loss_recovered_high"] - made["loss_recovered_low"] == pytest.approx(width, rel=0.1)
    assert made["loss_recovered_low"] < expected < made["loss_recovered_high"]
    exact = fidelity.recovered(loss, loss + 0.2 * damage, loss + damage, 10, given)
    bounds = exact["loss_recovered_low"], exact["loss_recovered_high"]
    assert bounds == pytest.approx((0.8, 0.8))


@pytest.mark.parametrize("steps", [3, 40])
@pytest.mark.parametrize("kind", ["sae", "hybrid"])
def test_after_few_steps_l0_is_k(kind, steps, experiment, tmp_path, monkeypatch):
    """The running mean of thresholds is still near the first one, which the scores have left."""
    s, activations = experiment
    monkeypatch.setattr(train.devices, "compiled", lambda function, device: function)
    own = s.crosscoders["sae"].model_copy(
        update={"steps": steps, "learning_rate": 1e-2, "k": 6, "gate": "snapshot"}
        if kind == "sae"
        else {"steps": steps, "inputs": s.crosscoders["hybrid_auxk"].inputs, "gate": "feature"}
    )
    monkeypatch.setitem(s.crosscoders, "sae", own)
    train.train(s, "sae", 0, RowPaths(activations), tmp_path / "out", tmp_path / "state")
    trained = Crosscoder.load(tmp_path / "out")
    rows = Cached(activations, expand(own.inputs, STEPS))
    f = trained.encode(torch.from_numpy(rows.read(0, 4000)))
    sites = f.shape[2] if f.ndim == 3 else 1
    assert int((f > 0).sum()) / 4000 / sites == pytest.approx(own.k, rel=0.1)


def test_a_feature_that_is_never_active_is_dead_however_short_the_training(
    experiment, tmp_path, monkeypatch
):
    s, activations = experiment
    monkeypatch.setattr(train.devices, "compiled", lambda function, device: function)
    many = {"steps": 20, "features": 512, "dead_after_rows": 1_000_000}
    own = s.crosscoders["sae"].model_copy(update=many)
    monkeypatch.setitem(s.crosscoders, "sae", own)
    train.train(s, "sae", 0, RowPaths(activations), tmp_path / "out", tmp_path / "state")
    trained = Crosscoder.load(tmp_path / "out")
    silent = trained._tensors["silent_rows"] == own.steps * own.batch_rows
    assert silent.any()
    assert torch.equal(trained.dead, silent)
    _, by_feature, _ = fidelity.explained(trained, activations, 0.1)
    never = by_feature["density"] == 0
    assert (by_feature["dead"] == (never | silent.numpy())).all()
    assert never.any()
