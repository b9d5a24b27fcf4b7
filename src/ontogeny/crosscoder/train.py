"""The crosscoder stage: one training, from shuffled rows to a crosscoder folder.

The compiled step is one graph: a loss of losses.py and its gradients; fused Adam follows. The
model, the losses and the step know nothing of each other's inside. A training resumes from its
own state folder and ends bit for bit where an unbroken one ends.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from ontogeny import __version__, devices
from ontogeny.activations.store import Site, Stacks, expand
from ontogeny.crosscoder import feed, losses, model
from ontogeny.files import InputError, whole, write_table
from ontogeny.progress import bar
from ontogeny.settings import Crosscoder, Settings

LOG_EVERY = 50
SAVE_EVERY = 250
NORM_GRID = [round(10 ** (e / 8), 4) for e in range(-20, 5)]
THRESHOLD_MEMORY = 0.99
EPSILON = 1e-8


def schedule(step: int, c: Crosscoder) -> float:
    """Share of the peak learning rate: linear warm-up, plateau, linear decay to 1/32 [paper]."""
    warm, last = c.warmup * c.steps, c.decay * c.steps
    up = min(1.0, (step + 1) / warm) if warm else 1.0
    down = min(1.0, (c.steps - step) / last) if last else 1.0
    return up * (1 / 32 + (1 - 1 / 32) * down)


def sparsity_at(step: int, c: Crosscoder) -> float:
    """λ after its linear warm-up over the first 10% of the steps [paper]."""
    return c.sparsity * min(1.0, (step + 1) / max(1.0, 0.1 * c.steps))


def make_loss(c: Crosscoder, sites: int) -> Callable[..., losses.Out]:
    """The settings' loss as a function of (x, target, dead, is_dead, λ, *weights)."""
    per_site = c.gate == "snapshot"

    def loss(
        x: torch.Tensor,
        target: torch.Tensor,
        dead: torch.Tensor,
        is_dead: torch.Tensor,
        sparsity: torch.Tensor,
        *tensors: torch.Tensor,
    ) -> losses.Out:
        W = model.Weights(*tensors)
        if c.activation == "batch_topk":
            return losses.batch_topk(
                W,
                x,
                target,
                dead,
                is_dead,
                sites=sites,
                per_site=per_site,
                k=c.k,
                aux_k=c.aux_k,
                aux_weight=c.aux_weight,
            )
        if c.activation == "jumprelu":
            return losses.jumprelu(
                W, x, target, sparsity, sites=sites, per_site=per_site, bandwidth=c.bandwidth
            )
        return losses.relu(W, x, target, sparsity, sites=sites)

    return loss


class Data:
    """What a training reads: rows, and how they split into inputs and targets."""

    def __init__(
        self, c: Crosscoder, inputs: list[Site], outputs: list[Site], folder: Path, basis: Path
    ) -> None:
        stacks = Stacks(folder, inputs)
        self.width = stacks.width
        self.tokens = stacks.tokens
        self.scales_in = torch.from_numpy(stacks.scales)
        self.scales_out = torch.from_numpy(Stacks(folder, outputs).scales)
        self.U: torch.Tensor | None = None
        self.same = inputs == outputs
        n_in, n_out = len(inputs) * self.width, len(outputs) * self.width
        if c.basis == "principal":
            self.source: Any = feed.PrincipalSource(basis)
            names = [f"{s.stream}.{s.layer}/step{s.snapshot}" for s in inputs]
            if self.source.file.sites != names:
                raise InputError(f"{basis}: made from other sites; delete it to make it again")
            self.U = torch.from_numpy(self.source.file.basis)
            self.mean_in = self.mean_out = torch.from_numpy(self.source.file.mean)
            self.shift: torch.Tensor | None = None
        else:
            self.source = feed.FullSource(folder, inputs if self.same else inputs + outputs)
            self.mean_in, self.mean_out = torch.zeros(n_in), torch.zeros(n_out)
            if c.center:
                mean = np.mean(
                    [p.mean(0, dtype=np.float64) for p in self._pieces()], axis=0
                ).astype(np.float32)
                self.shift = torch.from_numpy(mean)
                self.mean_in, self.mean_out = self.shift[:n_in], self.shift[-n_out:]
            else:
                self.shift = None
        self.inputs = self.source.file.dimensions if self.U is not None else n_in

    def _pieces(self) -> Any:
        """Equal runs of rows that cover the data (the rest of a run left out)."""
        rows = min(4096, self.source.rows)
        for start in range(0, self.source.rows - rows + 1, rows):
            yield self.source.read(start, start + rows)

    def split(self, batch: torch.Tensor, shift: torch.Tensor | None) -> tuple[Any, Any]:
        """(x, target) of a batch: (B, I), (B, O)."""
        if shift is not None:
            batch = batch - shift
        return (batch, batch) if self.same else (batch[:, : self.inputs], batch[:, self.inputs :])


