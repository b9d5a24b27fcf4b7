"""The crosscoder stage: one training, from shuffled rows to a crosscoder folder.

A step consists of a loss of losses.py, with its gradients, and Adam. These are two compiled graphs;
on a CPU the core in C++ (native.py) computes the loss and updates the decoder, and Adam the rest.
On a CPU a training that resumes from its state folder ends in the same bits as an unbroken one.
Several processes may share one training (ranks.py): each then runs `train`, and rank 0 writes the
result. Several trainings may share one process and run together (stream.py): each is a `Session`.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ontogeny import devices
from ontogeny.activations.rows import RowPaths
from ontogeny.crosscoder import losses, model, native, pairs
from ontogeny.crosscoder.data import Data
from ontogeny.crosscoder.optimizer import Adam, corrected
from ontogeny.crosscoder.ranks import Ranks
from ontogeny.crosscoder.sizes import (
    JUDGED_ROWS,
    LOG_EVERY,
    NORM_GRID,
    ROOM,
    measured_batches,
)
from ontogeny.crosscoder.state import Progress, Saver, damaged, kept
from ontogeny.files import write_table
from ontogeny.progress import bar
from ontogeny.settings import Crosscoder, Settings
from ontogeny.version import VERSION

THRESHOLD_MEMORY = 0.99
LEAST_THRESHOLD = 1e-3  # smallest initial threshold of jumprelu
L0_MEMORY = 0.9
L0_MISSED = 0.25  # relative miss of a wanted L0 that is reported
STEERING = 0.01  # change of log λ per step, for each unit of log(L0 / wanted)

Loss = Callable[..., losses.Out]


def schedule(step: int, c: Crosscoder) -> float:
    """Share of the peak learning rate: linear warm-up, plateau, linear decay to 1/32."""
    warm, last = c.warmup * c.steps, c.decay * c.steps
    up = min(1.0, (step + 1) / warm) if warm else 1.0
    down = min(1.0, (c.steps - step) / last) if last else 1.0
    return up * (1 / 32 + (1 - 1 / 32) * down)


def sparsity_at(step: int, c: Crosscoder) -> float:
    """λ, with a linear warm-up over the first 10% of the steps."""
    return c.peak_sparsity * min(1.0, (step + 1) / max(1.0, 0.1 * c.steps))


def steered(now: Progress, c: Crosscoder) -> Tensor:
    """() λ at this step, steered to a wanted L0 by a proportional and an integral term."""
    sparsity = now.pressure * sparsity_at(now.step, c)
    if c.l0 is None or now.step < 0.1 * c.steps:
        return sparsity
    return sparsity * (now.l0 / c.l0)


def k_at(step: int, c: Crosscoder) -> float:
    """K, which falls from k_start to k during the first 40% of the steps."""
    if c.k_start is None:
        return c.k
    return c.k_start + (c.k - c.k_start) * min(1.0, step / max(1.0, 0.4 * c.steps))


def make_loss(c: Crosscoder, sites: int, ranks: Ranks = losses.ALONE) -> Loss:
    """The configured loss, called as (W, G, x, target, dead, is_dead, λ, sample, count)."""

    def loss(
        W: model.Weights,
        G: model.Weights,
        x: Tensor,
        target: Tensor,
        dead: Tensor,
        is_dead: Tensor,
        sparsity: Tensor,
        sample: Tensor,
        count: int,
    ) -> losses.Out:
        shared: dict[str, Any] = {"sites": sites, "ranks": ranks}
        if c.activation == "relu":
            return losses.relu(W, G, x, target, sparsity, **shared)
        shared["per_site"] = c.gate == "snapshot"
        if c.activation == "batch_topk":
            aux: dict[str, Any] = {"aux_k": c.aux_k, "aux_weight": c.aux_weight}
            return losses.batch_topk(W, G, x, target, dead, is_dead, count=count, **aux, **shared)
        own: dict[str, Any] = {"penalty": c.penalty, "bandwidth": c.bandwidth, "refit": c.refit}
        return losses.jumprelu(W, G, x, target, sparsity, sample, **own, **shared)

    return loss


class Training:
    """The computations of one training's steps.

    Parameters
    ----------
    sites : N of its outputs. ranks : this process among those that share the training.
    """

    def __init__(self, c: Crosscoder, data: Data, sites: int, ranks: Ranks) -> None:
        self.c, self.data, self.sites, self.ranks = c, data, sites, ranks
        self.gates = sites if c.gate == "snapshot" else 1
        operators = native.library() if native.serves(c, data.device, ranks.size) else None
        self._core = None if operators is None else native.Core(operators, c, sites)
        self._eager = make_loss(c, sites, ranks)
        self._loss = self._eager if operators else devices.compiled(self._eager, data.device)
        if not ranks.room and not pairs.of_any_size(data.device):
            active, known = c.start_active or 32, False
            if c.activation == "batch_topk":
                active, known = max(c.k, c.k_start or 0), self.gates == 1
            slack = (1 if known else ROOM) * (1 if ranks.size == 1 else 2)
            ranks.room = -(-slack * round(active) * c.batch_rows // ranks.size)

    def begin(self, seed: int) -> Progress:
        """Weights with the grid's best norm, by error; everything else starts at zero."""
        c, data, ranks = self.c, self.data, self.ranks
        share, inputs = ranks.share(c.features), len(data.scales_in)
        weights = model.initial(
            c.basis, inputs, self.sites, c.features, data.width, data.U, seed, share
        )
        if not c.train_decoder:
            norm = ranks.norm(weights.W_dec)
            weights = model.random_directions(weights, seed, c.features, norm, share)
        W = model.Weights(**{n: t.to(data.device) for n, t in weights.named().items()})
        # The core updates the decoder row by row, so the decoder has no gradient buffer.
        none = {"W_dec"} if self._core else set()
        buffers = {n: t[:0] if n in none else t for n, t in W.named().items()}
        G = model.Weights(**{n: torch.zeros_like(t) for n, t in buffers.items()})
        rates = {"W_enc": 1.0, "b_enc": 1.0, "W_dec": 1.0, "b_dec": 1.0}
        if c.basis == "hybrid":
            rates["W_enc"] = rates["b_enc"] = self._longer(W.W_enc.shape[1])
        if not c.train_decoder:
            del rates["W_dec"]
        if c.activation == "jumprelu":
            rates["log_threshold"] = 0.1
        trained, gradients = ([tensors.named()[n] for n in rates] for tensors in (W, G))
        apart = W.W_dec if self._core else None
        now = Progress(
            W,
            G,
            Adam(trained, gradients, list(rates.values()), c.moments, data.device, apart),
            silent=torch.zeros(c.features, dtype=torch.long, device=data.device),
            threshold=torch.full((), -1.0, device=data.device),
            pressure=torch.ones((), device=data.device),
            l0=torch.full((), -1.0, device=data.device),
            failed=torch.full((), -1, dtype=torch.long, device=data.device),
            data=data.digest,
            ranks=ranks,
        )
        self._scale(now, *next(data.batches(c.batch_rows, 0, 1)))
        return now

    def _longer(self, columns: int) -> float:
        """How much longer Adam's steps are for rows of `columns` values instead of N·D.

        With this factor, a step moves the row as far as it would in N·D dimensions (method.md 3).
        """
        return math.sqrt(self.sites * self.data.width / columns)

    def _scale(self, now: Progress, x: Tensor, target: Tensor) -> None:
        """Give encoder and decoder the best norm of the grid and, for jumprelu, set the thresholds.

        The error is measured on a few rows. A threshold starts at the quantile of the batch's
        largest h·r that leaves its feature active on `start_active` / F of the rows.
        """
        c, W = self.c, now.weights
        quantile = None
        if c.activation == "jumprelu" and c.start_active is not None:
            r = model.gate_norms(W.W_dec, self.sites, self.gates > 1).amax(1)
            score = model.pre_activations(x, W.W_enc, W.b_enc) * r
            rank = max(1, round(len(x) * c.start_active / c.features))
            # Taking the midpoint of two scores prevents rounding from opening or closing a gate.
            quantile = torch.topk(score, min(len(x), rank + 1), dim=0).values[-2:].mean(0)
        x, target = x[:JUDGED_ROWS], target[:, :JUDGED_ROWS]

        def scale(by: float) -> None:
            for tensor in (W.W_enc, W.W_dec):
                tensor *= by

        errors, scaled = [], 1.0
        for factor in NORM_GRID:
            scale(factor / scaled)
            scaled = factor
            if quantile is not None:
                W.log_threshold.copy_((quantile * factor**2).clamp(min=LEAST_THRESHOLD).log())
            errors.append(self._gradients(now, x, target, judged=True).errors.sum())
        best = NORM_GRID[int(torch.stack(errors).argmin())]
        scale(best / scaled)
        if quantile is not None:
            W.log_threshold.copy_((quantile * best**2).clamp(min=LEAST_THRESHOLD).log())

    def _gradients(
        self, now: Progress, x: Tensor, target: Tensor, rate: float = 0.0, judged: bool = False
    ) -> losses.Out:
        """The loss of a step. Gradients go into the buffers; the core also updates the decoder.

        judged : only the error is wanted.
        """
        c, tokens = self.c, len(x)
        dead = torch.topk(now.silent, now.aux, sorted=False).indices
        is_dead = now.silent[dead] >= c.dead_after_rows
        dead, is_dead = now.ranks.mine(dead, is_dead, c.features, now.slots)
        sparsity = steered(now, c)
        chosen = torch.Generator().manual_seed(now.step)
        sample = torch.randperm(tokens, generator=chosen)[
            : max(1, round(tokens * c.threshold_share))
        ]
        sample = sample.to(x.device, non_blocking=True)
        count = max(1, round(k_at(now.step, c) * tokens * self.gates))
        W, G = now.weights, now.gradients
        if self._core is None:
            loss = self._eager if judged else self._loss
            return loss(W, G, x, target, dead, is_dead, sparsity, sample, count)
        moments = rates = None
        if c.train_decoder and not judged:
            moments = now.optimizer.of(W.W_dec)
            rates = corrected(now.step + 1, rate)
        return self._core(
            W, G, x, target, sparsity.item(), sample, count, not judged, moments, rates
        )

    def advance(self, now: Progress, x: Tensor, target: Tensor, rate: float) -> losses.Out:
        """One step: loss, gradients, Adam, and the running values for AuxK, threshold and λ."""
        c = self.c
        out = self._gradients(now, x, target, rate)
        now.optimizer.step(now.step + 1, rate)
        now.silent += len(x)
        now.silent.masked_fill_(out.fired, 0)
        blended = torch.lerp(out.cut, now.threshold, THRESHOLD_MEMORY)
        now.threshold.copy_(torch.where(now.threshold < 0, out.cut, blended))
        now.l0.copy_(torch.where(now.l0 < 0, out.l0, torch.lerp(out.l0, now.l0, L0_MEMORY)))
        if c.l0 is not None and now.step >= 0.1 * c.steps:
            now.pressure *= (now.l0 / c.l0) ** STEERING
        now.step += 1
        bad = (now.failed < 0) & ~torch.isfinite(out.loss)
        now.failed.masked_fill_(bad, now.step)
        now.ranks.note(out.full)
        return out

    def measure_threshold(self, now: Progress) -> None:
        """Set the threshold to the mean of BatchTopK's smallest kept scores, with final weights.

        This is for a training so short that the running mean still lags behind the scores. It uses
        the batches that would come next.
        """
        c, cuts = self.c, []
        last = now.step + measured_batches(c.activation, c.steps)
        batches = self.data.batches(c.batch_rows, now.step, last)
        for x, target in batches:
            cuts.append(self._gradients(now, x, target, judged=True).cut.clone())
        now.threshold.copy_(torch.stack(cuts).mean())

    def rate(self, step: int) -> float:
        """The learning rate at a step."""
        c, space = self.c, self.data.U
        longer = self._longer(space.shape[1]) if c.basis == "principal" and space is not None else 1
        return c.learning_rate * longer * schedule(step, c)


