"""What all snapshots compute on some passages: losses, predictions, and a crosscoder's features.

A feature's pre-activation h sums over the crosscoder's inputs, which come from many snapshots, so
all of them have to read a passage before any feature is known (docs/method.md 3):

    h_i(x)             one number for all snapshots
    f_i^θ(x)           the *activation* at snapshot θ: h_i where the gate is open there, else 0;
                       with one gate per feature, the same at all snapshots
    f_i^θ(x) · r_i^θ   the *contribution*: norm of what the feature adds to the reconstruction
                       at θ, with r the decoder norm; in units in which rows have the mean norm √d

Each snapshot is loaded once, one after another. P passages have M tokens together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ontogeny import devices
from ontogeny.activations.sites import Site
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.files import InputError
from ontogeny.reading.passages import Passage
from ontogeny.settings import Settings
from ontogeny.snapshots import series


@dataclass(frozen=True)
class Trace:
    """Results for the M tokens of some passages, at n snapshots and N output sites.

    Attributes
    ----------
    ids : (M,) tokens. passage : (M,) index of each token's passage. position : (M,) position in the
        passage, from 0; negative for tokens before the passage.
    steps : of the n snapshots, ascending. outputs : the N sites that the crosscoder writes.
    loss : (M, n) cross-entropy of each token given those before it, in nats; NaN if undefined.
    following, probability : (M, n, k) the likeliest next tokens, the likeliest first.
    row, feature : (A,) token and feature of each pair that is active at some site.
    activation, contribution : (A, N) f and f·r at each site; 0 where the gate is closed.
    """

    ids: np.ndarray
    passage: np.ndarray
    position: np.ndarray
    steps: list[int]
    outputs: list[Site]
    loss: np.ndarray
    following: np.ndarray
    probability: np.ndarray
    row: np.ndarray
    feature: np.ndarray
    activation: np.ndarray
    contribution: np.ndarray


@torch.no_grad()
def run(
    settings: Settings,
    crosscoder: Crosscoder,
    snapshots: Path,
    passages: Sequence[Passage],
    vocabulary: int,
    top: int,
) -> Trace:
    """Read some passages with every snapshot of a crosscoder.

    Parameters
    ----------
    snapshots : folder. vocabulary : size of the tokenizer; a model's rows beyond it are padding.
    top : k, number of likeliest tokens to keep.

    Raises
    ------
    InputError : a snapshot is damaged, or a token has no row in a model.
    """
    about, device = crosscoder.about, crosscoder.device
    dtype = devices.precision(settings.activations.precision, device)
    stored = getattr(torch, settings.activations.dtype)
    outputs = [Site(*site) for site in about.outputs]
    steps = sorted({site[0] for site in (*about.inputs, *about.outputs)})
    ids = [torch.from_numpy(passage.ids).to(device) for passage in passages]
    every, k = torch.cat(ids), min(top, vocabulary)
    x = torch.zeros(len(every), len(about.inputs), about.width, device=device)
    loss = torch.full((len(every), len(steps)), torch.nan)
    following = torch.zeros(len(every), len(steps), k, dtype=torch.long)
    probability = torch.zeros(following.shape)
    remote = settings.snapshots.remote_code
    for i, (step, model) in enumerate(series.models(snapshots, steps, device, dtype, remote)):
        wanted = {(site[1], site[2]): n for n, site in enumerate(about.inputs) if site[0] == step}
        _check_ids(model, every, step)
        low = 0
        for own in ids:
            part = slice(low, low + len(own))
            with series.kept(model, wanted) as read:
                log_p = log_probabilities(model, own, vocabulary)
            for key, n in wanted.items():
                values = read[key].reshape(len(own), -1).to(stored).float()
                x[part, n] = values * crosscoder.scales_in[n]
            loss[low + 1 : part.stop, i] = -log_p[:-1].gather(1, own[1:, None])[:, 0].cpu()
            best = log_p.topk(k, 1)
            following[part, i], probability[part, i] = best.indices.cpu(), best.values.exp().cpu()
            low = part.stop
    rows = torch.from_numpy(np.concatenate([p.rows for p in passages])).to(device)
    f = crosscoder.encode_peak(x[rows], every[rows])
    row, feature = f.nonzero(as_tuple=True)
    own_f = crosscoder.at_sites(f[row, feature], feature).expand(-1, len(outputs))
    own_f = own_f * (crosscoder.scales_out > 0)  # no feature is present at a constant site
    return Trace(
        ids=every.cpu().numpy(),
        passage=np.repeat(np.arange(len(passages)), [len(p.ids) for p in passages]),
        position=np.concatenate([np.arange(len(p.ids)) - p.before for p in passages]),
        steps=steps,
        outputs=outputs,
        loss=loss.numpy(),
        following=following.numpy(),
        probability=probability.numpy(),
        row=rows.nonzero()[:, 0][row].cpu().numpy(),
        feature=feature.cpu().numpy(),
        activation=own_f.cpu().numpy(),
        contribution=(own_f * crosscoder.strength[feature]).cpu().numpy(),
    )


def log_probabilities(model: Any, ids: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """ln p of the token after each of ids (T,), over the tokenizer's vocabulary: (T, V) float32.

    Rows of the model beyond the vocabulary count in the normalisation, as in every other loss.
    """
    logits = model(input_ids=ids[None], use_cache=False).logits[0]
    return logits.float().log_softmax(1)[:, :vocabulary]


def _check_ids(model: Any, ids: torch.Tensor, step: int) -> None:
    known = int(model.get_input_embeddings().weight.shape[0])
    if int(ids.max()) >= known:
        raise InputError(
            f"the text contains the token {int(ids.max())}, but the embedding of step {step} has "
            f"only {known} rows; leave that token out"
        )
