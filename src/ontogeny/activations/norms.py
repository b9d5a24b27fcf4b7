"""The norms stage, used if `activations.leave_out_norm` is set: which positions are outliers.

Rows must be the same at every snapshot, but snapshots are extracted separately. So each snapshot
first runs over all blocks, and a position whose norm exceeds the bound at any snapshot, layer or
stream has no row at any of them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ontogeny import devices
from ontogeny.activations import order
from ontogeny.activations.extract import Snapshot
from ontogeny.corpus.build import Tokens
from ontogeny.files import InputError, whole_hdf5
from ontogeny.progress import bar
from ontogeny.settings import Settings


def measure(
    settings: Settings, snapshot: str | Path, step: int, tokens: str | Path, output: str | Path
) -> None:
    """Write which positions of a snapshot have a norm above the bound.

    Parameters
    ----------
    snapshot : folder of the model. step : its training step. tokens : tokens.h5.
    output : HDF5; `over` (blocks, context) bool, for the held-out and the training blocks by
        number: whether the norm exceeds activations.leave_out_norm times the median over the
        training rows at any layer and stream. Attributes: format, step, tokens, bound.

    Raises
    ------
    InputError : damaged inputs, no bound, or no training rows remain.
    """
    section, text = settings.activations, Tokens(tokens)
    if section.leave_out_norm is None:
        raise InputError(
            "activations.leave_out_norm: not set, so norms are not needed; set it to measure them"
        )
    model = Snapshot(settings, snapshot, step, devices.choose(settings.device))
    first, last = text.splits["train"]
    kept = order.Order(text, "train", section).kept(np.arange(first, last))
    norms = {key: np.empty((last, text.context), np.float32) for key in model.wanted}
    with bar(f"norms of step {step}", last * text.context, "tokens") as progress:
        for blocks in order.batches(np.arange(last), text.context):
            ids = text.take(blocks)
            for key, values in model.read(ids).items():
                norms[key][blocks] = values.float().norm(dim=1).cpu().numpy().reshape(ids.shape)
            progress.update(ids.size)
    over = np.zeros((last, text.context), bool)
    for found in norms.values():
        over |= found > section.leave_out_norm * np.median(found[first:last][kept])
    facts = {"format": order.NORMS_FORMAT, "step": step, "tokens": text.digest}
    facts["bound"] = section.leave_out_norm
    with whole_hdf5(output) as file:
        file.create_dataset("over", data=over, compression="gzip")
        file.attrs.update(facts)
