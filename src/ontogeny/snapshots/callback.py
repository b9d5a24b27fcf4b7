"""Save snapshots of your own run while it trains: early ones close together, and none deleted.

With the Hugging Face Trainer, with Lightning, and in a loop of your own:

    Trainer(..., callbacks=[trainer_callback("snapshots/mine")])
    lightning.Trainer(..., callbacks=[lightning_callback("snapshots/mine")])

    snapshots = Snapshots("snapshots/mine", log_spaced(20_000), tokenizer)
    for step in range(20_000):
        snapshots(step, model)  # before the update: step 0 is the initial model
        ...
    snapshots(20_000, model)

Each snapshot is a folder step{N} in Hugging Face format, with only weights and configuration, which
appears only when it is complete. `ontogeny new snapshots/mine` then writes an experiment for them.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ontogeny.files import InputError, one_line, whole

if TYPE_CHECKING:
    import torch

# The 32 steps of Pythia that Ge et al. (arXiv 2509.17196) use.
PAPER = (
    0, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000, 9000,
    10000, 14000, 20000, 27000, 34000, 47000, 60000, 74000, 87000, 100000, 114000, 127000, 143000,
)  # fmt: skip
WRAPPED_IN = ("module", "_orig_mod")  # by DistributedDataParallel and by torch.compile


def log_spaced(last: int, count: int = 32) -> list[int]:
    """Steps to save: 0, then from 2 to `last`, as evenly spaced in the logarithm as integers allow.

    As in the paper, step 1 is left out: if the rate warms up from 0, it changes no weight.

    Parameters
    ----------
    last : the last step of the run, at least 1.
    count : how many steps to save, at least 2; fewer are returned if the run has fewer.
    """
    if last < 1 or count < 2:
        raise InputError(
            f"snapshots: {count} snapshots of {last} steps are not possible; a run needs at least "
            "1 step and at least 2 snapshots"
        )
    steps = [0]
    for left in range(count - 2, 0, -1):
        # Later steps are a constant factor apart; if they would differ by less than 1, use the next
        # integer.
        factor = (last / steps[-1]) ** (1 / (left + 1)) if steps[-1] else 1
        step = max(round(steps[-1] * factor), steps[-1] + 1, 2)
        if step >= last:
            break
        steps.append(step)
    return [*steps, last]


class Snapshots:
    """Saves a model at the wanted steps.

    Parameters
    ----------
    folder : where the snapshots go, in one folder step{N} each. A new run is refused a folder that
        holds another run's snapshots; a resumed run continues there.
    steps : training steps to save, such as `log_spaced(20_000)`, or those of `PAPER`.
    tokenizer : saved with each model, if it is given.
    """

    def __init__(self, folder: str | Path, steps: Sequence[int], tokenizer: Any = None) -> None:
        self.folder, self.steps, self.tokenizer = Path(folder), frozenset(steps), tokenizer
        self._begun = False

    def __call__(
        self, step: int, model: torch.nn.Module, state: dict[str, torch.Tensor] | None = None
    ) -> Path | None:
        """Save the model if the step is wanted and this is the first process of the run.

        Parameters
        ----------
        step : updates of the weights so far.
        model : a Hugging Face model, also if it is inside DistributedDataParallel or torch.compile.
        state : its complete state dict, needed if the parameters are sharded over processes (FSDP,
            DeepSpeed's stage 3); all processes have to gather it first.

        Returns
        -------
        The snapshot's folder, or None if nothing was saved. If a snapshot cannot be written, for
        example on a full disk, there is a warning and training continues.
        """
        if step not in self.steps or not _first_process():
            return None
        inner = _unwrap(model, sharded=state is not None)
        self._begin(step)
        output = self.folder / f"step{step}"
        try:
            with whole(output) as draft:
                inner.save_pretrained(draft, state_dict=state)
                if self.tokenizer is not None:
                    self.tokenizer.save_pretrained(draft)
        except OSError as error:
            warnings.warn(f"{output}: not saved ({one_line(error, 160)})", stacklevel=2)
            return None
        return output

    def _begin(self, step: int) -> None:
        """Refuse a new run a folder with another run's snapshots."""
        if self._begun:
            return
        saved = self.folder.glob("step*")
        there = sorted(int(p.name[4:]) for p in saved if re.fullmatch(r"step\d+", p.name))
        if there and step == min(self.steps):
            raise InputError(
                f"{self.folder}: holds the snapshots of another run (step {there[0]}); name a new "
                "folder"
            )
        self._begun = True


def trainer_callback(
    folder: str | Path, steps: Sequence[int] | int = 32, tokenizer: Any = None
) -> Any:
    """A callback for the Hugging Face Trainer that saves snapshots, including the initial model.

    Parameters
    ----------
    folder : where the snapshots go.
    steps : the steps to save, or how many, spaced evenly in the logarithm of the step.
    tokenizer : saved with each snapshot; by default the Trainer's `processing_class`.
    """
    from transformers import TrainerCallback

    class Saver(TrainerCallback):
        def __init__(self) -> None:
            self.save: Snapshots | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **of: Any) -> None:
            chosen = log_spaced(state.max_steps, steps) if isinstance(steps, int) else steps
            self.save = Snapshots(folder, chosen, tokenizer or of.get("processing_class"))
            self.save(state.global_step, of["model"])

        def on_step_end(self, args: Any, state: Any, control: Any, **of: Any) -> None:
            if self.save is not None:
                self.save(state.global_step, of["model"])

    return Saver()


