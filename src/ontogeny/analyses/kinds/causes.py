"""What a feature loses when preceding tokens are replaced (docs/method.md 6).

At a sampled held-out position t, every snapshot reads the text up to t again, each time with other
tokens replaced, and the features' activations at t are compared with the original ones:

    induction       the tokens after all earlier copies of the pair (x_{t−1}, x_t): x_{j+1}, for all
                    j < t with x_{j−1} = x_{t−1} and x_j = x_t
    previous_token  only x_{t−1}
    context         everything before x_{t−1}
    control         other earlier tokens, as many as `induction` replaces, or one if it replaces
                    none: neither the copies nor the tokens after them

x_t is never replaced, and x_{t−1} only by `previous_token`. A token is replaced by a different one
drawn from the held-out text. Everything before x_{t−1} is replaced by as many tokens from the
beginning of another block, so that the offset stays the same and only the content changes. One
control serves both `induction` and `previous_token`, for which it replaces at least as many tokens.

    loss = 1 − Σ f_replaced / Σ f     over sampled positions at which the feature is active

With a gate per snapshot, f is the largest over snapshots (features/held_out.py). Intervals come
from a bootstrap over positions.

Half of the sampled positions have an earlier copy, the other half may be any. In either half, the
next position is one at which the feature with the fewest positions so far is active, so that as
many features as possible have enough positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from ontogeny import devices
from ontogeny.analyses.kinds.rules import Positions
from ontogeny.analyses.kinds.settings import Kinds
from ontogeny.corpus.build import Tokens
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.crosscoder.readout import Readout
from ontogeny.features.held_out import held_out
from ontogeny.features.replay import readers
from ontogeny.files import InputError, write_table
from ontogeny.progress import bar
from ontogeny.settings import Settings

REPLACED = ("induction", "previous_token", "context")
CONTROLLED = {"induction", "previous_token"}
RUNS = (*REPLACED, "control")
LEAST_OFFSET = 2  # least offset of a position, which needs x_{t−1} and one token before it
BATCH_TOKENS = {"cpu": 1 << 12, "cuda": 1 << 14}  # tokens in a forward pass
BOOTSTRAP_ENTRIES = 1 << 21  # sums over samples in memory at a time


def copies(ids: np.ndarray) -> np.ndarray:
    """Positions j of the earlier copies (x_{j−1}, x_j) of a text's last two tokens.

    Parameters
    ----------
    ids : (t + 1,) the text up to x_t.
    """
    return 1 + np.flatnonzero((ids[:-2] == ids[-2]) & (ids[1:-1] == ids[-1]))


def followers(ids: np.ndarray) -> np.ndarray:
    """Positions of the tokens after these copies, except x_{t−1} and x_t themselves."""
    after = copies(ids) + 1
    return after[after < len(ids) - 2]


def others(ids: np.ndarray) -> np.ndarray:
    """Positions that the control can choose from."""
    left = np.ones(max(0, len(ids) - 2), bool)
    for back in (-1, 0, 1):
        at = copies(ids) + back
        left[at[at < len(left)]] = False
    return np.flatnonzero(left)


def replaced(
    ids: np.ndarray, other: np.ndarray, pool: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """A text with tokens replaced, by run; without runs for which it has no room.

    Parameters
    ----------
    ids : (t + 1,) the text up to x_t, of at least three tokens. other : (≥ t − 1,) another text.
    pool : tokens that replacements are drawn from.
    """
    found = {}
    after, elsewhere = followers(ids), others(ids)
    count = max(1, len(after))
    places = {"previous_token": np.array([len(ids) - 2])}
    if len(after) and count <= len(elsewhere):
        places["induction"] = after
    if count <= len(elsewhere):
        places["control"] = rng.choice(elsewhere, count, replace=False)
    for name, at in places.items():
        found[name] = ids.copy()
        found[name][at] = _drawn(ids[at], pool, rng)
    found["context"] = np.concatenate([other[: len(ids) - 2], ids[-2:]])
    return found


def _drawn(ids: np.ndarray, pool: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Tokens from the pool, each different from the token of `ids` at its position."""
    drawn = rng.choice(pool, len(ids))
    for _ in range(1000):  # a pool of one token may have no other
        same = drawn == ids
        if not same.any():
            break
        drawn[same] = rng.choice(pool, int(same.sum()))
    return drawn


