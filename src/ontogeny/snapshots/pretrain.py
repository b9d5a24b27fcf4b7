"""The pretrain stage: training a GPT-NeoX model from scratch, with its snapshots and training log.

Everything is kept in an archive whose key depends on what is trained, not on which steps are
wanted. A step that is requested later is reached from the nearest earlier training state, with the
same bits as in an unbroken run, and existing steps are left alone. A killed run resumes in the same
way. Training never resumes from states made on other tokens, for example before the text has
changed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from ontogeny import devices, digests, locks, manifest
from ontogeny.corpus.build import Tokens
from ontogeny.files import InputError, read_json, reading, remove, whole, write_table, write_text
from ontogeny.progress import bar
from ontogeny.settings import Pretrain, Settings
from ontogeny.snapshots import copying, shape
from ontogeny.snapshots.sizes import SAVE_EVERY

LOG_EVERY = 10


def learning_rate(step: int, settings: Pretrain) -> float:
    """Learning rate of the step that follows `step` updates: linear warm-up, cosine decay."""
    peak, warmup, last = settings.learning_rate, settings.warmup_steps, settings.final_learning_rate
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, settings.steps - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return peak * (last + (1 - last) * cosine)


def make_model(settings: Pretrain, vocabulary: int, context: int) -> Any:
    """A randomly initialised GPT-NeoX model (shape.config_of_pretrain)."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(settings.seed)
    config = shape.config_of_pretrain(settings, vocabulary, context)
    return GPTNeoXForCausalLM(GPTNeoXConfig(**config))


def make_optimizers(model: Any, settings: Pretrain) -> list[torch.optim.Optimizer]:
    """AdamW (0.9, 0.95) with decay on matrices only; Muon for the blocks' matrices, if wanted.

    Muon (Jordan et al. 2024) updates with the semi-orthogonal matrix nearest to the momentum, here
    times 0.2 √(longer side), which makes entries as large as AdamW's (Liu et al. 2025, arXiv
    2502.16982). Each group has `scale`: the ratio of its learning rate to the schedule's.
    """
    in_blocks = {id(w) for w in model.gpt_neox.layers.parameters()}
    orthogonal, matrices, vectors = [], [], []
    for w in model.parameters():
        if w.ndim < 2:
            vectors.append(w)
        elif settings.optimizer == "muon" and id(w) in in_blocks:
            orthogonal.append(w)
        else:
            matrices.append(w)
    decay, rate = settings.weight_decay, settings.learning_rate
    groups = [
        {"params": matrices, "weight_decay": decay, "scale": 1.0},
        {"params": vectors, "weight_decay": 0.0, "scale": 1.0},
    ]
    adam = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)
    if not orthogonal:
        return [adam]
    group = {"params": orthogonal, "scale": settings.muon_learning_rate / rate}
    return [adam, torch.optim.Muon([group], weight_decay=decay, adjust_lr_fn="match_rms_adamw")]