def _best_norm(
    loss: Callable[..., losses.Out], weights: model.Weights, arguments: tuple[Any, ...]
) -> model.Weights:
    """The weights scaled by the grid's factor with the lowest starting error [paper]."""
    with torch.no_grad():
        errors = []
        for factor in NORM_GRID:
            tensors = model.scale(weights, factor).named().values()
            errors.append(float(loss(*arguments, *tensors).error))
    return model.scale(weights, NORM_GRID[int(np.argmin(errors))])


def train(
    settings: Settings,
    name: str,
    seed: int,
    activations: str | Path,
    basis: str | Path,
    output: str | Path,
    state: str | Path,
) -> None:
    """Train one crosscoder.

    Parameters
    ----------
    settings : the whole experiment; `name` and `seed` choose the crosscoder.
    activations : folder of the activations. basis : basis file (read with basis: principal).
    output : folder to write: crosscoder.safetensors, config.json, metrics.csv (a row each 50
        steps: step, rows, loss, explained_variance of the batch in the training space, l0,
        dead_fraction, threshold, learning_rate, rows_per_second).
    state : folder for resuming.

    Raises
    ------
    InputError : inputs that do not fit, or a loss that is not finite.
    """
    c = settings.crosscoders[name]
    steps = settings.pretrain.snapshots
    inputs = expand(c.inputs, steps)
    outputs = inputs if c.outputs is None else expand(c.outputs, steps)
    sites = len(outputs)
    device = devices.choose(settings.device)
    data = Data(c, inputs, outputs, Path(activations), Path(basis))
    shift = None if data.shift is None else data.shift.to(device)
    raw_loss = make_loss(c, sites)
    compute = devices.compiled(raw_loss, device)

    def place(W: model.Weights) -> model.Weights:
        return model.Weights(**{n: t.to(device) for n, t in W.named().items()})

    first = data.split(next(feed.batches(data.source, c.batch_rows, 0, 1, device)), shift)
    aux = min(c.aux_features, c.features) if c.activation == "batch_topk" else 0
    nothing = torch.zeros(aux, dtype=torch.long, device=device)
    weights = model.initial(len(inputs), sites, c.features, data.width, data.U, seed)
    if not c.train_decoder:
        weights = model.random_directions(weights, seed)
    start_arguments = (*first, nothing, nothing > 0, torch.zeros((), device=device))
    weights = place(_best_norm(raw_loss, place(weights), start_arguments))
    full = sites * data.width
    rate = c.learning_rate * math.sqrt(full / weights.W_dec.shape[1])
    trained = [weights.W_enc, weights.b_enc, weights.b_dec]
    trained += [weights.W_dec] if c.train_decoder else []
    for tensor in (*trained, weights.log_threshold):
        tensor.requires_grad_(True)
    groups = [
        {"params": trained, "share": 1.0},
        {"params": [weights.log_threshold], "share": 0.1},
    ]
    optimizer = torch.optim.Adam(groups, lr=rate, betas=(0.9, 0.999), eps=EPSILON, fused=True)
    silent = torch.zeros(c.features, dtype=torch.long, device=device)
    threshold = torch.full((), -1.0, device=device)
    log: list[dict[str, float]] = []
    step = 0
    state = Path(state)
    if (state / "state.json").exists():
        step, log = _resume(state, weights, optimizer, silent, threshold)

    variance_at: torch.Tensor
    started, started_step = time.monotonic(), step
    what = f"train {name} seed {seed}"
    with bar(what, c.steps * c.batch_rows, "rows", initial=step * c.batch_rows) as progress:
        stream = feed.batches(data.source, c.batch_rows, step, c.steps, device)
        for batch in stream:
            x, target = data.split(batch, shift)
            share = schedule(step, c)
            for group in optimizer.param_groups:
                group["lr"] = rate * share * group["share"]
            longest = torch.topk(silent, aux, sorted=False).indices if aux else nothing
            is_dead = silent[longest] >= c.dead_after_rows
            sparsity = torch.tensor(sparsity_at(step, c)).to(device, non_blocking=True)
            out = compute(x, target, longest, is_dead, sparsity, *weights.named().values())
            out.loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            progress.update(len(batch))
            with torch.no_grad():
                silent += len(batch)
                silent.masked_fill_(out.fired, 0)
                blended = torch.lerp(out.cut, threshold, THRESHOLD_MEMORY)
                threshold.copy_(torch.where(threshold < 0, out.cut, blended))
            if step % LOG_EVERY == 0 or step == c.steps:
                variance_at = (target - target.mean(0)).square().sum() / (len(batch) * sites)
                row = {
                    "step": step,
                    "rows": step * c.batch_rows,
                    "loss": out.loss.item(),
                    "explained_variance": 1 - (out.error / variance_at).item(),
                    "l0": out.l0.item(),
                    "dead_fraction": (silent >= c.dead_after_rows).float().mean().item(),
                    "threshold": threshold.item(),
                    "learning_rate": rate * share,
                }
                per_site = _per_site(x - out.reconstruction, x, data.U, sites) if data.same else {}
                row |= {f"explained_variance_{k}": v for k, v in per_site.items()}
                if not math.isfinite(row["loss"]):
                    raise InputError(
                        f"crosscoders.{name}.learning_rate: the loss is {row['loss']} at step "
                        f"{step} (rows {step * c.batch_rows - len(batch)} on); lower it. The last "
                        f"good state is in {state}"
                    )
                row["rows_per_second"] = (
                    (step - started_step) * c.batch_rows / (time.monotonic() - started)
                )
                log.append(row)
                progress.set_postfix_str(
                    f", EV {row['explained_variance']:.3f}, dead {row['dead_fraction']:.0%}"
                )
            if step % SAVE_EVERY == 0 and step < c.steps:
                _save(state, step, log, weights, optimizer, silent, threshold)

    about = model.Description(
        activation=c.activation,
        gate=c.gate,
        features=c.features,
        width=data.width,
        inputs=[(s.snapshot, s.layer, s.stream) for s in inputs],
        outputs=[(s.snapshot, s.layer, s.stream) for s in outputs],
        basis=c.basis,
        threshold=max(0.0, threshold.item()) if c.activation == "batch_topk" else 0.0,
        seed=seed,
        settings=c.model_dump(mode="json"),
        tokens=data.tokens,
        ontogeny=__version__,
        torch=torch.__version__.split("+")[0],
    )
    tensors = {n: t.detach().cpu() for n, t in weights.named().items()}
    tensors |= {"scales_in": data.scales_in, "scales_out": data.scales_out}
    tensors["silent_rows"] = silent.cpu()
    tensors |= {"mean_in": data.mean_in.clone(), "mean_out": data.mean_out.clone()}
    if data.U is not None:
        tensors["basis"] = data.U
    model.Crosscoder(about, tensors).save(output)
    write_table(Path(output) / "metrics.csv", pd.DataFrame(log))