def lightning_callback(
    folder: str | Path,
    steps: Sequence[int] | int = 32,
    tokenizer: Any = None,
    model: Callable[[Any], torch.nn.Module] | None = None,
) -> Any:
    """A callback for Lightning's Trainer that saves snapshots, including the initial model.

    Parameters
    ----------
    folder, steps, tokenizer : as for `trainer_callback`.
    model : the Hugging Face model of a LightningModule; by default its only one.
    """
    try:
        from lightning.pytorch import Callback
    except ImportError:
        from pytorch_lightning import Callback

    class Saver(Callback):
        def __init__(self) -> None:
            self.save: Snapshots | None = None
            self.seen = -1

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            last = int(trainer.estimated_stepping_batches)
            chosen = log_spaced(last, steps) if isinstance(steps, int) else steps
            self.save = Snapshots(folder, chosen, tokenizer)
            self._save(trainer, pl_module)

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            self._save(trainer, pl_module)

        def _save(self, trainer: Any, pl_module: Any) -> None:
            # Several batches make one step if gradients are accumulated.
            if self.save is not None and trainer.global_step != self.seen:
                self.seen = trainer.global_step
                self.save(self.seen, (model or _only_model)(pl_module))

    return Saver()


def _only_model(of: torch.nn.Module) -> torch.nn.Module:
    """The only Hugging Face model among a module's attributes."""
    from transformers import PreTrainedModel

    found = [child for child in of.children() if isinstance(_inside(child), PreTrainedModel)]
    if len(found) != 1:
        raise InputError(
            f"{type(of).__name__}: has {len(found)} Hugging Face models; choose one: "
            "lightning_callback(..., model=lambda module: module.net)"
        )
    return found[0]


def _inside(model: Any) -> Any:
    """The model inside the wrappers of DistributedDataParallel and torch.compile."""
    while wrapper := next((name for name in WRAPPED_IN if hasattr(model, name)), None):
        model = getattr(model, wrapper)
    return model


def _unwrap(model: Any, sharded: bool) -> Any:
    """The Hugging Face model; InputError if it is none, or if its parameters are sharded."""
    from torch.distributed.tensor import DTensor
    from transformers import PreTrainedModel

    inner = _inside(model)
    if not isinstance(inner, PreTrainedModel):
        raise InputError(
            f"{type(inner).__name__}: not a Hugging Face model; pass the one inside it, or save "
            "config.json and model.safetensors yourself"
        )
    parts = any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in inner.parameters())
    if not sharded and (parts or any("FullySharded" in type(m).__name__ for m in model.modules())):
        raise InputError(
            "snapshots: the model's parameters are sharded over processes; gather its state dict "
            "and pass it: snapshots(step, model, state=...)"
        )
    return inner


def _first_process() -> bool:
    import torch.distributed as processes

    available = processes.is_available() and processes.is_initialized()
    return not available or processes.get_rank() == 0
