"""The phases stage: every snapshot's loss and its distance from the n-gram models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ontogeny import devices
from ontogeny.corpus.build import Tokens
from ontogeny.files import write_json, write_table
from ontogeny.phases import ngrams
from ontogeny.progress import bar
from ontogeny.settings import Settings
from ontogeny.snapshots import sites

BATCH_TOKENS = 4096
NGRAM_TOKENS = 50_000_000  # most tokens that the n-gram models are estimated from
BATCH_ENTRIES = 1 << 27  # probabilities (tokens × vocabulary) in memory at a time


@torch.no_grad()
def against_ngrams(
    model: torch.nn.Module, blocks: np.ndarray, fitted: ngrams.Ngrams
) -> dict[str, float]:
    """Loss, KL(unigram‖model) and KL(bigram‖model) in nats, averaged over predicted tokens.

    The KL needs the model's log probabilities q only as Σ_b p₁(b) log q(b) and at the pairs (a, b)
    of the training text: p₂(·|a) is a multiple of p₁ except at these pairs, where it is larger.

    Parameters
    ----------
    blocks : (blocks, context) held-out token ids.
    """
    device = next(model.parameters()).device
    unigram = torch.from_numpy(fitted.unigram).float().to(device)
    of_unigram, of_bigram = fitted.negative_entropies()
    shared = torch.from_numpy(fitted.shared).to(device)
    sums = torch.zeros(3, dtype=torch.float64)
    most = min(BATCH_TOKENS, BATCH_ENTRIES // len(fitted.unigram))
    step = max(1, most // blocks.shape[1])
    for start in range(0, len(blocks), step):
        chosen = blocks[start : start + step].astype(np.int64)
        ids, previous = torch.from_numpy(chosen).to(device), chosen[:, :-1].ravel()
        log_q = model(input_ids=ids).logits[:, :-1].float().log_softmax(-1).flatten(0, 1)
        loss = -log_q.gather(1, ids[:, 1:].flatten()[:, None]).double().sum()
        by_unigram = (log_q @ unigram).double()
        own = fitted.own(previous)
        first = np.arange(len(previous), dtype=np.int64) * own.shape[1]
        places = torch.from_numpy(np.repeat(first, np.diff(own.indptr)) + own.indices).to(device)
        more = torch.from_numpy(own.data).to(device) @ log_q.flatten()[places].double()
        by_bigram = shared[ids[:, :-1].flatten()] @ by_unigram + more
        kl1 = len(previous) * of_unigram - by_unigram.sum()
        kl2 = of_bigram[previous].sum() - by_bigram
        sums += torch.stack([loss, kl1, kl2]).cpu()
    loss, kl1, kl2 = (sums / (len(blocks) * (blocks.shape[1] - 1))).tolist()
    return {"loss": loss, "kl_unigram": kl1, "kl_bigram": kl2}


def crossing(steps: np.ndarray, loss: np.ndarray, level: float) -> float:
    """Training step at which the loss first falls to `level`, interpolated in log(step + 1).

    NaN if it never does.
    """
    below = np.flatnonzero(loss <= level)
    if not len(below):
        return float("nan")
    i = int(below[0])
    if i == 0:
        return float(steps[0])
    x = np.log(np.asarray(steps[i - 1 : i + 1], float) + 1)
    share = (loss[i - 1] - level) / (loss[i - 1] - loss[i])
    return float(np.exp(x[0] + share * (x[1] - x[0])) - 1)


def measure(settings: Settings, snapshots: Path, tokens: Path, phases: Path, levels: Path) -> None:
    """Write the phases' table and the levels' crossings.

    Parameters
    ----------
    snapshots : folder of the snapshots' folders. tokens : tokens.h5.
    phases : CSV; snapshot_index, step, loss, kl_unigram, kl_bigram.
    levels : JSON; cross-entropies in nats, smoothing strength, the steps at which the loss crosses
        each level, and the snapshots on either side.
    """
    data = Tokens(tokens)
    device = devices.choose(settings.device)
    steps = settings.snapshots.chosen

    def load(step: int) -> Any:
        folder = snapshots / f"step{step}"
        return sites.load_model(folder, device, torch.float32, settings.snapshots.remote_code)

    def take(split: str, most: int) -> np.ndarray:
        first, last = data.splits[split]
        return data.take(np.arange(first, min(last, first + most)))

    # Models pad their vocabulary. KL needs n-gram models over the same entries as the logits.
    vocabulary = int(load(steps[-1]).config.get_text_config().vocab_size)
    read = take("pretrain" if data.size("pretrain") else "train", NGRAM_TOKENS // data.context)
    fitted = ngrams.fit(read, vocabulary)
    held_out = take("held_out", settings.analysis.phase_blocks)
    rows = []
    with bar("phases", len(steps), "snapshots") as progress:
        for number, step in enumerate(steps, start=1):
            measures = against_ngrams(load(step), held_out, fitted)
            rows.append({"snapshot_index": number, "step": step, **measures})
            progress.update()
    table = pd.DataFrame(rows)
    write_table(phases, table)
    about: dict[str, object] = {"bigram_smoothing_strength": fitted.strength}
    for name, level in zip(("unigram", "bigram"), fitted.cross_entropies(held_out), strict=True):
        step_at = crossing(np.array(steps), table["loss"].to_numpy(), level)
        after = next((step for step in steps if step >= step_at), None)
        about[f"{name}_cross_entropy"] = level
        about[f"{name}_crossing_step"] = None if np.isnan(step_at) else step_at
        about[f"{name}_crossing_after_snapshot"] = (
            None if after is None else settings.snapshots.number(after)
        )
    write_json(levels, about)