def aux_size(silent: Tensor, c: Crosscoder) -> int:
    """Number of features that AuxK looks at: 0, or a quarter, half or all of `aux_features`.

    It depends on how many are dead: the cost grows with the number, and each size is a separate
    compiled graph.
    """
    if not c.aux:
        return 0
    dead = int((silent >= c.dead_after_rows).sum())
    return _room_for(dead, c) if dead else 0


def _room_for(dead: int, c: Crosscoder) -> int:
    sizes = (min(c.aux, max(c.aux_k, c.aux // share)) for share in (4, 2))
    return next((size for size in sizes if dead <= size), c.aux)


def aux_slots(silent: Tensor, c: Crosscoder, ranks: int) -> int:
    """Number of features that AuxK looks at on each rank: those that can be dead by the next look.

    Parameters
    ----------
    silent : (F,) rows since each of all features was last active.
    """
    dying = silent >= c.dead_after_rows - LOG_EVERY * c.batch_rows
    most = int(dying.view(ranks, -1).sum(1).max())
    return min(_room_for(most, c), c.features // ranks)


def _look(now: Progress, c: Crosscoder) -> None:
    """Set what is fixed until the next look: AuxK's sizes, and each rank's room for pairs."""
    now.aux = aux_size(now.silent, c)
    now.slots = aux_slots(now.silent, c, now.ranks.size) if now.aux else 0
    now.ranks.make_room(now.silent.device)


class Session:
    """One training in progress.

    Parameters
    ----------
    settings : the whole experiment; `name` and `seed` choose the crosscoder.
    ranks : this process among those that share the training.

    Attributes
    ----------
    c : the crosscoder's settings. now : everything that changes; may be resumed before `start`.
    """

    def __init__(
        self, settings: Settings, name: str, seed: int, data: Data, ranks: Ranks | None = None
    ) -> None:
        self.settings, self.name, self.seed, self.data = settings, name, seed, data
        self.c, self.ranks = data.c, ranks or Ranks()
        self.training = Training(self.c, data, len(data.outputs), self.ranks)
        self.now = self.training.begin(seed)

    def start(self) -> None:
        """Continue from the state in `now`."""
        now, c = self.now, self.c
        _look(now, c)
        self._began, self._began_at = time.monotonic(), now.step
        self._batches = self.data.batches(c.batch_rows, now.step, c.steps)
        rows = now.step * c.batch_rows, c.steps * c.batch_rows
        what = f"train {self.name} seed {self.seed}"
        self._shown = bar(what, rows[1], "rows", initial=rows[0])

    @property
    def row(self) -> int:
        """The first row of the next batch; counting does not restart at the end of the data."""
        return self.now.step * self.c.batch_rows

    @property
    def over(self) -> bool:
        """Whether all steps are done."""
        return self.now.step >= self.c.steps

    def step(self, state: Path) -> bool:
        """Take one step, and return whether the losses and weights were checked after it.

        Parameters
        ----------
        state : folder that an error names if it holds a state.

        Raises
        ------
        InputError : the loss is not finite.
        """
        now, c = self.now, self.c
        x, target = next(self._batches)
        rate = self.training.rate(now.step)
        out = self.training.advance(now, x, target, rate)
        self._shown.update(len(x))
        if now.step % LOG_EVERY and not self.over:
            return False
        if not now.finite:
            key = self.settings.key_of(self.name, "learning_rate")
            failed = int(now.failed) if int(now.failed) > 0 else now.step
            stays = f"; the last good state stays in {state}" if kept(state) else ""
            raise self.data.fault(key, failed, stays)
        _look(now, c)
        if self.ranks.rank == 0:
            seconds = time.monotonic() - self._began
            row = _report(now, c, self.data, out, target) | {
                "learning_rate": rate,
                "rows_per_second": (now.step - self._began_at) * c.batch_rows / seconds,
                "bytes_per_parameter": now.optimizer.bytes_per_parameter,
            }
            now.log.append(row)
            self._shown.set_postfix_str(
                f"EV {row['explained_variance']:.3f}, dead {row['dead_fraction']:.0%}"
            )
        return True

    def finish(self, output: str | Path) -> None:
        """Write the crosscoder; all ranks call it, and rank 0 writes."""
        now, c, data = self.now, self.c, self.data
        self._shown.close()
        if measured_batches(c.activation, c.steps):
            self.training.measure_threshold(now)
        weights = now.whole_weights()
        if self.ranks.rank > 0:
            return
        ended = now.l0.item()
        if c.l0 is not None and abs(ended / c.l0 - 1) > L0_MISSED:
            print(
                f"{self.settings.key_of(self.name, 'l0')}: L0 ended at {ended:.1f} instead of "
                f"{c.l0:g}; a penalty can lower L0 but not raise it: set a lower l0, or train for "
                "longer",
                file=sys.stderr,
            )
        about = model.Description(
            activation=c.activation,
            gate=c.gate,
            features=c.features,
            width=data.width,
            inputs=[(site.snapshot, site.layer, site.stream) for site in data.every_input],
            outputs=[(site.snapshot, site.layer, site.stream) for site in data.every_output],
            basis=c.basis,
            threshold=max(0.0, now.threshold.item()) if c.activation == "batch_topk" else 0.0,
            seed=self.seed,
            settings=c.model_dump(mode="json"),
            tokens=data.tokens,
            ontogeny=VERSION,
            torch=torch.__version__.split("+")[0],
            token_table=c.token_table,
        )
        weights["W_dec"] = weights["W_dec"].flatten(1)
        weights = data.complete(weights)
        tensors = weights | {"silent_rows": now.silent.cpu()} | data.constants()
        model.Crosscoder(about, tensors).save(output)
        write_table(Path(output) / "metrics.csv", pd.DataFrame(now.log))


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
    paths : of its rows.
    output : folder to write: crosscoder.safetensors, config.json, metrics.csv (one row every 50
        steps: step, rows, loss, explained_variance of the batch in the training space (minus the
        token table, if there is one), l0, dead_fraction, threshold, sparsity (λ, except for
        batch_topk), explained_variance_{site number from 1} of sites that vary, learning_rate,
        rows_per_second, bytes_per_parameter).
    state : folder for resuming.
    ranks : this process among those that share the training.

    Raises
    ------
    InputError : inputs that do not fit, or a loss that is not finite.
    """
    c, state = settings.all_crosscoders[name], Path(state)
    device = devices.choose(settings.device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision(c.precision)
    data = Data(settings, c, paths, device, peers=ranks)
    session = Session(settings, name, seed, data, ranks)
    wrong = damaged(state)
    if not wrong:
        session.now.resume(state)
    elif session.ranks.rank == 0:
        print(wrong, file=sys.stderr)
    session.start()
    with Saver(state) as saver:
        while not session.over:
            looked = session.step(state) and not session.over
            # Ranks reach this point at different times, so the first one decides.
            if looked and session.ranks.agree(session.ranks.rank > 0 or saver.due, device):
                saver.save({"/": session.now})
    session.finish(output)


def _report(
    now: Progress, c: Crosscoder, data: Data, out: losses.Out, target: Tensor
) -> dict[str, float]:
    """A row of metrics.csv, measured on the step's batch."""
    variance = (target - target.mean(1, keepdim=True)).square().sum() / target.shape[1]
    row = {
        "step": now.step,
        "rows": now.step * c.batch_rows,
        "loss": out.loss.item(),
        "explained_variance": 1 - (out.errors.sum() / variance).item(),
        "l0": out.l0.item(),
        "dead_fraction": (now.silent >= c.dead_after_rows).float().mean().item(),
        "threshold": now.threshold.item(),
    }
    if c.activation != "batch_topk":
        row["sparsity"] = steered(now, c).item()
    per_site = data.explained_by_site(out, target)
    named = zip(data.numbers, per_site, strict=True)
    return row | {f"explained_variance_{n}": explained for n, explained in named}
