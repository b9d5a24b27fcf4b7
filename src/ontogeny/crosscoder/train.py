"""The crosscoder stage: one training, from shuffled rows to a crosscoder folder.

A step is two compiled graphs: a loss of losses.py with its gradients, and Adam. The model, the
losses and the step know nothing of each other's inside. On a CPU a training resumes from its own
state folder and ends bit for bit where an unbroken one ends.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch

from ontogeny import __version__, devices
from ontogeny.activations.store import Site, Stacks, expand
from ontogeny.basis.principal import Subspace
from ontogeny.crosscoder import feed, losses, model
from ontogeny.crosscoder.optimizer import Adam
from ontogeny.files import InputError, digest_value, whole, write_table
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


def make_loss(c: Crosscoder, sites: int, native: bool) -> Callable[..., losses.Out]:
    """The settings' loss as a function of (W, G, x, target, dead, is_dead, λ, sample)."""
    per_site = c.gate == "snapshot"

    def loss(
        W: model.Weights,
        G: model.Weights,
        x: torch.Tensor,
        target: torch.Tensor,
        dead: torch.Tensor,
        is_dead: torch.Tensor,
        sparsity: torch.Tensor,
        sample: torch.Tensor,
    ) -> losses.Out:
        if c.activation == "batch_topk":
            return losses.batch_topk(
                W,
                G,
                x,
                target,
                dead,
                is_dead,
                sites=sites,
                per_site=per_site,
                k=c.k,
                aux_k=c.aux_k,
                aux_weight=c.aux_weight,
                native=native,
            )
        if c.activation == "jumprelu":
            return losses.jumprelu(
                W,
                G,
                x,
                target,
                sparsity,
                sample,
                sites=sites,
                per_site=per_site,
                bandwidth=c.bandwidth,
                native=native,
            )
        return losses.relu(W, G, x, target, sparsity, sites=sites)

    return loss


