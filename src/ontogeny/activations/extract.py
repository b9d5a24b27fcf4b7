"""The activations stage: one snapshot's streams, all layers from one partial forward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from ontogeny import devices
from ontogeny.activations import order as order_of
from ontogeny.activations import store
from ontogeny.activations.rows import read_ahead
from ontogeny.activations.sites import folder_name, rows_path
from ontogeny.corpus.build import Tokens
from ontogeny.files import InputError, whole
from ontogeny.progress import bar
from ontogeny.settings import Activations, Settings
from ontogeny.snapshots import sites

Key = tuple[int, str]  # (layer, stream)


class Snapshot:
    """A snapshot's model, run as far as its last wanted layer.

    Parameters
    ----------
    settings : activations.layers and streams say what is wanted.
    folder : of the snapshot. step : its training step.
    """

    def __init__(
        self, settings: Settings, folder: str | Path, step: int, device: torch.device
    ) -> None:
        section = settings.activations
        self.step, self.device = step, device
        self.wanted: list[Key] = [
            (layer, stream) for layer in section.layers for stream in section.streams
        ]
        self.model = sites.load_model(
            folder,
            device,
            devices.precision(section.precision, device),
            settings.snapshots.remote_code,
            last_layer=max(section.layers),
        )
        self.width = sites.width(self.model)
        self._stored = getattr(torch, section.dtype)

    def read(self, ids: np.ndarray) -> dict[Key, torch.Tensor]:
        """Values of every wanted site, each (B·T, D) on the device in the stored type.

        Parameters
        ----------
        ids : (B, T) token ids.
        """
        on_device = torch.from_numpy(ids.astype(np.int64)).to(self.device)
        values = sites.read(self.model, on_device, self.wanted)
        return {key: value.flatten(0, 1).to(self._stored) for key, value in values.items()}


def check_finite(values: torch.Tensor, key: Key, step: int, dtype: str, first: int) -> None:
    """Raise InputError if a value cannot be held in the stored type.

    Parameters
    ----------
    values : rows, the first of which is number `first`.
    """
    fine = torch.isfinite(values).all(1)
    if not fine.all():
        row = first + int((~fine).nonzero()[0])
        raise InputError(
            f"activations.dtype: {dtype} cannot hold a value of the {key[1]} of layer {key[0]} at "
            f"step {step}, row {row}; set float32 (if that fails too, the snapshot itself is "
            "damaged)"
        )


def _window(
    snapshot: Snapshot, order: order_of.Order, window: int, a: Activations, progress: Any
) -> dict[Key, torch.Tensor]:
    """A window's rows in order, each (R, D) in the stored type, on the CPU."""
    tokens, numbers = order.tokens, order.windows[window]
    shape = (len(numbers) * tokens.context, snapshot.width)
    every = {key: torch.empty(shape, dtype=getattr(torch, a.dtype)) for key in snapshot.wanted}
    first = 0
    for blocks in order_of.batches(numbers, tokens.context):
        ids = tokens.take(blocks)
        for key, values in snapshot.read(ids).items():
            every[key][first : first + ids.size] = values
        first += ids.size
        progress.update(ids.size)
    slots = torch.from_numpy(order.slots(window))
    rows = {key: values[slots] for key, values in every.items()}
    for key, values in rows.items():
        check_finite(values, key, snapshot.step, a.dtype, int(order.starts[window]))
    return rows


def _write_rows(
    snapshot: Snapshot,
    order: order_of.Order,
    windows: range,
    a: Activations,
    files: dict[Key, h5py.File],
    group: str,
    progress: Any,
    look: Callable[[int, dict[Key, torch.Tensor]], None] | None = None,
) -> None:
    """Write some windows' rows and positions; a thread computes one while another is written.

    Parameters
    ----------
    files : to write to, by site. group : '' or 'held_out/' before the datasets' names.
    look : is shown each window's number and rows.
    """
    rows = int(order.starts[windows.stop] - order.starts[windows.start])
    writers = {
        key: store.Writer(file, f"{group}activations", rows, snapshot.width, a.dtype)
        for key, file in files.items()
    }
    positions = np.concatenate([order.position(window) for window in windows])
    for file in files.values():
        file[f"{group}position"] = positions

    compute = functools.partial(_window, snapshot, order, a=a, progress=progress)
    jobs = ((window, functools.partial(compute, window)) for window in windows)
    for window, by_site in read_ahead(jobs, depth=1):
        if look is not None:
            look(window, by_site)
        for key, values in by_site.items():
            writers[key].write(values.numpy())


