"""A stream that is zero or constant at a snapshot: features are absent there, all else as usual."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import Run
from safetensors.torch import load_file, save_file

from ontogeny.crosscoder.model import Crosscoder

MAIN = "crosscoders.topk."
SITE = {"layers": [1], "streams": ["mlp_out"]}
BASE = {"activations.streams": ["mlp_out"], MAIN + "inputs": SITE}
ABSENT = 1  # of the four snapshots


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Run:
    """The small experiment as far as its snapshots."""
    run = Run(tmp_path_factory.mktemp("model"), BASE)
    run.stages("corpus", "pretrain")
    return run


def made(model: Run, folder: Path, changes: dict[str, Any], bias: float, constant: int = 1) -> Run:
    """The same as far as its tables, with MLPs that give `bias` at some snapshots."""
    run = Run(folder, BASE | changes)
    for name in ("corpus", "snapshots"):
        shutil.copytree(model.map.folder / name, run.map.folder / name)
    for step in run.map.steps[ABSENT if constant == 1 else 0 :][:constant]:
        path = run.map.path("snapshot", step=step) / "model.safetensors"
        weights = load_file(path)
        for name in weights:
            if ".mlp.dense_4h_to_h." in name:
                weights[name] = torch.full_like(weights[name], bias * name.endswith("bias"))
        save_file(weights, path, {"format": "pt"})
    run.stages("extract", "token_table")
    return run


VARIANTS = {
    "hybrid, a gate each": ({"basis": "hybrid", "gate": "snapshot"}, "cached", "centred", 0.0),
    "full, jumprelu": ({"basis": "full", "activation": "jumprelu"}, "cached", "centred", 0.1),
    "full, relu": ({"basis": "full", "activation": "relu"}, "streamed", "mean_norm", 0.0),
    "principal": ({"basis": "principal"}, "cached", "mean_norm", 0.1),
    "principal, streamed": ({"basis": "principal", "token_table": True}, "streamed", "centred", 0),
    "hybrid, less tokens": (
        {"basis": "hybrid", "gate": "snapshot", "token_table": True}, "cached", "centred", 0.1,
    ),
    "hybrid, streamed": (
        {"basis": "hybrid", "gate": "feature", "token_table": True, "scale": "activations"},
        "streamed", "mean_norm", 0.1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_features_are_absent_where_a_stream_is_constant(variant, model, tmp_path):
    own, mode, scale, bias = VARIANTS[variant]
    own = {f"{MAIN}{key}": value for key, value in own.items()}
    changes = own | {"activations.mode": mode, "activations.scale": scale}
    run = made(model, tmp_path, changes, bias)
    if run.map.basis_of("topk"):
        run.stage("basis")
    if run.map.basis_of("topk") and mode == "cached":
        run.stage("project")
    run.stages("train", "fidelity", "phases", "features")

    trained = Crosscoder.load(run.map.path("trained", crosscoder="topk", seed=0))
    assert trained.scales_out.eq(0).tolist() == [False, True, False, False]
    assert all(torch.isfinite(tensor).all() for tensor in trained._tensors.values())
    strengths = run.map.table("strengths").pivot(index="feature", columns="step", values="strength")
    absent = run.map.steps[ABSENT]
    assert (strengths[absent] == 0).all()
    assert (strengths.drop(columns=absent).max() > 0.1).all()
    fidelity = run.map.table("fidelity", "topk", seed=0).set_index("step")
    explained = fidelity["explained_variance"]
    assert explained.isna().tolist() == [False, True, False, False]
    assert np.isfinite(fidelity["loss_spliced"]).all()
    assert fidelity.loc[absent, "loss_spliced"] == pytest.approx(fidelity.loc[absent, "loss"])


def test_the_other_sites_train_as_if_it_were_not_there(model, tmp_path):
    changes = {MAIN + "basis": "full", MAIN + "gate": "snapshot"}
    run = made(model, tmp_path, changes, 0.1)
    run.stage("train")
    with_it = Crosscoder.load(run.map.path("trained", crosscoder="topk", seed=0))
    steps = [step for i, step in enumerate(run.map.steps) if i != ABSENT]
    config = run.map.path("config")
    given = run.settings.model_dump(mode="json")
    given["crosscoders"]["topk"]["inputs"]["snapshots"] = steps
    config.write_text(json.dumps(given))
    shutil.rmtree(run.map.path("trained", crosscoder="topk", seed=0))
    run.stage("train")
    alone = Crosscoder.load(run.map.path("trained", crosscoder="topk", seed=0))
    there = [0, 2, 3]
    assert torch.equal(with_it.W_dec[:, there], alone.W_dec)
    assert torch.equal(with_it.b_dec[there], alone.b_dec)
    assert with_it.about.threshold == alone.about.threshold
    x = torch.randn(50, 4, alone.about.width)
    assert torch.equal(with_it.encode(x)[:, :, there], alone.encode(x[:, there]))
    assert not with_it.encode(x)[:, :, ABSENT].any()


def test_a_stream_that_never_varies_is_one_line(model, tmp_path):
    run = made(model, tmp_path, {MAIN + "basis": "full"}, 0.1, constant=4)
    told = r"ontogeny: activations: all rows of mlp_out\.1/step0, .* nothing to learn; read other"
    with pytest.raises(AssertionError, match=told):
        run.stage("train")
