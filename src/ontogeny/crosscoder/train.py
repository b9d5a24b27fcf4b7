"""The crosscoder stage: one training, from shuffled rows to a crosscoder folder.

A step is two compiled graphs: a loss of losses.py with its gradients, and Adam. The model, the
losses and the step know nothing of each other's inside. On a CPU a training resumes from its own
state folder and ends bit for bit where an unbroken one ends. Several processes may share one
training (ranks.py): each then runs `train`, and rank 0 writes what comes out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ontogeny import devices
from ontogeny.activations import feed
from ontogeny.activations.rows import RowPaths
from ontogeny.activations.sites import expand
from ontogeny.crosscoder import losses, model
from ontogeny.crosscoder.data import Data
from ontogeny.crosscoder.optimizer import Adam
from ontogeny.crosscoder.ranks import Ranks
from ontogeny.crosscoder.sizes import LOG_EVERY, NORM_GRID, SAVE_EVERY
from ontogeny.crosscoder.state import Progress, kept
from ontogeny.files import InputError, write_table
from ontogeny.progress import bar
from ontogeny.settings import Crosscoder, Settings
from ontogeny.version import VERSION

THRESHOLD_MEMORY = 0.99

Loss = Callable[..., losses.Out]


def schedule(step: int, c: Crosscoder) -> float:
    """Share of the peak learning rate: linear warm-up, plateau, linear decay to 1/32."""
    warm, last = c.warmup * c.steps, c.decay * c.steps
    up = min(1.0, (step + 1) / warm) if warm else 1.0
    down = min(1.0, (c.steps - step) / last) if last else 1.0
    return up * (1 / 32 + (1 - 1 / 32) * down)


def sparsity_at(step: int, c: Crosscoder) -> float:
    """λ after its linear warm-up over the first 10% of the steps."""
    return c.sparsity * min(1.0, (step + 1) / max(1.0, 0.1 * c.steps))


def make_loss(c: Crosscoder, sites: int, native: bool, ranks: Ranks = losses.ALONE) -> Loss:
    """The settings' loss as a function of (W, G, x, target, dead, is_dead, λ, sample)."""
    options: dict[str, Any] = {"sites": sites, "ranks": ranks}
    gates = options | {"per_site": c.gate == "snapshot", "native": native}
    aux: dict[str, Any] = {"aux_k": c.aux_k, "aux_weight": c.aux_weight}

    def loss(
        W: model.Weights,
        G: model.Weights,
        x: Tensor,
        target: Tensor,
        dead: Tensor,
        is_dead: Tensor,
        sparsity: Tensor,
        sample: Tensor,
    ) -> losses.Out:
        if c.activation == "batch_topk":
            return losses.batch_topk(W, G, x, target, dead, is_dead, k=c.k, **aux, **gates)
        if c.activation == "jumprelu":
            width = c.bandwidth
            return losses.jumprelu(W, G, x, target, sparsity, sample, bandwidth=width, **gates)
        return losses.relu(W, G, x, target, sparsity, **options)

    return loss