def extract(
    settings: Settings, snapshot: str | Path, step: int, tokens: str | Path, folder: str | Path
) -> None:
    """Write a snapshot's held-out rows and, unless they are streamed, its first shard (store.py).

    The scale is that of the first window of training rows, in either mode and however many shards.

    Parameters
    ----------
    snapshot : folder of the model. step : its training step. tokens : tokens.h5.
    folder : the experiment's activations folder.

    Raises
    ------
    InputError : damaged inputs, or a value that the stored type cannot hold.
    """
    section, text = settings.activations, Tokens(tokens)
    train = order_of.Order(text, "train", section)
    held_out = order_of.Order(text, "held_out", section)
    model = Snapshot(settings, snapshot, step, devices.choose(settings.device))
    cached = section.mode == "cached"
    windows = order_of.shards(settings, model.width)[0] if cached else range(1)
    blocks = [*held_out.windows, *(train.windows[window] for window in windows)]
    norms: dict[Key, float] = {}

    def measure(window: int, rows: dict[Key, torch.Tensor]) -> None:
        if window == 0:
            for key, values in rows.items():
                norms[key] = float(values.float().norm(dim=1).double().mean())

    with ExitStack() as open_files:
        files = _new(open_files, model, folder)
        shard = _new(open_files, model, folder, 0) if cached else {}
        total = sum(map(len, blocks)) * text.context
        progress = open_files.enter_context(bar(f"extract step {step}", total, "tokens"))
        if cached:
            _write_rows(model, train, windows, section, shard, "", progress, measure)
        else:
            measure(0, _window(model, train, 0, section, progress))
        every = range(len(held_out.windows))
        _write_rows(model, held_out, every, section, files, "held_out/", progress)
        for key, norm in norms.items():
            facts = _facts(settings, model, key, train)
            facts |= {"mean_norm": norm, "scale": float(np.sqrt(model.width) / norm)}
            for file in (files[key], *([shard[key]] if cached else [])):
                store.describe(file, facts)


def extract_shard(
    settings: Settings,
    snapshot: str | Path,
    step: int,
    tokens: str | Path,
    folder: str | Path,
    shard: int,
) -> None:
    """Write one of a snapshot's later shards of training rows, counted from 0. See `extract`."""
    section = settings.activations
    train = order_of.Order(Tokens(tokens), "train", section)
    model = Snapshot(settings, snapshot, step, devices.choose(settings.device))
    windows = order_of.shards(settings, model.width)[shard]
    with ExitStack() as open_files:
        files = _new(open_files, model, folder, shard)
        total = sum(len(train.windows[window]) for window in windows) * train.tokens.context
        what = f"extract step {step}, shard {shard}"
        progress = open_files.enter_context(bar(what, total, "tokens"))
        _write_rows(model, train, windows, section, files, "", progress)
        for key, file in files.items():
            store.describe(file, _facts(settings, model, key, train))


def _new(
    open_files: ExitStack, model: Snapshot, folder: str | Path, shard: int | None = None
) -> dict[Key, h5py.File]:
    """The sites' files, or those of a shard, which are there, whole, once the contexts end."""
    files = {}
    for key in model.wanted:
        path = Path(folder) / folder_name(*key) / f"step{model.step}.h5"
        draft = whole(path if shard is None else rows_path(path, shard))
        files[key] = open_files.enter_context(h5py.File(open_files.enter_context(draft), "w"))
    return files


def _facts(settings: Settings, model: Snapshot, key: Key, train: order_of.Order) -> dict[str, Any]:
    """What a file's attributes say of what made it."""
    shards = order_of.shards(settings, model.width)
    return {
        "model": str(model.model.config.model_type),
        "step": model.step,
        "layer": key[0],
        "stream": key[1],
        "dtype": settings.activations.dtype,
        "seed": settings.activations.seed,
        "shard_rows": [int(train.starts[w.stop] - train.starts[w.start]) for w in shards],
        "tokens": train.tokens.digest,
        "torch": torch.__version__.split("+")[0],
    }
