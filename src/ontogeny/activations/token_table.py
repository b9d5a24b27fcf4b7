"""The token_table stage: the mean activation of every token at each snapshot, in closed form.

    T^θ[x] = (Σ_{rows of x} v^θ + λ v̄^θ) / (count(x) + λ),   λ = 5, v̄ the mean of all rows

for raw activations v of training rows: those of the first shard or, if rows are streamed, the first
STREAMED_ROWS. On held-out rows the stage measures which share of a site's variance the table
explains, and which share the *pair* table explains, which is the same for (previous, current)
tokens, shrunk towards T[current]. Both are baselines of every dictionary. table.py applies the
table.

References
----------
Dooms and Wilhelm 2025, arXiv 2502.17332 (tokenized SAEs).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ontogeny import devices
from ontogeny.activations import feed
from ontogeny.activations.rows import Cached, HeldOut, RowPaths, SiteRows, pieces
from ontogeny.activations.sites import Site, folder_name
from ontogeny.activations.sizes import (
    FULL_TABLE,
    LARGEST_TABLE,
    LEAST_COUNT,
    PIECE_ROWS,
    STREAMED_ROWS,
)
from ontogeny.activations.table import FORMAT, lookup
from ontogeny.corpus.build import Tokens
from ontogeny.files import whole_hdf5
from ontogeny.progress import bar
from ontogeny.settings import Settings, Stream

SHRINKAGE = 5.0  # weight of the overall mean, in rows
PAIR_ROWS = 1 << 16  # the first held-out rows, on which the pair table is measured
TOKENS = 1 << 20  # tokens that are counted at a time
Grouping = Callable[[np.ndarray], np.ndarray]  # (B, 2) tokens of rows → (B,) numbers of groups


def entries(count: np.ndarray, size: int) -> np.ndarray:
    """Ids of the tokens that have an entry, ascending: all that occur, if memory allows.

    Otherwise those with LEAST_COUNT rows, and of these the most frequent that fit LARGEST_TABLE.

    Parameters
    ----------
    count : (V,) rows of each token. size : bytes of an entry.
    """
    seen = np.flatnonzero(count)
    if len(seen) * size > FULL_TABLE:
        seen = seen[count[seen] >= LEAST_COUNT]
        frequent = np.argsort(-count[seen], kind="stable")[: LARGEST_TABLE // size]
        seen = np.sort(seen[frequent])
    return seen


def shrunk(sums: Tensor, count: Tensor, towards: Tensor) -> Tensor:
    """Means (G, D) of groups of rows, each shrunk towards `towards`, (D,) or (G, D).

    Parameters
    ----------
    sums : (G, D) of each group's rows. count : (G,) number of rows.
    """
    return (sums + SHRINKAGE * towards) / (count[:, None] + SHRINKAGE)


class Groups:
    """How rows are grouped: by token, and by pair (previous, current).

    Parameters
    ----------
    token : (M,) ids with an entry, ascending; group M holds all other tokens.
    wanted : (B, 2) tokens of rows, whose pairs are the P groups; group P holds all other pairs.
    vocabulary : V.
    """

    def __init__(self, token: np.ndarray, wanted: np.ndarray, vocabulary: int) -> None:
        self._entry, self._vocabulary = lookup(token), vocabulary
        self._pairs = np.unique(self._keys(wanted[wanted[:, 0] >= 0]))
        self.sizes = len(token) + 1, len(self._pairs) + 1
        self.of_pairs = self.by_token(np.stack([self._pairs, self._pairs % vocabulary], 1))

    def _keys(self, token: np.ndarray) -> np.ndarray:
        return np.asarray(token[:, 0].astype(np.int64) * self._vocabulary + token[:, 1])

    def by_token(self, token: np.ndarray) -> np.ndarray:
        """The group of each row's token; token : (B, 2)."""
        return np.asarray(self._entry[np.minimum(token[:, 1], len(self._entry) - 1)])

    def by_pair(self, token: np.ndarray) -> np.ndarray:
        """The group of each row's pair, and the last group at a block's start; token : (B, 2)."""
        keys, P = self._keys(token), len(self._pairs)
        at = np.searchsorted(self._pairs, keys)
        known = np.append(self._pairs, -1)[at] == keys
        return np.where(known & (token[:, 0] >= 0), at, P)

    def by_either(self, token: np.ndarray) -> np.ndarray:
        """Groups of all tokens, then of all pairs. A row is in its pair's if there is one."""
        pair = self.by_pair(token)
        return np.where(pair < len(self._pairs), self.sizes[0] + pair, self.by_token(token))


def _counts(
    rows: SiteRows, limit: int, groups: Sequence[Grouping], sizes: Sequence[int]
) -> list[Tensor]:
    """Number of the first `limit` rows in each group, (G,) for each grouping."""
    total = [torch.zeros(size, dtype=torch.int64) for size in sizes]
    for start in range(0, limit, TOKENS):
        token = rows.tokens_at(start, min(start + TOKENS, limit))
        for count, group in zip(total, groups, strict=True):
            count += torch.bincount(torch.from_numpy(group(token)), minlength=len(count))
    return total


