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
from dataclasses import dataclass, field
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
    """What a training reads: its rows, how they split into inputs and targets, its constants.

    Attributes
    ----------
    U : (N·D, R) principal directions on the device, or None in all dimensions.
    scales_in, scales_out : (N,) normalisation constants by site.
    """

    def __init__(
        self,
        c: Crosscoder,
        inputs: list[Site],
        outputs: list[Site],
        folder: Path,
        basis: Path,
        device: torch.device,
    ) -> None:
        stacks = Stacks(folder, inputs)
        self.device = device
        self.width = stacks.width
        self.tokens = stacks.tokens
        self.scales_in = torch.from_numpy(stacks.scales)
        self.scales_out = torch.from_numpy(Stacks(folder, outputs).scales)
        self.U: torch.Tensor | None = None
        self._same = inputs == outputs
        self._inputs, n_out = len(inputs) * self.width, len(outputs) * self.width
        self._shift: torch.Tensor | None = None
        if c.basis == "principal":
            principal = feed.PrincipalSource(basis)
            if principal.file.sites != [f"{s.stream}.{s.layer}/step{s.snapshot}" for s in inputs]:
                raise InputError(f"{basis}: made from other sites; delete it to make it again")
            self.source: feed.Source = principal
            self.U = torch.from_numpy(principal.file.basis).to(device)
            self._mean_in = self._mean_out = torch.from_numpy(principal.file.mean)
            return
        self.source = feed.FullSource(folder, inputs if self._same else inputs + outputs)
        mean = torch.zeros(self._inputs + (0 if self._same else n_out))
        if c.center:
            mean = torch.from_numpy(feed.mean_row(self.source))
            self._shift = mean.to(device)
        self._mean_in, self._mean_out = mean[: self._inputs], mean[-n_out:]

    def split(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(x, target) of a batch of rows: (B, I), (B, O)."""
        if self._shift is not None:
            batch = batch - self._shift
        if self._same:
            return batch, batch
        return batch[:, : self._inputs].contiguous(), batch[:, self._inputs :].contiguous()

    def explained_by_site(self, error: torch.Tensor, target: torch.Tensor) -> list[float]:
        """Explained variance of a batch by output site, within the training space."""
        centred = target - target.mean(0)
        if self.U is not None:
            error, centred = error @ self.U.T, centred @ self.U.T
        shape = (len(self.scales_out), -1)
        lost = error.unflatten(1, shape).square().sum((0, 2))
        there = centred.unflatten(1, shape).square().sum((0, 2))
        found: list[float] = (1 - lost / there).tolist()
        return found

    def constants(self) -> dict[str, torch.Tensor]:
        """What a crosscoder needs of its data to be used: scales, means, principal directions."""
        tensors = {"scales_in": self.scales_in, "scales_out": self.scales_out}
        tensors |= {"mean_in": self._mean_in.clone(), "mean_out": self._mean_out.clone()}
        return tensors if self.U is None else tensors | {"basis": self.U.cpu()}


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


@dataclass
class Progress:
    """Everything that changes while a crosscoder trains, and so all that a state folder holds.

    Attributes
    ----------
    silent : (F,) rows since each feature was last active.
    threshold : () running mean of BatchTopK's smallest kept score; −1 before the first.
    """

    weights: model.Weights
    optimizer: torch.optim.Optimizer
    silent: torch.Tensor
    threshold: torch.Tensor
    step: int = 0
    log: list[dict[str, float]] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write whole: the tensors first, then the small file that makes them count."""
        tensors = {f"weights.{n}": t.detach() for n, t in self.weights.named().items()}
        tensors |= {"silent": self.silent, "threshold": self.threshold}
        for i, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{n}": t for n, t in moments.items()}
        path = folder / f"step{self.step}.safetensors"
        with whole(path) as draft:
            save_file({k: t.contiguous().cpu() for k, t in tensors.items()}, draft)
        with whole(folder / "state.json") as draft:
            draft.write_text(json.dumps({"step": self.step, "log": self.log}))
        for old in folder.glob("step*.safetensors"):
            if old != path:
                old.unlink()

    def resume(self, folder: Path) -> None:
        """Read the folder's state into place, if it holds one."""
        if not (folder / "state.json").exists():
            return
        about = json.loads((folder / "state.json").read_text())
        self.step, self.log = int(about["step"]), about["log"]
        tensors = load_file(folder / f"step{self.step}.safetensors")
        with torch.no_grad():
            for n, t in self.weights.named().items():
                t.copy_(tensors[f"weights.{n}"])
        self.silent.copy_(tensors["silent"])
        self.threshold.copy_(tensors["threshold"])
        adam: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("adam."):
                _, i, n = key.split(".")
                adam.setdefault(int(i), {})[n] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": adam, "param_groups": groups})


def _begin(
    c: Crosscoder, data: Data, loss: Callable[..., losses.Out], sites: int, seed: int
) -> Progress:
    """Weights with their best norm, and an optimiser that has yet to see a batch."""
    first = next(feed.batches(data.source, c.batch_rows, 0, 1, data.device))
    weights = model.initial(len(data.scales_in), sites, c.features, data.width, data.U, seed)
    if not c.train_decoder:
        weights = model.random_directions(weights, seed)
    weights = model.Weights(**{n: t.to(data.device) for n, t in weights.named().items()})
    none = torch.zeros(0, dtype=torch.long, device=data.device)
    zero = torch.zeros((), device=data.device)
    weights = _best_norm(loss, weights, (*data.split(first), none, none > 0, zero))
    trained = [weights.W_enc, weights.b_enc, weights.b_dec]
    trained += [weights.W_dec] if c.train_decoder else []
    for tensor in (*trained, weights.log_threshold):
        tensor.requires_grad_(True)
    groups = [
        {"params": trained, "share": 1.0},
        {"params": [weights.log_threshold], "share": 0.1},
    ]
    return Progress(
        weights,
        torch.optim.Adam(groups, lr=c.learning_rate, betas=(0.9, 0.999), fused=True),
        silent=torch.zeros(c.features, dtype=torch.long, device=data.device),
        threshold=torch.full((), -1.0, device=data.device),
    )


def _advance(
    now: Progress, c: Crosscoder, compute: Callable[..., losses.Out], x: Any, target: Any, rate: Any
) -> losses.Out:
    """One step: loss, gradients, Adam, and the counts that AuxK and the threshold live on."""
    for group in now.optimizer.param_groups:
        group["lr"] = rate * group["share"]
    aux = c.aux_features if c.activation == "batch_topk" else 0
    dead = torch.topk(now.silent, aux, sorted=False).indices
    is_dead = now.silent[dead] >= c.dead_after_rows
    sparsity = torch.full((), sparsity_at(now.step, c), device=x.device)
    out = compute(x, target, dead, is_dead, sparsity, *now.weights.named().values())
    out.loss.backward()
    now.optimizer.step()
    now.optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        now.silent += len(x)
        now.silent.masked_fill_(out.fired, 0)
        blended = torch.lerp(out.cut, now.threshold, THRESHOLD_MEMORY)
        now.threshold.copy_(torch.where(now.threshold < 0, out.cut, blended))
    now.step += 1
    return out


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
        dead_fraction, threshold, learning_rate, explained_variance_{site number from 1},
        rows_per_second).
    state : folder for resuming.

    Raises
    ------
    InputError : inputs that do not fit, or a loss that is not finite.
    """
    c = settings.crosscoders[name]
    steps = settings.pretrain.snapshots
    inputs = expand(c.inputs, steps)
    outputs = inputs if c.outputs is None else expand(c.outputs, steps)
    device = devices.choose(settings.device)
    data = Data(c, inputs, outputs, Path(activations), Path(basis), device)
    loss = make_loss(c, len(outputs))
    now = _begin(c, data, loss, len(outputs), seed)
    state = Path(state)
    now.resume(state)
    compute = devices.compiled(loss, device)
    # A step of the same length moves weights as far in R dimensions as in all N·D (METHOD.md 9).
    peak = c.learning_rate * math.sqrt(len(outputs) * data.width / now.weights.W_dec.shape[1])

    began, began_at = time.monotonic(), now.step
    first_row, all_rows = now.step * c.batch_rows, c.steps * c.batch_rows
    with bar(f"train {name} seed {seed}", all_rows, "rows", initial=first_row) as shown:
        for batch in feed.batches(data.source, c.batch_rows, now.step, c.steps, device):
            x, target = data.split(batch)
            rate = peak * schedule(now.step, c)
            out = _advance(now, c, compute, x, target, rate)
            shown.update(len(batch))
            if now.step % LOG_EVERY == 0 or now.step == c.steps:
                row = _report(now, c, data, out, x, target) | {"learning_rate": rate}
                if not math.isfinite(row["loss"]):
                    raise InputError(
                        f"crosscoders.{name}.learning_rate: the loss is {row['loss']} at step "
                        f"{now.step} (rows from {now.step * c.batch_rows - len(batch)}); lower it. "
                        f"The last good state stays in {state}"
                    )
                seconds = time.monotonic() - began
                row["rows_per_second"] = (now.step - began_at) * c.batch_rows / seconds
                now.log.append(row)
                shown.set_postfix_str(
                    f", EV {row['explained_variance']:.3f}, dead {row['dead_fraction']:.0%}"
                )
            if now.step % SAVE_EVERY == 0 and now.step < c.steps:
                now.save(state)

    about = model.Description(
        activation=c.activation,
        gate=c.gate,
        features=c.features,
        width=data.width,
        inputs=[(s.snapshot, s.layer, s.stream) for s in inputs],
        outputs=[(s.snapshot, s.layer, s.stream) for s in outputs],
        basis=c.basis,
        threshold=max(0.0, now.threshold.item()) if c.activation == "batch_topk" else 0.0,
        seed=seed,
        settings=c.model_dump(mode="json"),
        tokens=data.tokens,
        ontogeny=__version__,
        torch=torch.__version__.split("+")[0],
    )
    tensors = {n: t.detach().cpu() for n, t in now.weights.named().items()}
    tensors |= {"silent_rows": now.silent.cpu()} | data.constants()
    model.Crosscoder(about, tensors).save(output)
    write_table(Path(output) / "metrics.csv", pd.DataFrame(now.log))


def _report(
    now: Progress, c: Crosscoder, data: Data, out: losses.Out, x: Any, target: Any
) -> dict[str, float]:
    """A row of metrics.csv, on the step's own batch."""
    variance = (target - target.mean(0)).square().sum() / (len(target) * len(data.scales_out))
    row = {
        "step": now.step,
        "rows": now.step * c.batch_rows,
        "loss": out.loss.item(),
        "explained_variance": 1 - (out.error / variance).item(),
        "l0": out.l0.item(),
        "dead_fraction": (now.silent >= c.dead_after_rows).float().mean().item(),
        "threshold": now.threshold.item(),
    }
    per_site = data.explained_by_site(target - out.reconstruction, target)
    return row | {f"explained_variance_{n}": v for n, v in enumerate(per_site, start=1)}
