"""Pre-training with tied embeddings and Muon: against plain formulas, and resumed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import tiny
from runs import Run, counted
from safetensors.torch import load_file

from ontogeny import lineage, settings
from ontogeny.files import InputError
from ontogeny.snapshots import cost, pretrain, shape, sources
from ontogeny.snapshots.sizes import leg_ends

CHANGES = {
    "snapshots.pretrain.optimizer": "muon",
    "snapshots.pretrain.tied_embeddings": True,
    "snapshots.pretrain.muon_learning_rate": 0.02,
}


def orthogonal(G: torch.Tensor) -> torch.Tensor:
    """Muon's own five Newton–Schulz steps, in float64."""
    X = G.double().T if len(G) > len(G.T) else G.double()
    X = X / X.norm()
    for _ in range(5):
        A = X @ X.T
        X = 3.4445 * X + (-4.775 * A + 2.0315 * A @ A) @ X
    return X.T if len(G) > len(G.T) else X


def test_muon_moves_the_blocks_matrices_and_adamw_the_rest():
    p = settings.load(tiny(CHANGES)).snapshots.pretrain
    model = pretrain.make_model(p, 300, 32)
    adam, muon = pretrain.make_optimizers(model, p)
    ours = {id(w) for group in muon.param_groups for w in group["params"]}
    names = {name for name, w in model.named_parameters() if id(w) in ours}
    assert len(names) == 4 * p.layers
    assert all(name.startswith("gpt_neox.layers.") and name.endswith("weight") for name in names)
    theirs = {id(w) for group in adam.param_groups for w in group["params"]}
    assert ours | theirs == {id(w) for w in model.parameters()}
    assert not ours & theirs

    torch.manual_seed(0)
    before = {name: w.detach().clone() for name, w in model.named_parameters()}
    for w in model.parameters():
        w.grad = torch.randn_like(w)
    muon.param_groups[0]["lr"] = 0.02
    muon.step()
    for name, w in model.named_parameters():
        if name not in names:
            assert torch.equal(w, before[name])
            continue
        # The first momentum is 0.05 of the gradient, and Nesterov's look ahead is along it.
        size = 0.02 * 0.2 * max(w.shape) ** 0.5
        expected = before[name].double() * (1 - 0.02 * p.weight_decay) - size * orthogonal(w.grad)
        torch.testing.assert_close(w.double(), expected, rtol=0, atol=0.02 * size)


def test_every_group_follows_the_schedule_at_its_own_scale():
    p = settings.load(tiny(CHANGES)).snapshots.pretrain
    optimizers = pretrain.make_optimizers(pretrain.make_model(p, 300, 32), p)
    peaks = [g["scale"] * p.learning_rate for o in optimizers for g in o.param_groups]
    assert peaks == pytest.approx([p.learning_rate, p.learning_rate, 0.02])
    alone = pretrain.make_optimizers(pretrain.make_model(p, 300, 32), settings.Pretrain())
    assert [type(o) for o in alone] == [torch.optim.AdamW]


@pytest.mark.usefixtures("plainly")
def test_flops_of_muon(tmp_path):
    wide = CHANGES | {"snapshots.pretrain.width": 48, "snapshots.pretrain.batch_blocks": 2}
    run = Run(tmp_path, wide)
    run.stage("corpus")
    planned = cost.pretrain(run.sizes).work.flops
    assert counted(lambda: run.stage("pretrain")) == pytest.approx(planned, rel=0.05)
    adamw = Run(tmp_path, wide | {"snapshots.pretrain.optimizer": "adamw"})
    assert cost.pretrain(adamw.sizes).work.flops < 0.9 * planned


@pytest.mark.usefixtures("plainly")
def test_a_training_with_muon_goes_on_from_its_state_to_the_same_bytes(tmp_path):
    run = Run(tmp_path, CHANGES)
    run.stages("corpus", "pretrain")
    whole = lineage.archive(run.map)
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / "step4")
    p = run.settings.snapshots.pretrain
    pretrain.train(run.settings, run.map.path("tokens"), broken)
    for name in ("model.safetensors", "optimizer.safetensors", "log.json"):
        assert (broken / "step4" / name).read_bytes() == (whole / "step4" / name).read_bytes()
    weights = load_file(whole / "step4" / "model.safetensors")
    assert [name for name in weights if "embed" in name] == ["gpt_neox.embed_in.weight"]
    model = shape.of_config(shape.config_of_pretrain(p, 300, 32))
    assert model.unembedding_parameters == 0
    assert sum(w.numel() for w in weights.values()) == model.parameters