def _begin(
    c: Crosscoder, data: Data, compute: Loss, sites: int, seed: int, ranks: Ranks = losses.ALONE
) -> Progress:
    """Weights with the norm of the grid that gives the least error, and all else at zero."""
    share = ranks.share(c.features)
    weights = model.initial(len(data.scales_in), sites, c.features, data.width, data.U, seed, share)
    if not c.train_decoder:
        norm = ranks.norm(weights.W_dec)
        weights = model.random_directions(weights, seed, c.features, norm, share)
    W = model.Weights(**{n: t.to(data.device) for n, t in weights.named().items()})
    G = model.Weights(**{n: torch.zeros_like(t) for n, t in W.named().items()})
    rates = {"W_enc": 1.0, "b_enc": 1.0, "W_dec": 1.0, "b_dec": 1.0}
    if not c.train_decoder:
        del rates["W_dec"]
    if c.activation == "jumprelu":
        rates["log_threshold"] = 0.1
    trained, gradients = ([tensors.named()[n] for n in rates] for tensors in (W, G))
    now = Progress(
        W,
        G,
        Adam(trained, gradients, list(rates.values()), c.moments, data.device),
        silent=torch.zeros(c.features, dtype=torch.long, device=data.device),
        threshold=torch.full((), -1.0, device=data.device),
        failed=torch.full((), -1, dtype=torch.long, device=data.device),
        data=data.digest,
        ranks=ranks,
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


def aux_size(silent: Tensor, c: Crosscoder) -> int:
    """How many features AuxK looks at: none, or as many of aux_features as the dead ask for.

    A quarter, half, or all. Its cost grows with their number, and each size is a graph of its own.
    """
    if c.activation != "batch_topk" or not c.aux_features:
        return 0
    dead = int((silent >= c.dead_after_rows).sum())
    return _room_for(dead, c) if dead else 0


def _room_for(dead: int, c: Crosscoder) -> int:
    sizes = (max(c.aux_k, c.aux_features // share) for share in (4, 2))
    return next((size for size in sizes if dead <= size), c.aux_features)


def aux_slots(silent: Tensor, c: Crosscoder, ranks: int) -> int:
    """How many features AuxK looks at on each rank, at least as many as die there by the next look.

    Parameters
    ----------
    silent : (F,) of all features.
    """
    dying = silent >= c.dead_after_rows - LOG_EVERY * c.batch_rows
    most = int(dying.view(ranks, -1).sum(1).max())
    return min(_room_for(most, c), c.features // ranks)


def _loss(now: Progress, c: Crosscoder, compute: Loss, x: Any, target: Any) -> losses.Out:
    """The step's loss; its gradients go into the buffers."""
    dead = torch.topk(now.silent, now.aux, sorted=False).indices
    is_dead = now.silent[dead] >= c.dead_after_rows
    dead, is_dead = now.ranks.mine(dead, is_dead, c.features, now.slots)
    sparsity = torch.full((), sparsity_at(now.step, c), device=x.device)
    chosen = torch.Generator().manual_seed(now.step)
    sample = torch.randperm(len(x), generator=chosen)[: max(1, round(len(x) * c.threshold_share))]
    sample = sample.to(x.device, non_blocking=True)
    return compute(now.weights, now.gradients, x, target, dead, is_dead, sparsity, sample)


def _advance(
    now: Progress, c: Crosscoder, compute: Loss, x: Any, target: Any, rate: float
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
    now.ranks.note(out.full)
    return out


def _look(now: Progress, c: Crosscoder) -> None:
    """Choose the sizes that hold until the next look: AuxK's, and each rank's room for pairs."""
    now.aux = aux_size(now.silent, c)
    now.slots = aux_slots(now.silent, c, now.ranks.size) if now.aux else 0
    now.ranks.make_room(now.silent.device)


def _fault(key: str, now: Progress, c: Crosscoder, data: Data, state: Path) -> InputError:
    """What to tell of a loss or weight that is not finite: step, rows, snapshot, mend."""
    step = int(now.failed) if int(now.failed) > 0 else now.step
    batch = next(feed.batches(data.source, c.batch_rows, step - 1, step, torch.device("cpu")))
    rows = data.source.rows
    first = (step - 1) * c.batch_rows % rows
    data.check(batch, first, f", at step {step}")
    stays = f"; the last good state stays in {state}" if kept(state) else ""
    row, column = divmod(int(batch.abs().argmax()), batch.shape[1])
    return InputError(
        f"{key}: the loss is not finite at step {step} (rows {first} to "
        f"{(first + c.batch_rows - 1) % rows}; the largest activation is in row "
        f"{(first + row) % rows}{data.name_of(column)}); lower it{stays}"
    )


def train(
    settings: Settings,
    name: str,
    seed: int,
    paths: RowPaths,
    output: str | Path,
    state: str | Path,
    ranks: Ranks | None = None,
) -> None:
    """Train one crosscoder.

    Parameters
    ----------
    settings : the whole experiment; `name` and `seed` choose the crosscoder.
    paths : where its rows lie.
    output : folder to write: crosscoder.safetensors, config.json, metrics.csv (one row each 50
        steps: step, rows, loss, explained_variance of the batch in the training space, l0,
        dead_fraction, threshold, explained_variance_{site number from 1}, learning_rate,
        rows_per_second, bytes_per_parameter).
    state : folder for resuming.
    ranks : this process among those that share the training.

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
    data = Data(settings, c, inputs, outputs, paths, device)
    native = device.type == "cpu"
    ranks = ranks or Ranks()
    if not native and c.activation == "batch_topk":
        gates = len(outputs) if c.gate == "snapshot" else 1
        ranks.room = -(-2 * c.k * c.batch_rows * gates // ranks.size)
    compute = devices.compiled(make_loss(c, len(outputs), native, ranks), device)
    now = _begin(c, data, compute, len(outputs), seed, ranks)
    state = Path(state)
    now.resume(state)
    _look(now, c)
    # A step of the same length moves weights as far in R dimensions as in all N·D (method.md 3).
    peak = c.learning_rate * math.sqrt(len(outputs) * data.width / now.weights.W_dec.shape[1])

    began, began_at = time.monotonic(), now.step
    first_row, all_rows = now.step * c.batch_rows, c.steps * c.batch_rows
    what = f"train {name} seed {seed}"
    with bar(what, all_rows, "rows", initial=first_row, hidden=ranks.rank > 0) as shown:
        for batch in feed.batches(data.source, c.batch_rows, now.step, c.steps, device):
            x, target = data.split(batch)
            rate = peak * schedule(now.step, c)
            out = _advance(now, c, compute, x, target, rate)
            shown.update(len(batch))
            if now.step % LOG_EVERY and now.step < c.steps:
                continue
            if not now.finite:
                raise _fault(settings.key_of(name, "learning_rate"), now, c, data, state)
            _look(now, c)
            if ranks.rank == 0:
                seconds = time.monotonic() - began
                row = _report(now, c, data, out, target) | {
                    "learning_rate": rate,
                    "rows_per_second": (now.step - began_at) * c.batch_rows / seconds,
                    "bytes_per_parameter": now.optimizer.bytes_per_parameter,
                }
                now.log.append(row)
                shown.set_postfix_str(
                    f", EV {row['explained_variance']:.3f}, dead {row['dead_fraction']:.0%}"
                )
            if now.step % SAVE_EVERY == 0 and now.step < c.steps:
                now.save(state)

    weights = now.whole_weights()
    if ranks.rank > 0:
        return
    about = model.Description(
        activation=c.activation,
        gate=c.gate,
        features=c.features,
        width=data.width,
        inputs=[(site.snapshot, site.layer, site.stream) for site in inputs],
        outputs=[(site.snapshot, site.layer, site.stream) for site in outputs],
        basis=c.basis,
        threshold=max(0.0, now.threshold.item()) if c.activation == "batch_topk" else 0.0,
        seed=seed,
        settings=c.model_dump(mode="json"),
        tokens=data.tokens,
        ontogeny=VERSION,
        torch=torch.__version__.split("+")[0],
    )
    tensors = weights | {"silent_rows": now.silent.cpu()} | data.constants()
    model.Crosscoder(about, tensors).save(output)
    write_table(Path(output) / "metrics.csv", pd.DataFrame(now.log))


def _report(
    now: Progress, c: Crosscoder, data: Data, out: losses.Out, target: Tensor
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