def _sums(
    rows: SiteRows,
    limit: int,
    groups: Sequence[Grouping],
    sizes: Sequence[int],
    device: torch.device,
) -> list[Tensor]:
    """Sums of the first `limit` rows by group, (G, D) float64 for each grouping."""
    total = [torch.zeros(size, rows.shape[1], dtype=torch.float64, device=device) for size in sizes]
    for start, piece in pieces(rows, PIECE_ROWS, stop=limit):
        x = torch.from_numpy(piece[:, 0]).to(device, torch.float64)
        token = rows.tokens_at(start, start + len(x))
        for sums, group in zip(total, groups, strict=True):
            sums.index_add_(0, torch.from_numpy(group(token)).to(device), x)
    return total


def _left(rows: SiteRows, limit: int, means: Tensor, group: Grouping) -> tuple[float, float]:
    """For the first rows minus their groups' means: the mean norm, and the share of variance
    removed.

    Parameters
    ----------
    means : (G, D) float64.
    """
    norms = left = squares = 0.0
    total = torch.zeros_like(means[0])
    for start, piece in pieces(rows, PIECE_ROWS, stop=limit):
        x = torch.from_numpy(piece[:, 0]).to(means)
        number = torch.from_numpy(group(rows.tokens_at(start, start + len(x)))).to(means.device)
        norm = (x - means[number]).norm(dim=1)
        norms, left = norms + float(norm.sum()), left + float(norm.square().sum())
        total, squares = total + x.sum(0), squares + float(x.square().sum())
    there = squares - float(total.square().sum()) / limit
    return norms / limit, 1 - left / there if there > 0 else float("nan")


def measure(
    settings: Settings, layer: int, stream: Stream, rows: RowPaths, output: str | Path
) -> None:
    """Write the token table of a layer's stream, and what it and the pair table explain.

    Parameters
    ----------
    rows : paths of the rows and the tokens.
    output : HDF5; `token` (M,) ids with an entry, `count` (M,) rows of each; by snapshot
            table               (n, M + 1, D) float32, in raw units; the last entry is the mean
            left_norm           (n,) mean norm of the first activations.window rows minus the table
            varies              (n,) whether these rows differ; if not, left_norm is 0 and the
                                shares are NaN
            explained           (n,) share of the held-out rows' variance that it explains
            explained_by_pairs  (n,) the same for the pair table, on the first PAIR_ROWS of them
        attributes: tokens, steps, rows (that the table comes from), covered (share of these whose
        token has an entry).
    """
    assert rows.tokens is not None, "the token table needs the tokens"
    device, steps = devices.choose(settings.device), settings.snapshots.chosen
    groups: Groups | None = None
    with (
        whole_hdf5(output) as file,
        bar(f"token table of {folder_name(layer, stream)}", len(steps), "snapshots") as progress,
    ):
        for i, step in enumerate(steps):
            site = Site(step, layer, stream)
            train = feed.site_rows(settings, [site], rows, device)
            held_out = HeldOut(rows.activations, [site])
            varies = bool(train.scales[0])
            train.scales = held_out.scales = np.ones(1, np.float32)
            # If there are several shards, only the first is on disk.
            limit = train.starts[1] if isinstance(train, Cached) else min(train.rows, STREAMED_ROWS)
            if groups is None:  # the same rows at every snapshot
                vocabulary = Tokens(rows.tokens).vocabulary
                (every,) = _counts(train, limit, [lambda token: token[:, 1]], [vocabulary])
                token = entries(every.numpy(), 4 * train.width * len(steps))
                groups = Groups(token, held_out.token[:PAIR_ROWS], vocabulary)
                both, sizes = [groups.by_token, groups.by_pair], list(groups.sizes)
                counts = [count.to(device) for count in _counts(train, limit, both, sizes)]
                file["token"], file["count"] = token, every.numpy()[token]
                facts = {"format": FORMAT, "tokens": train.tokens, "steps": steps, "rows": limit}
                file.attrs.update(facts | {"covered": float(every[token].sum() / limit)})
            by_token, by_pair = _sums(train, limit, both, sizes, device)
            mean = by_token.sum(0) / limit
            table = shrunk(by_token, counts[0], mean)
            table[-1] = mean
            of_pairs = shrunk(by_pair[:-1], counts[1][:-1], table[groups.of_pairs])
            window = min(limit, settings.activations.window)
            tested = min(held_out.rows, PAIR_ROWS)
            measures = {"table": table.cpu().numpy(), "varies": varies}
            if varies:
                both_tables = torch.cat([table, of_pairs])
                measures |= {
                    "left_norm": _left(train, window, table, groups.by_token)[0],
                    "explained": _left(held_out, held_out.rows, table, groups.by_token)[1],
                    "explained_by_pairs": _left(held_out, tested, both_tables, groups.by_either)[1],
                }
            else:
                measures |= {"left_norm": 0, "explained": np.nan, "explained_by_pairs": np.nan}
            for name, found in measures.items():
                value = np.asarray(found, bool if name == "varies" else np.float32)
                if i == 0:
                    file.create_dataset(name, (len(steps), *value.shape), value.dtype)
                file[name][i] = value
            progress.update()
