"""Context span: how much of the preceding context a feature needs (docs/method.md 6).

A suffix of length ℓ is the last ℓ tokens of a position's block, up to and including the position.
The snapshots are run on it in two ways, which give activations f_ℓ to compare with f in the whole
context:

    alone      the suffix and nothing before it, from position 0 on
    replaced   after tokens of another text, twice as many as the longest suffix

on a grid of lengths 1, 2, 3, 4, 8, 16, …, which doubles up to a longest one:

    span = the least ℓ of the grid such that f_ℓ' ≥ keep · f for it and every longer ℓ'

Attention over a few tokens differs from attention over many: its weights go to the tokens that are
left. With the suffix alone, a feature of the current token may therefore be off by tens of percent
until there are enough tokens that their mean is the usual one. This is not a need for context.
`replaced` keeps the number of tokens about the same and tests whether it matters which they are.

The first length that passes is not a good measure: a feature may be stronger on a short suffix than
in context, weaker on a longer one, and settle only then. We count how often that happens. A context
whose longest suffix fails is *censored*: its span counts as twice the longest suffix, or as the
whole context if that is shorter.

A feature's score is the geometric mean of its spans over sampled contexts. These come from the
upper half of its held-out activations: for a weak activation, the gate and rounding decide whether
90% remain, and the very strongest ones alone are not typical. Positions are drawn for the rarest
features first, and at every position that is run, all features in their upper half are measured.
Positions with more tokens before them than the longest suffix are preferred, so that spans are
comparable.

With rotary or relative positions it does not matter that a suffix is at another position. With
learned absolute ones (GPT-2) the position embeddings change too, and a feature of the position has
the span of its whole context, which is what it needs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby, product
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import nn

from ontogeny import devices
from ontogeny.analyses.complexity.settings import Complexity
from ontogeny.corpus.build import Tokens
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.crosscoder.readout import Readout
from ontogeny.features.held_out import held_out
from ontogeny.features.replay import Key, readers
from ontogeny.files import InputError, write_table
from ontogeny.progress import bar
from ontogeny.settings import Settings
from ontogeny.snapshots import sites

RUNS = ("alone", "replaced")
PREFIXES = 4  # texts that replace the preceding tokens
BATCH_TOKENS = 1 << 14  # tokens in a forward pass, including those that it continues
SAME = 0.01  # largest relative difference that counts as rounding, also in half precision


def grid(longest: int) -> list[int]:
    """Suffix lengths: 1, 2, 3, 4, then doubled each time, and `longest` itself."""
    lengths = [1, 2, 3]
    while lengths[-1] < longest:
        lengths.append(max(4, lengths[-1] // 4 * 8))
    return sorted({min(length, longest) for length in lengths})


@dataclass(frozen=True)
class Pairs:
    """P sampled (position, feature) pairs, ordered by position; each array is (P,).

    row : index into the held-out activations. feature : its number. activation : f in full context.
    """

    row: np.ndarray
    feature: np.ndarray
    activation: np.ndarray


def sample(
    f: sparse.csr_array,
    offset: np.ndarray,
    living: np.ndarray,
    contexts: int,
    longest: int,
    rng: np.random.Generator,
) -> Pairs:
    """Sample contexts of each living feature from the upper half of its activations.

    Parameters
    ----------
    f : (N, F) held-out activations. offset : (N,) position of each row in its block.
    living : numbers of the features to sample.
    contexts : least number per feature; if its upper half has fewer, all of these are used.
    longest : longest suffix. Rows with more tokens before them are preferred.
    """
    columns = sparse.csc_array(f)
    candidates = []
    for feature in living:
        part = slice(columns.indptr[feature], columns.indptr[feature + 1])
        rows, values = columns.indices[part], columns.data[part]
        upper = np.argsort(-values, kind="stable")[: -(-len(values) // 2)]
        late = upper[offset[rows[upper]] >= longest]
        upper = late if len(late) >= contexts else upper
        candidates.append((rows[upper], values[upper]))
    taken = np.zeros(f.shape[0], bool)
    # Start with the features that have the least choice: their rows serve other features too.
    for rows, _ in sorted(candidates, key=lambda of_feature: len(of_feature[0])):
        missing = min(contexts, len(rows)) - int(taken[rows].sum())
        if missing > 0:
            taken[rng.choice(rows[~taken[rows]], missing, replace=False)] = True
    row = np.concatenate([rows[taken[rows]] for rows, _ in candidates])
    activation = np.concatenate([values[taken[rows]] for rows, values in candidates])
    feature_of = np.repeat(living, [taken[rows].sum() for rows, _ in candidates])
    order = np.argsort(row, kind="stable")
    return Pairs(row[order].astype(np.int64), feature_of[order], activation[order])


def spans(
    f: np.ndarray, full: np.ndarray, available: np.ndarray, lengths: list[int], keep: float
) -> pd.DataFrame:
    """The span of each pair, from its activations on suffixes.

    Parameters
    ----------
    f : (L, P) activations, read only where the length is below `available`.
    full : (P,) in the whole context. available : (P,) number of tokens in the whole context.

    Returns
    -------
    span, (P,); censored, whether the longest suffix fails and there is more context; monotone,
    whether every length that passes is longer than all that fail.
    """
    whole = np.array(lengths)[:, None] >= available
    passes = (f >= keep * full) | whole
    failing = np.where(passes, -1, np.arange(len(lengths))[:, None]).max(0)  # the last, or −1
    beyond = [*lengths, 2 * lengths[-1]]
    span = np.minimum(np.take(beyond, failing + 1), available)
    return pd.DataFrame(
        {
            "span": span,
            "censored": failing == len(lengths) - 1,
            "monotone": passes.argmax(0) == np.where(passes.any(0), failing + 1, 0),
        }
    )


@dataclass(frozen=True)
class _Batch:
    """A forward pass: suffixes of one length after one prefix, with the pairs at their ends.

    ids : (B, ℓ). prefix : index of the preceding text, −1 for none. into : (p,) indices of pairs.
    ends : (p,) row of ids at whose end each pair is.
    """

    run: int
    length: int
    prefix: int
    ids: torch.Tensor
    into: torch.Tensor
    ends: torch.Tensor


def _batches(
    blocks: np.ndarray,
    block: np.ndarray,
    offset: np.ndarray,
    pairs: Pairs,
    lengths: list[int],
    prefix: np.ndarray,
    before: int,
) -> Iterator[_Batch]:
    """Yield all forward passes, of about `BATCH_TOKENS` each.

    Parameters
    ----------
    prefix : (Q,) index of the text before each of the Q positions. before : its number of tokens.
    """
    row, row_of = np.unique(pairs.row, return_inverse=True)  # ascending, as pairs are
    block, offset = block[row], offset[row]
    none = np.full(len(row), -1)
    for run, (text, tokens) in enumerate(((none, 0), (prefix, before))):
        for number, (k, length) in product(np.unique(text), enumerate(lengths)):
            fits = np.flatnonzero((offset >= length) & (text == number))
            for part in np.array_split(
                fits, -(-len(fits) * (length + tokens) // BATCH_TOKENS) or 1
            ):
                if len(part):
                    ids = blocks[block[part, None], offset[part, None] + np.arange(1 - length, 1)]
                    into = np.flatnonzero(np.isin(row_of, part))
                    ends = np.searchsorted(part, row_of[into])
                    arrays = (ids.astype(np.int64), into, ends)
                    yield _Batch(run, k, int(number), *map(torch.from_numpy, arrays))


@contextmanager
def _after(model: nn.Module, prefix: torch.Tensor) -> Iterator[None]:
    """Inside the block, passes continue a text (k,) whose keys and values are computed once."""
    before = cast(Any, model)(input_ids=prefix[None], use_cache=True).past_key_values

    def hand_on(_: nn.Module, args: Any, kwargs: Any) -> Any:
        own = copy.deepcopy(before)  # because a pass appends to it
        own.batch_repeat_interleave(len(kwargs["input_ids"]))
        return args, kwargs | {"past_key_values": own, "use_cache": True}

    handle = model.register_forward_pre_hook(hand_on, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _joined(prefix: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return torch.cat([prefix.expand(len(ids), -1), ids], 1)


def _continues(model: nn.Module, prefix: torch.Tensor, ids: torch.Tensor, key: Key) -> bool:
    """Whether a pass that continues a text gives the same as a pass over both texts."""
    try:
        with _after(model, prefix):
            short = sites.read(model, ids, [key])[key][:, -1]
    except (AttributeError, TypeError, ValueError, RuntimeError, NotImplementedError):
        return False  # a model without keys and values, or with its own way of storing them
    whole = sites.read(model, _joined(prefix, ids), [key])[key][:, -1]
    return bool((short - whole).float().norm() <= SAME * whole.float().norm())


@torch.no_grad()
def on_suffixes(
    settings: Settings,
    crosscoder: Crosscoder,
    snapshots: Path,
    blocks: np.ndarray,
    block: np.ndarray,
    offset: np.ndarray,
    pairs: Pairs,
    lengths: list[int],
    prefix: np.ndarray,
    prefixes: np.ndarray,
) -> np.ndarray:
    """Activations of pairs on suffixes, (2, L, P): alone, and with the tokens before them replaced.

    The activation is 0 where a suffix would not be shorter than the whole context.

    Parameters
    ----------
    blocks : (blocks, context) token ids. block, offset : (N,) of each row that pairs refer to.
    prefixes : (texts, k) token ids of other texts. prefix : (Q,) index of the text that precedes
        each of the pairs' Q positions, in their order.

    Each snapshot is loaded once, up to the last layer that is read, and run on every suffix. Only
    sums over snapshots are kept, 2·L·P of them.
    """
    before = prefixes.shape[1]
    batches = list(_batches(blocks, block, offset, pairs, lengths, prefix, before))
    device = devices.choose(settings.device)
    features, which = np.unique(pairs.feature, return_inverse=True)
    readout = Readout(crosscoder, torch.from_numpy(features))
    of_pair = torch.from_numpy(which).to(device)
    texts = torch.from_numpy(prefixes.astype(np.int64)).to(device)
    sums = torch.zeros(2, len(lengths), len(which), device=device)
    steps = {step for step, *_ in readout.inputs}
    tokens = sum(batch.ids.numel() for batch in batches) * len(steps)
    with bar("span: suffixes", tokens, "tokens") as progress:
        for reader in readers(settings, readout, snapshots):
            model = reader.model
            last = batches[-1].ids[:4].to(device)
            continues = _continues(model, texts[0], last, reader.keys[-1])
            for number, group in groupby(batches, lambda batch: batch.prefix):
                with ExitStack() as stack:
                    if number >= 0 and continues:
                        stack.enter_context(_after(model, texts[number]))
                    for batch in group:
                        ids = batch.ids.to(device)
                        if number >= 0 and not continues:
                            ids = _joined(texts[number], ids)
                        into, ends = batch.into.to(device), batch.ends.to(device)
                        share = reader.share(ids, ends, of_pair[into])
                        sums[batch.run, batch.length, into] += share
                        progress.update(batch.ids.numel())
            del reader, model
    return readout.activations(sums, of_pair).cpu().numpy()


def measure(
    settings: Settings,
    crosscoder: Path,
    activations: Path,
    snapshots: Path,
    tokens: Path,
    span: Path,
    contexts: Path,
) -> None:
    """Write the context span of a crosscoder's features.

    Parameters
    ----------
    crosscoder : folder of a seed. activations, snapshots : folders. tokens : tokens.h5.
    span : Parquet, one row per feature and run, see declaration.py. contexts : one row per context.

    Raises
    ------
    InputError : no feature is active on the held-out text.
    """
    section = settings.section(Complexity)
    trained = Crosscoder.load(crosscoder, devices.choose(settings.device))
    f, position = held_out(trained, activations)
    block, offset = position.T.astype(np.int64)
    active = np.asarray((f > 0).sum(0)).ravel() > 0
    living = np.flatnonzero(active & ~trained.dead.cpu().numpy())
    if not len(living):
        raise InputError(
            f"{crosscoder}: no feature is active on the held-out text; train it for longer"
        )
    rng = np.random.default_rng(settings.analysis.seed)
    if len(living) > section.features:
        living = np.sort(rng.choice(living, section.features, replace=False))
    data = Tokens(tokens)
    lengths = grid(min(section.longest, data.context - 1))
    pairs = sample(f, offset, living, section.contexts, lengths[-1], rng)
    del f
    before = min(2 * lengths[-1], data.context - lengths[-1])
    low, high = data.splits["train"]
    texts = rng.integers(low, high, PREFIXES)
    first = rng.integers(0, data.context - before + 1, PREFIXES)
    prefixes = data.take(texts)[np.arange(PREFIXES)[:, None], first[:, None] + np.arange(before)]
    prefix = rng.integers(0, PREFIXES, len(np.unique(pairs.row)))
    used, block_of = np.unique(block, return_inverse=True)
    blocks = data.take(used)
    by_run = on_suffixes(
        settings, trained, snapshots, blocks, block_of, offset, pairs, lengths, prefix, prefixes
    )
    parts = []
    for run, suffixes in zip(RUNS, by_run, strict=True):
        part = spans(suffixes, pairs.activation, offset[pairs.row] + 1, lengths, section.keep)
        about = {"feature": pairs.feature, "run": run, "block": block[pairs.row]}
        about |= {"offset": offset[pairs.row], "activation": pairs.activation}
        parts.append(part.assign(**about)[[*about, *part.columns]])
    every = pd.concat(parts).sort_values(["feature", "run", "block", "offset"], ignore_index=True)
    write_table(contexts, every)
    write_table(span, by_feature(every))


def by_feature(each: pd.DataFrame) -> pd.DataFrame:
    """Scores of the features, from the spans of their contexts."""
    groups = each.assign(log=np.log(each["span"])).groupby(["feature", "run"])
    return pd.DataFrame(
        {
            "contexts": groups.size(),
            "span": np.exp(groups["log"].mean()),
            "span_low": groups["span"].quantile(0.25),
            "span_high": groups["span"].quantile(0.75),
            "censored": groups["censored"].mean(),
            "monotone": groups["monotone"].mean(),
        }
    ).reset_index()