def sample(
    f: sparse.csr_array,
    copied: np.ndarray,
    fit: np.ndarray,
    count: int,
    least: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Rows to run, ascending: half of them with an earlier copy of their pair, half any.

    Parameters
    ----------
    f : (N, F) held-out activations. copied, fit : (N,) bool, rows with an earlier copy, and rows
        that can be run. count : maximum number of rows.
    least : number of active rows below which no row is taken for a feature.
    """
    taken = np.zeros(f.shape[0], bool)
    for pool, most in ((copied & fit, count // 2), (fit, count)):
        _cover(f, pool, taken, most, least, rng)
    return np.flatnonzero(taken)


def _cover(
    f: sparse.csr_array,
    pool: np.ndarray,
    taken: np.ndarray,
    most: int,
    least: int,
    rng: np.random.Generator,
) -> None:
    """Take rows of the pool, in place, until there are enough or no feature has a row left.

    Each row is taken for the feature that is active at the fewest rows taken so far, of several
    the rarest.
    """
    columns = sparse.csc_array(f)
    rows_of = [rows[pool[rows]] for rows in np.split(columns.indices, columns.indptr[1:-1])]
    size = np.array([len(rows) for rows in rows_of])
    queues = [iter(rng.permutation(rows)) for rows in rows_of]
    have = np.asarray((f[np.flatnonzero(taken)] > 0).sum(0)).ravel().astype(float)
    have += size.argsort(kind="stable").argsort(kind="stable") / len(size)  # ties go to the rarest
    have[size < least] = np.inf
    while taken.sum() < most and np.isfinite(have).any():
        feature = int(have.argmin())
        row = next((row for row in queues[feature] if not taken[row]), None)
        if row is None:
            have[feature] = np.inf
            continue
        taken[row] = True
        have[f.indices[f.indptr[row] : f.indptr[row + 1]]] += 1


@dataclass(frozen=True)
class Texts:
    """Texts to run, with texts of similar length next to each other.

    Attributes
    ----------
    ids : of each text. position : (T,) index of the sampled position that each belongs to.
    run : (T,) index of its run in RUNS.
    """

    ids: list[np.ndarray]
    position: np.ndarray
    run: np.ndarray

    def batches(self, tokens: int) -> Iterator[tuple[np.ndarray, slice]]:
        """Padded ids (B, longest), and which texts they belong to; the padding may be any token."""
        start = 0
        while start < len(self.ids):
            stop = start + 1
            while stop < len(self.ids) and (stop + 1 - start) * len(self.ids[stop]) <= tokens:
                stop += 1
            part = self.ids[start:stop]
            padded = np.zeros((len(part), len(part[-1])), np.int64)
            for row, each in zip(padded, part, strict=True):
                row[: len(each)] = each
            yield padded, slice(start, stop)
            start = stop


def texts(
    blocks: np.ndarray, block: np.ndarray, offset: np.ndarray, rng: np.random.Generator
) -> Texts:
    """All texts with replaced tokens, for some positions.

    Parameters
    ----------
    blocks : (blocks, context) of the held-out text. block, offset : (P,) of each position, the
        offset at least 2.
    """
    pool = blocks.ravel()
    made = []
    for number, (row, t) in enumerate(zip(block, offset, strict=True)):
        other = (row + rng.integers(1, len(blocks))) % len(blocks)
        runs = replaced(blocks[row, : t + 1], blocks[other], pool, rng)
        made += [(ids, number, RUNS.index(name)) for name, ids in runs.items()]
    made.sort(key=lambda text: len(text[0]))
    ids, position, run = zip(*made, strict=True)
    return Texts(list(ids), np.array(position), np.array(run))


@torch.no_grad()
def rerun(
    settings: Settings,
    crosscoder: Crosscoder,
    snapshots: Path,
    f: sparse.csr_array,
    made: Texts,
) -> dict[str, sparse.csr_array]:
    """What remains of the activations at some positions, by run, each (P, F) with f's entries.

    NaN if a run has no text for the position.

    Parameters
    ----------
    f : (P, F) activations in the whole text; the nonzero ones are measured.
    """
    device = devices.choose(settings.device)
    features, which = np.unique(f.indices, return_inverse=True)
    readout = Readout(crosscoder, torch.from_numpy(features))
    of_pair = torch.from_numpy(which).to(device)
    sums = torch.full((len(RUNS), f.nnz), torch.nan, device=device)
    batches = []
    for ids, part in made.batches(BATCH_TOKENS[device.type]):
        position = made.position[part]
        count = np.diff(f.indptr)[position]
        text = np.repeat(np.arange(len(position)), count)
        first = np.repeat(f.indptr[position] - (count.cumsum() - count), count)
        end = np.array([len(each) - 1 for each in made.ids[part]])
        arrays = (ids, text, first + np.arange(len(text)), made.run[part][text], end)
        batches.append([torch.from_numpy(each.astype(np.int64)) for each in arrays])
        _, _, pair, run, _ = batches[-1]
        sums[run, pair] = 0
    steps = {step for step, *_ in readout.inputs}
    tokens = sum(batch[0].numel() for batch in batches) * len(steps)
    with bar("causes: texts", tokens, "tokens") as progress:
        for reader in readers(settings, readout, snapshots):
            for batch in batches:
                on_device = [each.to(device) for each in batch]
                padded, texts_of, pair, run, ends = on_device
                sums[run, pair] += reader.share(padded, texts_of, of_pair[pair], ends)
                progress.update(padded.numel())
            del reader
    left = readout.activations(sums, of_pair).cpu().numpy()
    left[torch.isnan(sums).cpu().numpy()] = np.nan
    return {
        run: sparse.csr_array((each, f.indices, f.indptr), f.shape)
        for run, each in zip(RUNS, left, strict=True)
    }


def losses(
    f: sparse.csr_array, left: dict[str, sparse.csr_array], samples: int, seed: int
) -> pd.DataFrame:
    """The loss of each feature under each replacement and its control, with 95% intervals.

    Parameters
    ----------
    f : (P, F) activations in the whole text. left : what remains of them, by run; NaN where a
        position was not run. samples : number of bootstrap samples of positions.

    Returns
    -------
    feature, replaced, positions (at which the feature is active and both were run), loss, loss_low,
    loss_high, control, control_low, control_high; NaN if there are no positions, or no control.
    """
    parts = []
    for name in REPLACED:
        runs = ["loss", "control"] if name in CONTROLLED else ["loss"]
        values = [left[name if run == "loss" else "control"].data for run in runs]
        ran = np.isfinite(np.stack(values)).all(0)
        whole = _only(f, f.data, ran)
        row = {"feature": np.arange(f.shape[1]), "replaced": name}
        part = pd.DataFrame(row | {"positions": np.diff(whole.indptr)})
        for run, value in zip(runs, values, strict=True):
            loss, low, high = _loss(whole, _only(f, value, ran), samples, seed)
            part = part.assign(**{run: loss, f"{run}_low": low, f"{run}_high": high})
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _only(f: sparse.csr_array, data: np.ndarray, chosen: np.ndarray) -> sparse.csc_array:
    """Some of a matrix's entries, with other values, (P, F)."""
    row = np.repeat(np.arange(f.shape[0]), np.diff(f.indptr))[chosen]
    entries = data[chosen].astype(np.float64)
    return sparse.csc_array((entries, (row, f.indices[chosen])), f.shape)


def _loss(
    whole: sparse.csc_array, left: sparse.csc_array, samples: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """1 − Σ left / Σ whole of each feature, (F,), and its quantiles over samples of rows."""
    P, F = whole.shape
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(P, np.full(P, 1 / P), samples).T.astype(np.float64)  # (P, S)
    loss, low, high = np.full((3, F), np.nan)
    step = max(1, BOOTSTRAP_ENTRIES // samples)
    with np.errstate(divide="ignore", invalid="ignore"):
        loss[:] = 1 - np.asarray(left.sum(0)).ravel() / np.asarray(whole.sum(0)).ravel()
        for start in range(0, F, step):
            part = slice(start, start + step)
            drawn = 1 - (left[:, part].T @ weights) / (whole[:, part].T @ weights)
            known = np.isfinite(drawn).any(1)
            bounds = np.nanquantile(drawn[known], [0.025, 0.975], axis=1)
            at = np.flatnonzero(known) + start
            low[at], high[at] = bounds
    return loss, low, high


def measure(
    settings: Settings,
    crosscoder: Path,
    activations: Path,
    snapshots: Path,
    tokens: Path,
    causes: Path,
) -> None:
    """Write what a crosscoder's features lose when preceding tokens are replaced.

    Parameters
    ----------
    crosscoder : folder of a seed. activations, snapshots : folders. tokens : tokens.h5.
    causes : Parquet; one row per replacement and feature that is active on the held-out text, see
        `losses`.

    Raises
    ------
    InputError : no feature is active on the held-out text.
    """
    section, seed = settings.section(Kinds), settings.analysis.seed
    trained = Crosscoder.load(crosscoder, devices.choose(settings.device))
    f, position = held_out(trained, activations)
    data = Tokens(tokens)
    first, last = data.splits["held_out"]
    block, offset = position.T.astype(np.int64)
    block -= first
    blocks = data.take(np.arange(first, last)).astype(np.int64)
    living = np.flatnonzero(np.asarray((f > 0).sum(0)).ravel())
    if not len(living):
        raise InputError(
            f"{crosscoder}: no feature is active on the held-out text; train it for longer"
        )
    rng = np.random.default_rng(seed)
    copied = Positions(blocks, block, offset).pair_again
    rows = sample(f, copied, offset >= LEAST_OFFSET, section.positions, section.active, rng)
    f = sparse.csr_array(f[rows])
    made = texts(blocks, block[rows], offset[rows], rng)
    left = rerun(settings, trained, snapshots, f, made)
    table = losses(f, left, settings.analysis.bootstrap, seed)
    write_table(causes, table[table["feature"].isin(living)].reset_index(drop=True))
