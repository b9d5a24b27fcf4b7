"""Ablation of one feature at a snapshot: how the model's predictions on a text change.

At each token, the feature's contribution to the reconstruction, in the model's own units, is
subtracted from the site's value v, and the rest of the model runs on the result. The
reconstruction error stays in:

    v − f_i^θ(x) · W_dec,i^θ / s^θ
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ontogeny import devices
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.files import InputError
from ontogeny.reading.passages import Passage
from ontogeny.reading.trace import Trace, log_probabilities
from ontogeny.settings import Settings
from ontogeny.snapshots import sites


@dataclass(frozen=True)
class Source:
    """What a text was read with. snapshots : folder. vocabulary : size of the tokenizer."""

    settings: Settings
    crosscoder: Crosscoder
    snapshots: Path
    passage: Passage
    vocabulary: int


@torch.no_grad()
def ablate(
    source: Source, found: Trace, texts: list[str], feature: int, step: int, site: int | None = None
) -> pd.DataFrame:
    """Losses and predictions at a snapshot with and without a feature.

    Parameters
    ----------
    found : the trace of `source`'s passage. site : index among its outputs; may be omitted if the
        crosscoder writes only one site of that snapshot.

    Returns
    -------
    One row per token: position, token, activation (of the feature), loss and loss_without (nats, of
    the token itself), divergence (KL of the predictions of the next token, nats).

    Raises
    ------
    InputError : the feature or snapshot does not exist, or the snapshot has several sites and none
        is given.
    """
    crosscoder = source.crosscoder
    if not 0 <= feature < crosscoder.about.features:
        raise InputError(
            f"no feature {feature}; they are numbered 0 to {crosscoder.about.features - 1}"
        )
    there = [n for n, output in enumerate(found.outputs) if output.snapshot == step]
    if site is None and len(there) != 1:
        raise InputError(
            f"the crosscoder has {len(there)} output sites at step {step}; choose a step from "
            f"{found.steps}, and as `site` an index into Reading.trace.outputs"
        )
    n = there[0] if site is None else site
    output, device = found.outputs[n], crosscoder.device
    settings = source.settings
    dtype = devices.precision(settings.activations.precision, device)
    folder = source.snapshots / f"step{output.snapshot}"
    model = sites.load_model(folder, device, dtype, settings.snapshots.remote_code)
    ids, key = torch.from_numpy(source.passage.ids).to(device), (output.layer, output.stream)
    f = np.zeros(len(ids), np.float32)
    own = found.feature == feature
    f[found.row[own]] = found.activation[own, n]
    direction = crosscoder.decoders_at(n, np.array([feature]))[0] / crosscoder.divisors[n]
    value = sites.read(model, ids[None], [key])[key].float()
    value -= torch.from_numpy(f).to(device)[:, None] * direction
    log_p = log_probabilities(model, ids, source.vocabulary)
    with sites.replaced(model, *key, value):
        without = log_probabilities(model, ids, source.vocabulary)
    losses = np.full((2, len(ids)), np.nan)
    for i, each in enumerate((log_p, without)):
        losses[i, 1:] = -each[:-1].gather(1, ids[1:, None])[:, 0].cpu().numpy()
    divergence = (log_p.exp() * (log_p - without)).sum(1).clamp(min=0)
    table = {"position": found.position, "token": texts, "activation": f, "loss": losses[0]}
    table |= {"loss_without": losses[1], "divergence": divergence.cpu().numpy()}
    return pd.DataFrame(table)[found.position >= 0].reset_index(drop=True)