def _per_site(
    error: torch.Tensor, x: torch.Tensor, U: torch.Tensor | None, sites: int
) -> dict[int, float]:
    """Explained variance of a batch by site, within the training space. error, x : (B, I)."""
    centred = x - x.mean(0)
    if U is not None:
        U = U.to(x.device)
        error, centred = error @ U.T, centred @ U.T
    shape = (sites, -1)
    lost = error.unflatten(1, shape).square().sum((0, 2))
    there = centred.unflatten(1, shape).square().sum((0, 2))
    return dict(enumerate((1 - lost / there).tolist(), start=1))


def _save(
    folder: Path,
    step: int,
    log: list[dict[str, float]],
    weights: model.Weights,
    optimizer: torch.optim.Optimizer,
    silent: torch.Tensor,
    threshold: torch.Tensor,
) -> None:
    """Write the training state whole: tensors first, then the small file that makes it valid."""
    tensors = {f"weights.{n}": t.detach() for n, t in weights.named().items()}
    tensors |= {"silent": silent, "threshold": threshold}
    for i, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{i}.{n}": t for n, t in moments.items()}
    path = folder / f"step{step}.safetensors"
    with whole(path) as draft:
        save_file({k: t.contiguous().cpu() for k, t in tensors.items()}, draft)
    with whole(folder / "state.json") as draft:
        draft.write_text(json.dumps({"step": step, "log": log}))
    for old in folder.glob("step*.safetensors"):
        if old != path:
            old.unlink()


def _resume(
    folder: Path,
    weights: model.Weights,
    optimizer: torch.optim.Optimizer,
    silent: torch.Tensor,
    threshold: torch.Tensor,
) -> tuple[int, list[dict[str, float]]]:
    """Read a training state into place; returns the step and the log."""
    about = json.loads((folder / "state.json").read_text())
    tensors = load_file(folder / f"step{about['step']}.safetensors")
    with torch.no_grad():
        for n, t in weights.named().items():
            t.copy_(tensors[f"weights.{n}"])
    silent.copy_(tensors["silent"])
    threshold.copy_(tensors["threshold"])
    adam: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("adam."):
            _, i, n = key.split(".")
            adam.setdefault(int(i), {})[n] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": adam, "param_groups": groups})
    return int(about["step"]), about["log"]