class Data:
    """What a training reads: its rows, how they split into inputs and targets, its constants.

    Attributes
    ----------
    source : the training rows.
    U : (N·D, R) principal directions on the device, or None in all dimensions.
    scales_in, scales_out : (N,) normalisation constants by site.
    """

    def __init__(
        self,
        s: Settings,
        c: Crosscoder,
        inputs: list[Site],
        outputs: list[Site],
        places: feed.Places,
        device: torch.device,
    ) -> None:
        stacks = Stacks(places.activations, inputs)
        self.device = device
        self.width = stacks.width
        self.tokens = stacks.tokens
        self.scales_in = torch.from_numpy(stacks.scales)
        self.scales_out = torch.from_numpy(Stacks(places.activations, outputs).scales)
        self.source: feed.Source
        self.U: torch.Tensor | None = None
        self._same = inputs == outputs
        self._sites = inputs if self._same else inputs + outputs
        self._inputs, n_out = len(inputs) * self.width, len(outputs) * self.width
        self._shift: torch.Tensor | None = None
        if c.basis == "principal":
            assert places.basis, "basis: principal needs --basis"
            space = Subspace(places.basis)
            space.check_sites(inputs)
            self.source = feed.principal_source(s, inputs, space, places, device)
            self.U = torch.from_numpy(space.U).to(device)
            self._mean_in = self._mean_out = torch.from_numpy(space.mean)
            return
        self.source = feed.FullSource(feed.training_rows(s, self._sites, places, device))
        mean = torch.zeros(self._inputs + (0 if self._same else n_out))
        if c.center:
            mean = torch.from_numpy(feed.mean_row(self.source))
            if not torch.isfinite(mean).all():
                for start in range(0, self.source.rows, c.batch_rows):
                    stop = min(start + c.batch_rows, self.source.rows)
                    self.check(torch.from_numpy(self.source.read(start, stop)), start)
            self._shift = mean.to(device)
        self._mean_in, self._mean_out = mean[: self._inputs], mean[-n_out:]

    @property
    def digest(self) -> str:
        """Of the tokens, and of the scales and means that their activations have."""
        found = (self.scales_in, self.scales_out, self._mean_in, self._mean_out)
        return digest_value([self.tokens, *(t.tolist() for t in found)])

    def name_of(self, place: int) -> str:
        """' of stream.layer/step' for a column of a batch; '' where columns mix the sites."""
        if self.U is not None:
            return ""
        site = self._sites[place // self.width]
        return f" of {site.stream}.{site.layer}/step{site.snapshot}"

    def check(self, batch: torch.Tensor, first: int, where: str = "") -> None:
        """Raise InputError for a batch's first row, counted from `first`, that is not finite."""
        wrong = ~torch.isfinite(batch)
        if wrong.any():
            row = int(wrong.any(1).nonzero()[0])
            site = self.name_of(int(wrong[row].nonzero()[0]))
            raise InputError(
                f"activations{site}: not finite in row {(first + row) % self.source.rows}{where}; "
                "make these activations again"
            )

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


@dataclass
class Progress:
    """Everything that changes while a crosscoder trains, and so all that a state file holds.

    Attributes
    ----------
    silent : (F,) rows since each feature was last active.
    threshold : () running mean of BatchTopK's smallest kept score; −1 before the first.
    failed : () first step whose loss was not finite; −1 while there is none.
    aux : how many features AuxK looks at, by how many were dead when last counted; 0 is none.
    data : digest of what the rows are; a state of other rows is not gone on from.
    """

    weights: model.Weights
    gradients: model.Weights
    optimizer: Adam
    silent: torch.Tensor
    threshold: torch.Tensor
    failed: torch.Tensor
    data: str
    aux: int = 0
    step: int = 0
    log: list[dict[str, float]] = field(default_factory=list)

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors = self.weights.named() | {"silent": self.silent, "threshold": self.threshold}
        for i, (m, v) in enumerate(zip(self.optimizer.first, self.optimizer.second, strict=True)):
            tensors |= {f"first.{i}": m, f"second.{i}": v}
        return tensors

    def save(self, folder: Path) -> None:
        """Write state.h5 whole. bfloat16 is kept as its bits: NumPy and HDF5 have no such type."""
        with whole(folder / "state.h5") as draft, h5py.File(draft, "w") as file:
            for name, tensor in self._tensors().items():
                file[name] = _bits(tensor.cpu()).numpy()
            file.attrs["step"], file.attrs["aux"] = self.step, self.aux
            file.attrs["data"] = self.data
            file.attrs["log"] = json.dumps(self.log)

    def resume(self, folder: Path) -> None:
        """Read the folder's state into place, if it holds one of the same rows."""
        if not (folder / "state.h5").exists():
            return
        with h5py.File(folder / "state.h5") as file:
            if file.attrs["data"] != self.data:
                return
            for name, tensor in self._tensors().items():
                _bits(tensor).copy_(torch.from_numpy(np.asarray(file[name])))
            self.step, self.aux = int(file.attrs["step"]), int(file.attrs["aux"])
            self.log = json.loads(file.attrs["log"])

    @property
    def finite(self) -> bool:
        """Whether every loss so far and every weight now is finite."""
        fine = all(bool(torch.isfinite(t).all()) for t in self.weights.named().values())
        return fine and self.failed.item() < 0


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor


def _begin(
    c: Crosscoder, data: Data, compute: Callable[..., losses.Out], sites: int, seed: int
) -> Progress:
    """Weights with the best norm of the grid [paper], and all else at zero."""
    weights = model.initial(len(data.scales_in), sites, c.features, data.width, data.U, seed)
    if not c.train_decoder:
        weights = model.random_directions(weights, seed)
    W = model.Weights(**{n: t.to(data.device) for n, t in weights.named().items()})
    G = model.Weights(**{n: torch.zeros_like(t) for n, t in W.named().items()})
    shares = {"W_enc": 1.0, "b_enc": 1.0, "W_dec": 1.0, "b_dec": 1.0}
    if not c.train_decoder:
        del shares["W_dec"]
    if c.activation == "jumprelu":
        shares["log_threshold"] = 0.1
    now = Progress(
        W,
        G,
        Adam(
            [W.named()[n] for n in shares],
            [G.named()[n] for n in shares],
            list(shares.values()),
            c.moments,
            data.device,
        ),
        silent=torch.zeros(c.features, dtype=torch.long, device=data.device),
        threshold=torch.full((), -1.0, device=data.device),
        failed=torch.full((), -1, dtype=torch.long, device=data.device),
        data=data.digest,
    )
    x, target = data.split(next(feed.batches(data.source, c.batch_rows, 0, 1, data.device)))
    errors, scaled = [], 1.0
    for factor in NORM_GRID:
        for tensor in (W.W_enc, W.W_dec):
            tensor *= factor / scaled
        scaled = factor
        errors.append(_loss(now, c, compute, x, target).error)
    best = NORM_GRID[int(torch.stack(errors).argmin())]
    for tensor in (W.W_enc, W.W_dec):
        tensor *= best / scaled
    return now


def aux_size(silent: torch.Tensor, c: Crosscoder) -> int:
    """How many features AuxK looks at: none, or as many of aux_features as the dead ask for.

    A quarter, half, or all. Its cost grows with their number, and each size is a graph of its own.
    """
    if c.activation != "batch_topk" or not c.aux_features:
        return 0
    dead = int((silent >= c.dead_after_rows).sum())
    if not dead:
        return 0
    sizes = (max(c.aux_k, c.aux_features // share) for share in (4, 2))
    return next((size for size in sizes if dead <= size), c.aux_features)


def _loss(
    now: Progress, c: Crosscoder, compute: Callable[..., losses.Out], x: Any, target: Any
) -> losses.Out:
    """The step's loss; its gradients go into the buffers."""
    dead = torch.topk(now.silent, now.aux, sorted=False).indices
    is_dead = now.silent[dead] >= c.dead_after_rows
    sparsity = torch.full((), sparsity_at(now.step, c), device=x.device)
    chosen = torch.Generator().manual_seed(now.step)
    sample = torch.randperm(len(x), generator=chosen)[: max(1, round(len(x) * c.threshold_share))]
    sample = sample.to(x.device, non_blocking=True)
    return compute(now.weights, now.gradients, x, target, dead, is_dead, sparsity, sample)


def _advance(
    now: Progress, c: Crosscoder, compute: Callable[..., losses.Out], x: Any, target: Any, rate: Any
) -> losses.Out:
    """One step: loss, gradients, Adam, and the counts that AuxK and the threshold live on."""
    out = _loss(now, c, compute, x, target)
    now.optimizer.step(now.step + 1, rate)
    now.silent += len(x)
    now.silent.masked_fill_(out.fired, 0)
    blended = torch.lerp(out.cut, now.threshold, THRESHOLD_MEMORY)
    now.threshold.copy_(torch.where(now.threshold < 0, out.cut, blended))
    now.step += 1
    bad = (now.failed < 0) & ~torch.isfinite(out.loss)
    now.failed.masked_fill_(bad, now.step)
    return out


def _fault(key: str, now: Progress, c: Crosscoder, data: Data, state: Path) -> InputError:
    """What to tell of a loss or weight that is not finite: step, rows, snapshot, mend."""
    step = int(now.failed) if int(now.failed) > 0 else now.step
    batch = next(feed.batches(data.source, c.batch_rows, step - 1, step, torch.device("cpu")))
    first = (step - 1) * c.batch_rows % data.source.rows
    rows = f"rows {first} to {(first + c.batch_rows - 1) % data.source.rows}"
    data.check(batch, first, f", at step {step}")
    kept = f"; the last good state stays in {state}" if (state / "state.h5").exists() else ""
    row, place = divmod(int(batch.abs().argmax()), batch.shape[1])
    return InputError(
        f"{key}: the loss is not finite at step {step} ({rows}; the "
        f"largest activation is in row {(first + row) % data.source.rows}{data.name_of(place)}); "
        f"lower it{kept}"
    )


def train(
    settings: Settings,
    name: str,
    seed: int,
    places: feed.Places,
    output: str | Path,
    state: str | Path,
) -> None:
    """Train one crosscoder.

    Parameters
    ----------
    settings : the whole experiment; `name` and `seed` choose the crosscoder.
    places : where its data lie.
    output : folder to write: crosscoder.safetensors, config.json, metrics.csv (a row each 50
        steps: step, rows, loss, explained_variance of the batch in the training space, l0,
        dead_fraction, threshold, explained_variance_{site number from 1}, learning_rate,
        rows_per_second, bytes_per_parameter).
    state : folder for resuming.

    Raises
    ------
    InputError : inputs that do not fit, or a loss that is not finite.
    """
    c = settings.all_crosscoders[name]
    steps = settings.snapshots.chosen
    inputs = expand(c.inputs, steps)
    outputs = inputs if c.outputs is None else expand(c.outputs, steps)
    device = devices.choose(settings.device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision(c.precision)
    data = Data(settings, c, inputs, outputs, places, device)
    loss = make_loss(c, len(outputs), native=device.type == "cpu")
    compute = devices.compiled(loss, device)
    now = _begin(c, data, compute, len(outputs), seed)
    state = Path(state)
    now.resume(state)
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
            if now.step % LOG_EVERY and now.step < c.steps:
                continue
            if not now.finite:
                raise _fault(settings.key_of(name, "learning_rate"), now, c, data, state)
            row = _report(now, c, data, out, target) | {"learning_rate": rate}
            seconds = time.monotonic() - began
            row["rows_per_second"] = (now.step - began_at) * c.batch_rows / seconds
            row["bytes_per_parameter"] = now.optimizer.bytes_per_parameter
            now.log.append(row)
            now.aux = aux_size(now.silent, c)
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
    tensors = {n: t.cpu() for n, t in now.weights.named().items()}
    tensors |= {"silent_rows": now.silent.cpu()} | data.constants()
    model.Crosscoder(about, tensors).save(output)
    write_table(Path(output) / "metrics.csv", pd.DataFrame(now.log))


def _report(
    now: Progress, c: Crosscoder, data: Data, out: losses.Out, target: Any
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
    per_site = data.explained_by_site(out.residual, target)
    return row | {f"explained_variance_{n}": v for n, v in enumerate(per_site, start=1)}
