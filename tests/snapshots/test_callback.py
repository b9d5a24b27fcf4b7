"""Snapshots that a run of one's own saves while it trains."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
)

from ontogeny.files import InputError
from ontogeny.settings import Local
from ontogeny.snapshots import local
from ontogeny.snapshots.callback import (
    PAPER,
    Snapshots,
    lightning_callback,
    log_spaced,
    trainer_callback,
)


def tiny(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=8, n_embd=8, n_layer=1, n_head=1))


def weights(folder: Path) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(folder).transformer.wte.weight.detach()


def saved(folder: Path) -> list[int]:
    """Steps, as an experiment over the folder finds them; nothing half-written lies beside."""
    found = list(local.folders(Local(folders=f"{folder}/step{{step}}")))
    assert sorted(p.name for p in folder.iterdir()) == sorted(f"step{step}" for step in found)
    return found


@pytest.mark.parametrize(("last", "count"), [(1, 32), (2, 5), (40, 32), (20_000, 32), (10**6, 3)])
def test_steps_are_evenly_spaced_in_their_logarithm(last, count):
    steps = log_spaced(last, count)
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1], len(steps)) == (0, last, min(count, max(last, 2)))
    assert 1 not in steps[:-1]
    far = [b / a for a, b in pairwise(steps) if a > 20]
    assert not far or max(far) < 1.2 * min(far)


def test_too_few_steps_are_refused():
    for last, count in ((0, 32), (100, 1)):
        with pytest.raises(InputError, match="at least 2"):
            log_spaced(last, count)
    assert len(PAPER) == 32


def trainer(output: Path, callback, steps: int = 6) -> Trainer:
    return Trainer(
        model=tiny(),
        args=TrainingArguments(
            output_dir=str(output), max_steps=steps, per_device_train_batch_size=1,
            gradient_accumulation_steps=2, save_steps=2, save_total_limit=1, report_to="none",
            use_cpu=True, disable_tqdm=True,
        ),
        train_dataset=[{"input_ids": torch.arange(8), "labels": torch.arange(8)}] * 8,
        callbacks=[callback],
    )  # fmt: skip


def test_the_trainer_keeps_every_snapshot(tmp_path):
    """Of a run whose checkpoints are rotated away; it goes on where it was interrupted."""
    folder = tmp_path / "snapshots"
    trained = trainer(tmp_path / "run", trainer_callback(folder, [0, 2, 3, 4]), steps=4)
    trained.train()
    assert saved(folder) == [0, 2, 3, 4]
    assert [p.name for p in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-4"]
    assert torch.equal(weights(folder / "step0"), tiny().transformer.wte.weight)
    assert torch.equal(weights(folder / "step4"), trained.model.transformer.wte.weight)
    assert not torch.equal(weights(folder / "step3"), weights(folder / "step4"))
    (line,) = local.faults(Local(folders=f"{folder}/step{{step}}"), [0, 2, 3, 4])
    assert "has no tokenizer files" in line  # of this trainer, which was given none

    again = trainer(tmp_path / "run", trainer_callback(folder, [0, 2, 3, 4, 6]), steps=6)
    again.train(resume_from_checkpoint=True)
    assert saved(folder) == [0, 2, 3, 4, 6]
    with pytest.raises(InputError, match="another run"):
        trainer(tmp_path / "new", trainer_callback(folder)).train()


def test_steps_come_from_the_length_of_the_run(tmp_path):
    trainer(tmp_path / "run", trainer_callback(tmp_path / "snapshots", 4)).train()
    assert saved(tmp_path / "snapshots") == [0, 2, 3, 6]


def test_a_loop_of_ones_own_with_wrapped_models(tmp_path):
    model = tiny()
    save = Snapshots(tmp_path / "mine", [0, 5])
    assert save(0, torch.nn.DataParallel(torch.compile(model))) == tmp_path / "mine/step0"
    assert save(3, model) is None
    model.transformer.wte.weight.data += 1
    assert save(5, model) is not None
    assert torch.equal(weights(tmp_path / "mine/step0") + 1, weights(tmp_path / "mine/step5"))
    gathered = {name: value + 1 for name, value in model.state_dict().items()}
    Snapshots(tmp_path / "gathered", [1])(1, model, gathered)
    assert torch.equal(weights(tmp_path / "gathered/step1"), weights(tmp_path / "mine/step5") + 1)


def test_what_is_no_whole_model_is_refused(tmp_path):
    save = Snapshots(tmp_path, [0])
    with pytest.raises(InputError, match="Linear: not a Hugging Face model"):
        save(0, torch.nn.Linear(2, 2))
    model = tiny()
    model.lm_head.weight.ds_id = 0  # as DeepSpeed marks a parameter that it holds in parts
    with pytest.raises(InputError, match="gather its state dict"):
        save(0, model)
    assert not list(tmp_path.iterdir())


def test_training_goes_on_where_a_snapshot_cannot_be_written(tmp_path):
    (tmp_path / "mine").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="step0: not saved"):
        assert Snapshots(tmp_path / "mine", [0])(0, tiny()) is None


@pytest.mark.filterwarnings("default")  # Lightning has its own about this machine
def test_lightning_saves_the_model_inside_a_module(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = tiny()

        def training_step(self, batch, _):
            return self.net(input_ids=batch, labels=batch).loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    module = Module()
    lightning.Trainer(
        max_steps=4, accumulate_grad_batches=2, logger=False, enable_checkpointing=False,
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
        callbacks=[lightning_callback(tmp_path / "mine", 3)],
    ).fit(module, torch.utils.data.DataLoader(torch.arange(8).repeat(16, 1)))  # fmt: skip
    assert saved(tmp_path / "mine") == [0, 2, 4]
    assert torch.equal(weights(tmp_path / "mine/step0"), tiny().transformer.wte.weight)
    assert torch.equal(weights(tmp_path / "mine/step4"), module.net.transformer.wte.weight)
