"""The makers stage: how much of each feature's activation each attention head produces.

A head's output z (its slice of the input of its layer's output projection) is *ablated* at a
snapshot by replacing it, at every position, with its mean over the snapshot's held-out positions.
Everything downstream changes too, including later heads and MLPs, so a head also accounts for
what others build on its output.

Letters: x a held-out position, ã^θ(x) a snapshot's normalised activations and ã^θ_k(x) those with
head k ablated, E_i^θ the part of feature i's encoder that reads that snapshot (readout.py), h_i its
pre-activation, g the gate. At the positions x where feature i is active, with f_i = g(h_i),

    c_ik^θ(x) = (ã^θ(x) − ã^θ_k(x)) · E_i^θ          what h_i loses through snapshot θ
    loss_ik   = 1 − Σ_x g(h_i − Σ_θ c_ik^θ) / Σ_x f_i    head k ablated at all snapshots at once
    share_ik^θ = Σ_x c_ik^θ / Σ_x f_i                    at snapshot θ alone, without the gate

The shares of all snapshots add up to the loss without the gate (`share`): a feature has one
activation for all snapshots, and each contributes a part of it. The gate makes a loss larger, since
an activation that falls below it is lost entirely. Loss and share are negative if a head suppresses
a feature. The standard error is over blocks.

References
----------
docs/method.md 5.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ontogeny import devices
from ontogeny.analyses.makers.settings import Makers
from ontogeny.corpus.build import Tokens
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.crosscoder.readout import Readout
from ontogeny.features.held_out import held_out
from ontogeny.files import whole_hdf5, write_table
from ontogeny.progress import bar
from ontogeny.settings import Settings
from ontogeny.snapshots import attention, sites
from ontogeny.snapshots.attention import Heads

BATCH_TOKENS = 1 << 12  # tokens in a forward pass
PIECE_ENTRIES = 1 << 24  # numbers in memory at a time, in addition to a forward pass
DENSE = 64  # entries of a full product that cost as much as one computed by index
COLUMNS = ["feature", "layer", "head", "active", "loss", "standard_error", "share", "strongest"]
Key = tuple[int, str]  # (layer, stream)


@dataclass(frozen=True)
class Pairs:
    """P (position, feature) pairs at which a feature is active, by block and offset.

    block, offset, which : (P,); `block` is an index into the blocks that are read, `which` an index
    into the features of `Readout`.
    """

    block: np.ndarray
    offset: np.ndarray
    which: np.ndarray

    def of(self, first: int, last: int) -> slice:
        """The pairs of the blocks from `first` to `last`."""
        return slice(*np.searchsorted(self.block, [first, last]))


def find_heads(model: Any, last: int) -> dict[int, Heads]:
    """The heads of each layer up to `last` that has any; prints a warning if none has."""
    found = {layer: attention.find(model, layer) for layer in range(last + 1)}
    heads = {layer: h for layer, h in found.items() if not isinstance(h, str)}
    if not heads:
        print(f"{type(model).__name__}: {found[0]}: heads are left out", file=sys.stderr)
    return heads


@torch.no_grad()
def mean_outputs(model: Any, blocks: torch.Tensor, heads: dict[int, Heads]) -> dict[int, Any]:
    """Mean over positions of each layer's head outputs, (H·width,) by layer.

    Parameters
    ----------
    blocks : (B, T) token ids.
    """
    sums: dict[int, torch.Tensor] = {}
    last = max(heads)
    for _, ids in _batches(blocks):
        with ExitStack() as stack:
            for layer, of_layer in heads.items():

                def add(z: torch.Tensor, layer: int = layer) -> None:
                    total = z.flatten(0, -2).double().sum(0)
                    sums[layer] = sums.get(layer, 0) + total

                stack.enter_context(attention.changed(of_layer, add))
            sites.read(model, ids, [(last, "residual")])
    return {layer: total / blocks.numel() for layer, total in sums.items()}


def _batches(blocks: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Blocks in pieces of about `BATCH_TOKENS`, each with the index of its first block."""
    step = max(1, BATCH_TOKENS // blocks.shape[1])
    for first in range(0, len(blocks), step):
        yield first, blocks[first : first + step]


def ablated(
    model: Any,
    ids: torch.Tensor,
    keys: list[Key],
    heads: dict[int, Heads],
    means: dict[int, torch.Tensor],
    before: dict[Key, torch.Tensor],
) -> Iterator[tuple[int, dict[Key, torch.Tensor]]]:
    """Yield the values (B, T, d) of the sites that each head can reach, with that head ablated.

    Parameters
    ----------
    keys : sites. means : from `mean_outputs`. before : the residual stream after each layer that
        precedes one with heads, so that earlier layers are not run again.

    Yields
    ------
    Index of the head, counted through all layers, and values by site.
    """
    number = 0
    for layer, of_layer in heads.items():
        reached = [key for key in keys if key[0] >= layer]
        mean = means[layer]
        for head in range(of_layer.count):
            part = of_layer.slice(head)

            def put(z: torch.Tensor, part: slice = part, mean: torch.Tensor = mean) -> torch.Tensor:
                z = z.clone()
                z[..., part] = mean[part].to(z.dtype)
                return z

            with ExitStack() as stack:
                if layer:
                    value = before[layer - 1, "residual"]
                    stack.enter_context(sites.continued(model, layer - 1, "residual", value))
                stack.enter_context(attention.changed(of_layer, put))
                yield number, sites.read(model, ids, reached)
            number += 1


@torch.no_grad()
def losses(
    settings: Settings,
    crosscoder: Crosscoder,
    snapshots: Path,
    blocks: np.ndarray,
    pairs: Pairs,
    features: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[tuple[int, int]]]:
    """Activations with and without each head, and each snapshot's share of the difference.

    Parameters
    ----------
    blocks : (B, T) token ids. features : (S,) numbers of the features that pairs.which indexes.

    Returns
    -------
    f (P,); f without each head (K, P); Σ_x c (S, K, n) by snapshot; layer and head of each k.
    """
    device = devices.choose(settings.device)
    dtype = devices.precision(settings.activations.precision, device)
    inputs, remote = crosscoder.about.inputs, settings.snapshots.remote_code
    readout = Readout(crosscoder, torch.from_numpy(features))
    which = torch.from_numpy(pairs.which).to(device)
    ids_of = torch.from_numpy(blocks.astype(np.int64)).to(device)
    by_step: dict[int, list[int]] = {}
    for n, (step, _, _) in enumerate(inputs):
        by_step.setdefault(step, []).append(n)
    sums = torch.zeros(len(which), device=device)
    lost = torch.zeros(0, len(which), device=device)
    parts: list[np.ndarray] = []
    names: list[tuple[int, int]] = []
    with bar("makers", len(by_step) * len(blocks), "blocks") as progress:
        for step, numbers in by_step.items():
            wanted = {(inputs[n][1], inputs[n][2]): n for n in numbers}
            E = {key: readout.weights(n) for key, n in wanted.items()}
            last = max(layer for layer, _ in wanted)
            folder = snapshots / f"step{step}"
            model = sites.load_model(folder, device, dtype, remote, last_layer=last)
            heads = find_heads(model, last)
            if not names:
                names = [(layer, i) for layer, h in heads.items() for i in range(h.count)]
                lost = torch.zeros(len(names), len(which), device=device)
            if not names:
                break
            means = mean_outputs(model, ids_of, heads)
            below: list[Key] = [(layer - 1, "residual") for layer in heads if layer]
            of_step = torch.zeros(len(names), len(features), device=device)
            for first, ids in _batches(ids_of):
                here = pairs.of(first, first + len(ids))
                at = torch.from_numpy(
                    (pairs.block[here] - first) * ids.shape[1] + pairs.offset[here]
                ).to(device)
                of = which[here]
                values = sites.read(model, ids, list(dict.fromkeys([*wanted, *below])))
                for key, n in wanted.items():
                    centre = readout.centre(n, ids.flatten())
                    x = values[key].flatten(0, 1).float() * readout.scales[n] - centre
                    sums[here] += _products(x, E[key], at, of)
                for k, without in ablated(model, ids, list(wanted), heads, means, values):
                    for key, value in without.items():
                        change = (values[key].float() - value.float()).flatten(0, 1)
                        c = _products(change * readout.scales[wanted[key]], E[key], at, of)
                        lost[k, here] += c
                        of_step[k].index_add_(0, of, c)
                progress.update(len(ids))
            parts.append(of_step.T.cpu().numpy())
            del model
    share = np.stack(parts, 2) if parts else np.zeros((len(features), 0, len(by_step)))
    f, left = (readout.activations(h, which).cpu().numpy() for h in (sums, sums - lost))
    return f, left, share, names


def _products(x: torch.Tensor, E: torch.Tensor, at: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    """Dot product of x (N, D) at each pair's position with its feature's encoder, E (S, D): (p,).

    Parameters
    ----------
    at, of : (p,) index of the position and of the feature of each pair.
    """
    if len(x) * len(E) <= DENSE * len(of):  # one full matrix product is cheaper than gathering rows
        return (x @ E.T)[at, of]
    step = max(1, PIECE_ENTRIES // x.shape[1])
    parts = zip(at.split(step), of.split(step), strict=True)
    return torch.cat([(x[position] * E[feature]).sum(1) for position, feature in parts])


def table(
    f: np.ndarray,
    without: np.ndarray,
    share: np.ndarray,
    pairs: Pairs,
    names: list[tuple[int, int]],
) -> pd.DataFrame:
    """One row per feature and head: loss with its standard error, and share over all snapshots.

    Parameters
    ----------
    f, without, share, names : from `losses`, with share already divided by Σ f.
    """
    S = len(share)
    blocks = int(pairs.block.max(initial=0)) + 1
    active = np.bincount(pairs.which, minlength=S)
    total = np.maximum(np.bincount(pairs.which, f, minlength=S), 1e-30)
    cell = pairs.which * blocks + pairs.block
    parts = []
    for k, (layer, head) in enumerate(names):
        loss = np.bincount(pairs.which, f - without[k], minlength=S) / total
        off = f - without[k] - loss[pairs.which] * f  # error of a ratio of sums
        by_block = np.bincount(cell, off, minlength=S * blocks).reshape(S, blocks)
        error = np.sqrt((by_block**2).sum(1)) / total
        columns = {"feature": np.arange(S), "layer": layer, "head": head, "active": active}
        columns |= {"loss": loss, "standard_error": error, "share": share[:, k].sum(1)}
        parts.append(pd.DataFrame(columns))
    if not parts:
        return pd.DataFrame(columns=COLUMNS)
    every = pd.concat(parts).sort_values(["feature", "layer", "head"], ignore_index=True)
    best = every.groupby("feature")["loss"].transform("idxmax")
    return every.assign(strongest=best == every.index)


def measure(
    settings: Settings,
    crosscoder: Path,
    activations: Path,
    snapshots: Path,
    tokens: Path,
    makers: Path,
    shares: Path,
) -> None:
    """Write each head's share of each feature; empty if the model's heads cannot be separated.

    Parameters
    ----------
    crosscoder : folder of a seed. activations, snapshots : folders. tokens : tokens.h5.
    makers : Parquet, one row per feature and head; its columns are in the declaration.
    shares : HDF5; share (S, K, n) of S features, K heads and n snapshots; feature (S,), layer and
        head (K,), step (n,).
    """
    section = settings.section(Makers)
    trained = Crosscoder.load(crosscoder, devices.choose(settings.device))
    data = Tokens(tokens)
    start = data.splits["held_out"][0]
    f, position = held_out(trained, activations, section.blocks * data.context)
    found = f[position[:, 0] < start + section.blocks].tocoo()
    row, feature = found.coords
    chosen = np.bincount(feature, minlength=f.shape[1])[feature] >= section.active
    row, feature = row[chosen], feature[chosen]
    features, which = np.unique(feature, return_inverse=True)
    block, offset = position[row].astype(np.int64).T
    pairs = Pairs(block - start, offset, which)
    last = min(start + section.blocks, data.splits["held_out"][1])
    blocks = data.take(np.arange(start, last))
    del f, found
    active, without, sums, names = losses(settings, trained, snapshots, blocks, pairs, features)
    total = np.maximum(np.bincount(which, active, minlength=len(features)), 1e-30)
    share = sums / total[:, None, None]
    every = table(active, without, share, pairs, names)
    write_table(makers, every.assign(feature=features[every["feature"].astype(int)]))
    with whole_hdf5(shares) as file:
        file["share"] = share.astype(np.float32)
        file["feature"] = features
        file["layer"], file["head"] = np.array(names, np.int64).reshape(-1, 2).T
        file["step"] = list(dict.fromkeys(step for step, _, _ in trained.about.inputs))