@pytest.mark.usefixtures("plainly")
def test_states_of_other_text_are_not_gone_on_from(tmp_path):
    run = Run(tmp_path, CHANGES)
    last = run.settings.snapshots.pretrain.steps
    text = run.settings.corpus.files.paths[0]
    weights = []
    for archive, changed in (("kept", False), ("kept", True), ("new", False)):
        if changed:
            Path(text).write_text(Path(text).read_text()[::-1])
        run.stage("corpus")
        kept = tmp_path / archive
        pretrain.train(run.settings, run.map.path("tokens"), kept)
        weights.append((kept / f"step{last}/model.safetensors").read_bytes())
    assert weights[0] != weights[1] == weights[2]
    before = (tmp_path / "kept/step4").stat().st_mtime_ns
    pretrain.train(run.settings, run.map.path("tokens"), tmp_path / "kept")
    assert (tmp_path / "kept/step4").stat().st_mtime_ns == before


@pytest.mark.usefixtures("plainly")
def test_a_training_in_several_jobs_ends_at_the_same_bytes(tmp_path):
    run = Run(tmp_path, CHANGES | {"snapshots.steps": [1, 3]})
    run.stage("corpus")
    run.command("pretrain", "--log")
    whole, log = lineage.archive(run.map), run.map.path("log").read_bytes()
    states = {path.relative_to(whole): path.read_bytes() for path in whole.rglob("step*/*")}
    shutil.rmtree(whole)
    for until, there in ((2, {0, 1}), (3, {0, 1, 3}), (4, {0, 1, 3, 4})):
        run.command("pretrain", "--until", until)
        assert {int(path.name[4:]) for path in whole.glob("step*")} == there
    run.command("pretrain", "--log")
    assert {p.relative_to(whole): p.read_bytes() for p in whole.rglob("step*/*")} == states
    assert run.map.path("log").read_bytes() == log


def test_jobs_of_a_training_end_at_halves_that_have_snapshots():
    early, late = [0, 8, 650, 700, 1500, 1600, 5000], [0, 3001, 6000]
    assert leg_ends(6000, early) == [750, 1500, 3000, 6000]
    assert leg_ends(6000, late) == [750, 6000]
    assert leg_ends(6000, [5000]) == [6000]
    assert leg_ends(2001, range(2002)) == [500, 1000, 2001]
    assert leg_ends(40, [0, 20]) == [40]


def test_a_snapshot_waits_for_its_own_job_of_the_training(tmp_path):
    changes = {"snapshots.steps": [0, 600, 601, 1200], "snapshots.pretrain.steps": 1200}
    run = Run(tmp_path, changes)
    marks = [run.map.mark_of(step).name for step in run.map.steps]
    assert marks == ["trained-600", "trained-600", "trained-1200", "trained-1200"]
    line = run.line("pretrain")
    assert (line.jobs, line.left) == (2, 2)
    archive = lineage.archive(run.map)
    for step in (0, 600):
        (archive / f"step{step}").mkdir(parents=True)
        (archive / f"step{step}" / "model.safetensors").write_bytes(b"weights")
    assert (run.line("pretrain").jobs, run.line("pretrain").left) == (2, 1)


def test_a_state_that_lacks_files_is_named(tmp_path):
    own = settings.load(tiny(CHANGES))
    state = tmp_path / "archive/step2"
    with pytest.raises(InputError, match=r"/step2: this training state is missing; run again with"):
        sources.publish(own, 2, tmp_path / "snapshot", state.parent)
    state.mkdir(parents=True)
    (state / "config.json").write_text("{}")
    said = r"/step2/model\.safetensors: this file of a training state is missing; delete "
    with pytest.raises(InputError, match=said):
        sources.publish(own, 2, tmp_path / "snapshot", state.parent)
    assert not (tmp_path / "snapshot").exists()
