"""The activations stage: one snapshot's streams, all layers from one partial forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from ontogeny import devices
from ontogeny.activations import store
from ontogeny.corpus.build import Tokens
from ontogeny.files import InputError, whole
from ontogeny.progress import bar
from ontogeny.settings import Activations
from ontogeny.snapshots import sites

WINDOW_ROWS = 1 << 18  # rows that are shuffled among each other, and held in memory
BATCH_BLOCKS = 16


def windows(
    tokens: Tokens, split: str, seed: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The split's rows in the one order that every snapshot's file has.

    Blocks are permuted, then rows among each other in windows of about WINDOW_ROWS (a smaller
    split is one window, and the whole is one permutation); with `seed` None all stay in place.

    Yields
    ------
    numbers : (W,) the window's blocks.
    order : (R,) indices into the window's W·context positions, end-of-text left out.
    position : (R, 2) uint32 block and offset of each.
    """
    first, last = tokens.splits[split]
    context = tokens.blocks.shape[1]
    rng = None if seed is None else np.random.default_rng(seed)
    numbers = np.arange(first, last)
    if rng is not None:
        rng.shuffle(numbers)
    for chosen in np.array_split(numbers, -(-len(numbers) * context // WINDOW_ROWS)):
        kept = np.flatnonzero(tokens.blocks[chosen].ravel() != tokens.end_of_text)
        if rng is not None:
            rng.shuffle(kept)
        place = np.stack([chosen[kept // context], kept % context], 1)
        yield chosen, kept, place.astype(np.uint32)


def extract(
    a: Activations,
    snapshot: str | Path,
    step: int,
    tokens: str | Path,
    folder: str | Path,
    device: str = "auto",
) -> None:
    """Write the two files of every wanted stream and layer of one snapshot (store.py).

    Parameters
    ----------
    a : the settings' section.
    snapshot : folder with config.json and model.safetensors. step : its training step.
    tokens : tokens.h5. folder : the experiment's activations folder.

    Raises
    ------
    InputError : damaged inputs, or a value that the stored type cannot hold.
    """
    data = Tokens(tokens)
    where = devices.choose(device)
    dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
    model = sites.load_model(snapshot, where, dtype)
    wanted: list[tuple[int, str]] = [(layer, stream) for layer in a.layers for stream in a.streams]
    width = model.config.hidden_size
    context = data.blocks.shape[1]
    splits = {"train": "", "held_out": "held_out/"}
    plans = {s: list(windows(data, s, a.seed if s == "train" else None)) for s in splits}
    total = sum(len(w[0]) for plan in plans.values() for w in plan) * context

    norms = dict.fromkeys(wanted, 0.0)
    with ExitStack() as open_files:
        files: dict[tuple[int, str], h5py.File] = {}
        train_files: dict[tuple[int, str], h5py.File] = {}
        for key in wanted:
            path = Path(folder) / store.folder_name(*key) / f"step{step}.h5"
            rows_path = store.train_path(path)
            for where_to, opened in ((path, files), (rows_path, train_files)):
                draft = open_files.enter_context(whole(where_to))
                opened[key] = open_files.enter_context(h5py.File(draft, "w"))
            files[key]["activations"] = h5py.ExternalLink(rows_path.name, "activations")
        progress = open_files.enter_context(bar(f"extract step {step}", total, "tokens"))
        for split, prefix in splits.items():
            rows = sum(len(order) for _, order, _ in plans[split])
            outputs = {
                key: store.create(file, f"{prefix}activations", rows, width, a.dtype)
                for key, file in (train_files if split == "train" else files).items()
            }
            for file in files.values():
                file[f"{prefix}position"] = np.concatenate([w[2] for w in plans[split]])
            start = 0
            for numbers, order, _ in plans[split]:
                window = _window(model, data, numbers, wanted, a.dtype, where, progress)
                for key, values in window.items():
                    chosen = values.reshape(-1, width)[order]
                    bad = np.flatnonzero(~np.isfinite(chosen).all(1))
                    if len(bad):
                        raise InputError(
                            f"activations.dtype: {a.dtype} cannot hold a value of the {key[1]} of "
                            f"layer {key[0]} at step {step}, row {start + bad[0]}; set float32 "
                            "(if that fails too, the snapshot itself is damaged)"
                        )
                    outputs[key][start : start + len(order)] = chosen
                    if split == "train":
                        norms[key] += float(np.linalg.norm(chosen.astype("f4"), axis=1).sum())
                start += len(order)
        n_train = sum(len(order) for _, order, _ in plans["train"])
        for key in wanted:
            mean_norm = norms[key] / n_train
            facts = {
                "model": str(model.config.model_type),
                "step": step,
                "layer": key[0],
                "stream": key[1],
                "dtype": a.dtype,
                "seed": a.seed,
                "tokens": data.digest,
                "mean_norm": mean_norm,
                "scale": float(np.sqrt(width) / mean_norm),
                "torch": torch.__version__.split("+")[0],
            }
            store.describe(files[key], facts)
            store.describe(train_files[key], facts)


def _window(
    model: torch.nn.Module,
    data: Tokens,
    numbers: np.ndarray,
    wanted: list[tuple[int, str]],
    dtype: str,
    where: torch.device,
    progress: Any,
) -> dict[tuple[int, str], np.ndarray]:
    """Activations of a window's blocks in their order, each (W, context, d), in the stored type."""
    parts: dict[tuple[int, str], list[np.ndarray]] = {key: [] for key in wanted}
    stored = getattr(torch, dtype)
    for chosen in np.split(numbers, range(BATCH_BLOCKS, len(numbers), BATCH_BLOCKS)):
        ids = torch.from_numpy(data.blocks[chosen].astype(np.int64)).to(where)
        for key, value in sites.read(model, ids, wanted).items():
            parts[key].append(value.to(stored).cpu().numpy())
        progress.update(ids.numel())
    return {key: np.concatenate(values) for key, values in parts.items()}