def batch(step: int, blocks: np.ndarray, settings: Pretrain) -> torch.Tensor:
    """Token ids of a step, (B, context), which depend only on the seed and the step.

    Blocks are visited in a seeded order, without repeats within an epoch.
    """
    seed = settings.seed if settings.data_seed is None else settings.data_seed
    count = settings.batch_blocks
    epoch, number = divmod(step, len(blocks) // count)
    order = np.random.default_rng((seed, 1, epoch)).permutation(len(blocks))
    doubled = copying.double_passages(
        blocks[order[number * count : (number + 1) * count]],
        settings.doubled_blocks,
        settings.doubled_distance,
        np.random.default_rng((seed, 2, step)),
    )
    return torch.from_numpy(doubled.astype(np.int64))


def _save_state(
    folder: Path, model: Any, optimizers: list[torch.optim.Optimizer], log: list[Any]
) -> None:
    """Write a training state: weights, moments, and the log so far."""
    with whole(folder) as draft:
        draft.mkdir()
        model.save_pretrained(draft)
        moments: dict[str, torch.Tensor] = {}
        for n, optimizer in enumerate(optimizers):
            for i, state in optimizer.state_dict()["state"].items():
                moments |= {f"{n}.{i}.{name}": value for name, value in state.items()}
        if moments:
            save_file(moments, draft / "optimizer.safetensors")
        (draft / "log.json").write_text(json.dumps(log))


def _load_state(folder: Path, model: Any, optimizers: list[torch.optim.Optimizer]) -> list[Any]:
    """Read a training state into model and optimisers; returns the log so far.

    Raises
    ------
    InputError : the state is not as it was written.
    """
    for file, wrong in digests.faults(folder):
        raise InputError(
            f"{file}: {wrong}; delete {folder}, and training continues from the state before it"
        )
    with reading(folder):
        model.load_state_dict(type(model).from_pretrained(folder).state_dict())
        file = folder / "optimizer.safetensors"
        if file.exists():
            states: list[dict[int, dict[str, torch.Tensor]]] = [{} for _ in optimizers]
            for key, value in load_file(file).items():
                n, i, name = key.split(".", 2)
                states[int(n)].setdefault(int(i), {})[name] = value
            for optimizer, state in zip(optimizers, states, strict=True):
                groups = optimizer.state_dict()["param_groups"]
                optimizer.load_state_dict({"state": state, "param_groups": groups})
        return list(read_json(folder / "log.json"))


def _steps_in(archive: Path) -> list[int]:
    """Steps of the complete training states in the archive."""
    return sorted(int(path.name[4:]) for path in archive.glob("step*") if path.is_dir())


@contextmanager
def claimed(archive: Path, tokens: str) -> Iterator[None]:
    """Hold the archive exclusively, after waiting for any other process that trains into it.

    Parameters
    ----------
    tokens : digest of the tokens to train on; states made on other tokens are removed.
    """
    archive.mkdir(parents=True, exist_ok=True)
    with open(archive / ".lock", "w") as file:
        locks.hold(file, wait=True)
        mark = archive / "tokens"
        manifest.check(mark)  # damaged, it would remove every state
        if not mark.exists() or mark.read_bytes() != tokens.encode():
            for step in _steps_in(archive):
                remove(archive / f"step{step}")
            write_text(mark, tokens)
        yield


def train(
    settings: Settings,
    tokens: str | Path,
    archive: str | Path,
    log: str | Path | None = None,
    until: int | None = None,
) -> None:
    """Train, or continue training, until the archive has every wanted snapshot and the whole log.

    Parameters
    ----------
    tokens : tokens.h5 of the corpus stage.
    archive : folder of training states, `step{S}/`; kept between calls.
    log : CSV to write, one row per logged step: step, tokens, learning_rate, loss (of the batch,
        including doubled passages), held_out_loss and the copying measures (at snapshots).
    until : stop at this step and leave later ones to another call.
    """
    archive, data = Path(archive), Tokens(tokens)
    with claimed(archive, data.digest):
        wanted = wanted_steps(settings, until)
        _train(settings, wanted, data, archive)
        if log is not None:
            _write_log(archive, wanted, log)


def wanted_steps(settings: Settings, until: int | None = None) -> list[int]:
    """The steps whose states are kept, ascending: the first, the snapshots and the last.

    Parameters
    ----------
    until : the last step to include.
    """
    last = section(settings).steps
    steps = sorted({0, *settings.snapshots.chosen, last})
    return [step for step in steps if step <= (last if until is None else until)]


def section(settings: Settings) -> Pretrain:
    """The settings of the training; InputError if the snapshots are not trained here."""
    if settings.snapshots.pretrain is None:
        raise InputError("snapshots.pretrain: missing; these snapshots are not trained here")
    return settings.snapshots.pretrain


def _train(experiment: Settings, wanted: list[int], data: Tokens, archive: Path) -> None:
    settings, analysis = section(experiment), experiment.analysis
    blocks = data.split("pretrain")
    if len(blocks) < settings.batch_blocks:
        raise InputError(
            f"snapshots.pretrain.batch_blocks: {settings.batch_blocks} blocks per step, but the "
            f"corpus has only {len(blocks)} for pre-training; lower it or add text"
        )
    where = devices.choose(experiment.device)
    model = make_model(settings, data.vocabulary, data.context).to(where)
    optimizers = make_optimizers(model, settings)
    held_out = data.split("held_out")
    copies = copying.passages(held_out, data.vocabulary, analysis.copying_blocks, analysis.seed)
    held_out_ids = torch.from_numpy(held_out.astype(np.int64))

    def loss_of(ids: torch.Tensor) -> torch.Tensor:
        ids = ids.to(where)
        logits = model(input_ids=ids).logits[:, :-1].float()
        return cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        losses = torch.stack([loss_of(ids) for ids in held_out_ids.split(32)])
        return {"held_out_loss": losses.mean().item(), **copying.measures(model, copies)}

    tokens_per_step = settings.batch_blocks * data.context
    rows: list[Any] = []
    step = -1
    there, last = _steps_in(archive), wanted[-1]
    first = next((s for s in wanted if s not in there), last + 1)
    begun = min(last, max((s for s in there if s < first), default=0))
    total, done = last * tokens_per_step, begun * tokens_per_step
    with bar("pretrain", total, "tokens", initial=done) as progress:
        while missing := [s for s in wanted if s not in _steps_in(archive)]:
            if missing[0] == 0:
                step = 0
                rows = [{"step": 0, "tokens": 0, "learning_rate": 0.0, **evaluate()}]
                _save_state(archive / "step0", model, optimizers, rows)
                continue
            nearest = max(s for s in _steps_in(archive) if s < missing[0])
            if nearest != step:
                step = nearest
                rows = _load_state(archive / f"step{step}", model, optimizers)
            regular = (step // SAVE_EVERY + 1) * SAVE_EVERY
            stop = min([s for s in wanted if s > step] + [regular, settings.steps])
            while step < stop:
                rate = learning_rate(step, settings)
                for optimizer in optimizers:
                    for group in optimizer.param_groups:
                        group["lr"] = rate * group["scale"]
                loss = loss_of(batch(step, blocks, settings))
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                step += 1
                progress.update(step * tokens_per_step - progress.n)
                if step % LOG_EVERY == 0 or step < LOG_EVERY or step in wanted:
                    value = loss.item()
                    if not math.isfinite(value):
                        raise InputError(
                            f"snapshots.pretrain.learning_rate: the loss is {value} at step "
                            f"{step}; lower it or lengthen snapshots.pretrain.warmup_steps"
                        )
                    row: dict[str, float] = {"step": step, "tokens": step * tokens_per_step}
                    row |= {"learning_rate": rate, "loss": value}
                    if step in wanted:
                        row |= evaluate()
                        progress.set_postfix_str(f"held-out loss {row['held_out_loss']:.2f}")
                    rows.append(row)
            _save_state(archive / f"step{step}", model, optimizers, rows)
    for step in _steps_in(archive):
        if step < wanted[-1] and step not in wanted:
            remove(archive / f"step{step}")


def _write_log(archive: Path, wanted: list[int], log: str | Path) -> None:
    """Join the logs in the wanted states, each of which covers the steps up to its own."""
    rows: dict[int, dict[str, Any]] = {}
    for step in wanted:
        file = archive / f"step{step}" / "log.json"
        manifest.check(file)
        for row in read_json(file):
            known = rows.get(row["step"], {})
            rows[row["step"]] = row if len(row) > len(known) else known
    table = pd.DataFrame([rows[step] for step in sorted(rows)])
    columns = ["step", "tokens", "learning_rate", "loss"]
    write_table(log, table[columns + [c for c in table.columns if c not in columns]])
