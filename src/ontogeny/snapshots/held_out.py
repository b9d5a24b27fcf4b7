"""A first check of a snapshot when it is read: its loss on a little held-out text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from ontogeny.corpus.build import Tokens
from ontogeny.files import InputError, write_json
from ontogeny.snapshots.sizes import loss_blocks


@torch.no_grad()
def measure(model: Any, text: Tokens, step: int, output: Path) -> None:
    """Write the mean loss in nats per predicted token as JSON: {"step", "loss"}.

    Parameters
    ----------
    model : a complete causal language model in evaluation mode.
    """
    device, total = next(model.parameters()).device, 0.0
    first, last = text.splits["held_out"]
    count = loss_blocks(last - first, text.context)
    for block in text.take(np.arange(first, first + count)):
        ids = torch.from_numpy(block[None].astype(np.int64)).to(device)
        logits = model(input_ids=ids).logits[0, :-1].float()
        total += float(cross_entropy(logits, ids[0, 1:]))
    write_json(output, {"step": step, "loss": total / count})


def check_ids(model: Any, text: Tokens, step: int) -> None:
    """Raise InputError if the text has an id for which the model has no embedding.

    A tokenizer may have more ids than a model, such as an added padding token that no text
    contains.
    """
    rows = int(model.get_input_embeddings().weight.shape[0])
    if text.vocabulary <= rows:
        return
    for name, (first, last) in text.splits.items():
        for start in range(first, last, 1024):
            blocks = text.take(np.arange(start, min(start + 1024, last)))
            if len(blocks) and blocks.max() >= rows:
                block, place = np.argwhere(blocks >= rows)[0]
                raise InputError(
                    f"{text.path}: block {start + block} ({name}), token {place} is the id "
                    f"{blocks[block, place]}, but the embedding of step {step} has only {rows} "
                    "rows; leave that token out of the text, or use the tokenizer that the model "
                    "was trained with"
                )
