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

from ontogeny import __version__, devices
from ontogeny.activations.store import expand
from ontogeny.crosscoder import feed, losses, model
from ontogeny.crosscoder.data import Data
from ontogeny.crosscoder.optimizer import Adam
from ontogeny.crosscoder.ranks import Ranks, total
from ontogeny.crosscoder.state import Progress, kept
from ontogeny.files import InputError, write_table
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


def make_loss(
    c: Crosscoder, sites: int, native: bool, ranks: Ranks | None = None
) -> Callable[..., losses.Out]:
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
                ranks=ranks,
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
                ranks=ranks,
            )
        return losses.relu(W, G, x, target, sparsity, sites=sites, ranks=ranks)

    return loss


def _begin(
    c: Crosscoder,
    data: Data,
    compute: Callable[..., losses.Out],
    sites: int,
    seed: int,
    ranks: Ranks | None = None,
) -> Progress:
    """Weights with the best norm of the grid [paper], and all else at zero."""
    share = model.EVERY if ranks is None else ranks.share(c.features)
    weights = model.initial(len(data.scales_in), sites, c.features, data.width, data.U, seed, share)
    if not c.train_decoder:
        norm = weights.W_dec.norm()
        if ranks is not None:
            norm = total(norm.square())[0].sqrt()
        weights = model.random_directions(weights, seed, c.features, norm, share)
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


def aux_size(silent: torch.Tensor, c: Crosscoder) -> int:
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


def aux_slots(silent: torch.Tensor, c: Crosscoder, ranks: int) -> int:
    """How many features AuxK looks at on each rank, at least as many as die there by the next look.

    Parameters
    ----------
    silent : (F,) of all features.
    """
    dying = silent >= c.dead_after_rows - LOG_EVERY * c.batch_rows
    most = int(dying.view(ranks, -1).sum(1).max())
    return min(_room_for(most, c), c.features // ranks)


def _loss(
    now: Progress, c: Crosscoder, compute: Callable[..., losses.Out], x: Any, target: Any
) -> losses.Out:
    """The step's loss; its gradients go into the buffers."""
    dead = torch.topk(now.silent, now.aux, sorted=False).indices
    is_dead = now.silent[dead] >= c.dead_after_rows
    if now.ranks is not None and now.aux:
        dead, is_dead = now.ranks.mine(dead, is_dead, c.features, now.slots)
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
    if out.full is not None:
        now.full |= out.full
    return out


def _look(now: Progress, c: Crosscoder) -> None:
    """Choose the sizes that hold until the next look: AuxK's, and each rank's room for pairs."""
    now.aux = aux_size(now.silent, c)
    if now.ranks is None:
        return
    if now.aux:
        now.slots = aux_slots(now.silent, c, now.ranks.size)
    if now.ranks.room and not now.ranks.agree(not now.full.item(), now.full.device):
        now.ranks.room *= 2
        now.full.zero_()


def _fault(key: str, now: Progress, c: Crosscoder, data: Data, state: Path) -> InputError:
    """What to tell of a loss or weight that is not finite: step, rows, snapshot, mend."""
    step = int(now.failed) if int(now.failed) > 0 else now.step
    batch = next(feed.batches(data.source, c.batch_rows, step - 1, step, torch.device("cpu")))
    first = (step - 1) * c.batch_rows % data.source.rows
    rows = f"rows {first} to {(first + c.batch_rows - 1) % data.source.rows}"
    data.check(batch, first, f", at step {step}")
    stays = f"; the last good state stays in {state}" if kept(state) else ""
    row, place = divmod(int(batch.abs().argmax()), batch.shape[1])
    return InputError(
        f"{key}: the loss is not finite at step {step} ({rows}; the "
        f"largest activation is in row {(first + row) % data.source.rows}{data.name_of(place)}); "
        f"lower it{stays}"
    )


def train(
    settings: Settings,
    name: str,
    seed: int,
    places: feed.Places,
    output: str | Path,
    state: str | Path,
    ranks: Ranks | None = None,
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
    data = Data(settings, c, inputs, outputs, places, device)
    native = device.type == "cpu"
    if ranks is not None and not native and c.activation == "batch_topk":
        gates = len(outputs) if c.gate == "snapshot" else 1
        ranks.room = -(-2 * c.k * c.batch_rows * gates // ranks.size)
    compute = devices.compiled(make_loss(c, len(outputs), native, ranks), device)
    now = _begin(c, data, compute, len(outputs), seed, ranks)
    state = Path(state)
    now.resume(state)
    _look(now, c)
    first = ranks is None or ranks.rank == 0
    # A step of the same length moves weights as far in R dimensions as in all N·D (METHOD.md 9).
    peak = c.learning_rate * math.sqrt(len(outputs) * data.width / now.weights.W_dec.shape[1])

    began, began_at = time.monotonic(), now.step
    first_row, all_rows = now.step * c.batch_rows, c.steps * c.batch_rows
    what = f"train {name} seed {seed}"
    with bar(what, all_rows, "rows", initial=first_row, hidden=not first) as shown:
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
            if first:
                row = _report(now, c, data, out, target) | {"learning_rate": rate}
                seconds = time.monotonic() - began
                row["rows_per_second"] = (now.step - began_at) * c.batch_rows / seconds
                row["bytes_per_parameter"] = now.optimizer.bytes_per_parameter
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
    tensors = now.whole_weights()
    if tensors is None:
        return
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
