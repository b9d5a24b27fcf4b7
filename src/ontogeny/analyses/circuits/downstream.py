"""The logit difference of the answers as a function of a site's values, and its gradient.

    m = logit of the right answer − logit of the wrong one, at the last token of the clean prompt
    m = log-probability of the good sentence − that of the bad one (Sentences)

Several right or wrong answers are combined by adding their probabilities, log Σ exp of the logits.
Only the part of the model after the site is run. In the residual stream, everything that the model
knows about the prompt passes through the site, so m with a corrupted prompt's values is that
prompt's m. With other streams, the rest of the model still sees the clean prompt.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from ontogeny.analyses.circuits.tasks import AnyTask, Sentences, Task
from ontogeny.snapshots import sites

BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}  # most tokens in a forward pass
SAME = 1e-3  # relative to the logits: the largest change by skipping blocks that counts as rounding

Metric = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(values (B, T, d), indices of their pairs (B,)) → m (B,)."""


class Downstream:
    """m of a task's prompts as a function of the values at a site.

    Parameters
    ----------
    model : in evaluation mode, with all its blocks. layer, stream : the site.
    task : P pairs of T tokens.

    Attributes
    ----------
    clean, corrupted : (P, T, d) values at the site for the two prompts of each pair.
    """

    def __init__(self, model: Any, layer: int, stream: str, task: Task) -> None:
        self._model = model.requires_grad_(False)
        self._site = (layer, stream)
        device = next(model.parameters()).device

        def on_device(values: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(values.astype(np.int64)).to(device)

        self._ids = on_device(task.clean)
        self._wrong_ids = on_device(task.corrupted)
        self._answers = [on_device(np.atleast_2d(a.T).T) for a in (task.right, task.wrong)]
        last, row = np.unique(task.length - 1, return_inverse=True)
        self._last, self._row = on_device(last), on_device(row)
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        # indices of the pairs, in pieces that fit into one pass
        every = torch.arange(len(task.clean), device=device)
        self._batches = every.split(_prompts(device, task.clean.shape[1]))
        self._skips = True
        self.clean, self.corrupted = (self._read(ids) for ids in (self._ids, self._wrong_ids))
        self._skips = self._agrees()

    def _read(self, ids: torch.Tensor) -> torch.Tensor:
        key: Any = self._site
        read = [sites.read(self._model, ids[pairs], [key])[key].float() for pairs in self._batches]
        return torch.cat(read)

    def _logits(self, ids: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        """(B, 2): logits of the right and the wrong answers after the last token."""
        kept = {"logits_to_keep": self._last} if self._keeps else {}
        logits = self._model(input_ids=ids[pairs], use_cache=False, **kept).logits
        row = self._row[pairs] if self._keeps else self._last[self._row[pairs]]
        each = logits[torch.arange(len(pairs), device=logits.device), row]
        return torch.stack([_together(each, answers[pairs]) for answers in self._answers], 1)

    @torch.no_grad()
    def _agrees(self) -> bool:
        """Whether skipping the blocks before the site leaves the logits unchanged."""
        pairs = torch.arange(min(2, len(self._ids)), device=self._ids.device)
        plain = self._logits(self._ids, pairs)
        values = self.clean[pairs].reshape(-1, self._ids.shape[-1], self.clean.shape[-1])
        with sites.continued(self._model, *self._site, values):
            skipping = self._logits(self._ids, pairs)
        change = (plain - skipping).abs().max()
        return bool(change <= SAME * plain.abs().max().clamp(min=1))

    def __call__(self, values: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        """m, (B,), for values (B, T, d) at the site and the indices of their pairs, (B,)."""
        splice = sites.continued if self._skips else sites.replaced
        with splice(self._model, *self._site, values):
            both = self._logits(self._ids, pairs)
        return both[:, 0] - both[:, 1]

    @torch.no_grad()
    def behaviour(self) -> tuple[torch.Tensor, torch.Tensor]:
        """m of the unchanged clean and corrupted prompts, (P,) each."""
        clean, corrupted = (
            torch.cat([self._logits(ids, pairs) for pairs in self._batches])
            for ids in (self._ids, self._wrong_ids)
        )
        return clean[:, 0] - clean[:, 1], corrupted[:, 0] - corrupted[:, 1]


class Likelihood(Downstream):
    """The same for pairs of sentences: values are (P, 2 S, d), with both sentences in a row.

    Parameters
    ----------
    baseline : (R,) token ids → (R, d), the site's values with no feature active; None if
        `corrupted` is not used.
    """

    def __init__(
        self,
        model: Any,
        layer: int,
        stream: str,
        task: Sentences,
        baseline: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self._model = model.requires_grad_(False)
        self._site = (layer, stream)
        device = next(model.parameters()).device
        (ids,) = task.prompts
        self._ids, self._target = (
            torch.from_numpy(each.astype(np.int64)).to(device) for each in (ids, task.target)
        )
        self._batches = torch.arange(len(ids), device=device).split(
            _prompts(device, ids.shape[1] * ids.shape[2])
        )
        self._skips = True
        self.clean = self.corrupted = self._read(self._ids)
        if baseline is not None:
            at = torch.from_numpy(task.open).to(device)
            self.corrupted = self.clean.clone()
            self.corrupted[at] = baseline(self._ids.flatten(1)[at])
        self._skips = self._agrees()

    def _read(self, ids: torch.Tensor) -> torch.Tensor:
        key: Any = self._site
        parts = [
            sites.read(self._model, ids[pairs].flatten(0, 1), [key])[key].float()
            for pairs in self._batches
        ]
        return torch.cat(parts).view(len(ids), -1, parts[0].shape[-1])

    def _logits(self, ids: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        """(B, 2): log-probabilities of the tokens that count in the good and the bad sentence."""
        logits = self._model(input_ids=ids[pairs].flatten(0, 1), use_cache=False).logits
        target = self._target[pairs].flatten(0, 1)
        row, at = (target >= 0).nonzero(as_tuple=True)
        each = -cross_entropy(logits[row, at].float(), target[row, at], reduction="none")
        return each.new_zeros(len(target)).index_add(0, row, each).view(-1, 2)

    def __call__(self, values: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        """m, (B,), for values (B, 2 S, d) at the site and the indices of their pairs, (B,)."""
        return super().__call__(values.view(-1, values.shape[1] // 2, values.shape[2]), pairs)

    @torch.no_grad()
    def behaviour(self) -> tuple[torch.Tensor, torch.Tensor]:
        """m of the unchanged sentences, and with no feature active, (P,) each."""
        both = torch.cat([self._logits(self._ids, pairs) for pairs in self._batches])
        return both[:, 0] - both[:, 1], measured(self, self.corrupted)


def of(
    model: Any,
    layer: int,
    stream: str,
    task: AnyTask,
    baseline: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Downstream:
    """The metric for a task; parameters as for `Downstream` and `Likelihood`."""
    if isinstance(task, Sentences):
        return Likelihood(model, layer, stream, task, baseline)
    return Downstream(model, layer, stream, task)


def _together(logits: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """log Σ exp of the logits (B, V) of answers (B, R), where −1 means none; (B,)."""
    each = logits.gather(1, answers.clamp(min=0)).float()
    if each.shape[1] == 1:
        return each[:, 0]
    return each.masked_fill(answers < 0, -torch.inf).logsumexp(1)


def _prompts(device: torch.device, length: int) -> int:
    """How many prompts of this many tokens fit into one pass."""
    return max(1, BATCH_TOKENS.get(device.type, BATCH_TOKENS["cuda"]) // length)


@torch.no_grad()
def measured(m: Metric, values: torch.Tensor) -> torch.Tensor:
    """m of every pair, (..., P), for values (..., P, T, d)."""
    flat = values.flatten(0, -3)
    pairs = torch.arange(values.shape[-3], device=values.device).expand(values.shape[:-2]).flatten()
    step = _prompts(values.device, values.shape[-2])
    parts = [m(*both) for both in zip(flat.split(step), pairs.split(step), strict=True)]
    return torch.cat(parts).view(values.shape[:-2])


def path_gradient(
    m: Metric, clean: torch.Tensor, corrupted: torch.Tensor, steps: int
) -> torch.Tensor:
    """∂m/∂a averaged along the straight path from corrupted to clean, (P, T, d).

    Midpoint rule, at (j + ½) / steps of the path, so that its error decreases with steps².

    Parameters
    ----------
    clean, corrupted : (P, T, d).
    """
    total = torch.zeros_like(clean)
    at_once = _prompts(clean.device, clean.shape[1])
    for pairs in torch.arange(len(clean), device=clean.device).split(at_once):
        start, way = corrupted[pairs], clean[pairs] - corrupted[pairs]
        for points in torch.arange(steps).split(max(1, at_once // len(pairs))):
            share = ((points + 0.5) / steps).to(start).view(-1, 1, 1, 1)
            values = (start + share * way).flatten(0, 1).requires_grad_(True)
            (gradient,) = torch.autograd.grad(m(values, pairs.repeat(len(points))).sum(), values)
            total[pairs] += gradient.unflatten(0, (len(points), -1)).sum(0)
    return total / steps
