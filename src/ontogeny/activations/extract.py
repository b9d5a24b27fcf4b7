"""The activations stage: all wanted streams of one snapshot from one partial forward pass."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from ontogeny import devices
from ontogeny.activations import order as order_of
from ontogeny.activations import outliers, store
from ontogeny.activations.rows import read_ahead
from ontogeny.activations.sites import folder_name, rows_path
from ontogeny.activations.sizes import PIECE_ROWS
from ontogeny.corpus.build import Tokens
from ontogeny.files import InputError, whole_hdf5
from ontogeny.progress import bar
from ontogeny.settings import Activations, Settings
from ontogeny.snapshots import held_out as first_look
from ontogeny.snapshots import sites

Key = tuple[int, str]  # (layer, stream)


class Snapshot:
    """A snapshot's model, run up to its last wanted layer.

    Parameters
    ----------
    settings : activations.layers and activations.streams name the sites to extract.
    folder : of the snapshot. step : its training step.
    look : called with the model before it is truncated.
    """

    def __init__(
        self,
        settings: Settings,
        folder: str | Path,
        step: int,
        device: torch.device,
        look: Callable[[Any], None] | None = None,
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
            look=look,
        )
        self.width = sites.width(self.model)
        self._stored = getattr(torch, section.dtype)
        self._vocabulary = int(self.model.get_input_embeddings().weight.shape[0])

    def read(
        self, ids: np.ndarray, on_device: torch.Tensor | None = None
    ) -> dict[Key, torch.Tensor]:
        """Values of every wanted site, each (B·T, D) on the device in the stored type.

        Parameters
        ----------
        ids : (B, T) token ids. on_device : the same ids on the device, if they are there already.

        Raises
        ------
        InputError : the model's embedding lacks an id.
        """
        if ids.max(initial=0) >= self._vocabulary:
            raise InputError(
                f"corpus: the text contains the id {ids.max()}, but the embedding of step "
                f"{self.step} has only ids below {self._vocabulary}; use the model's own tokenizer"
            )
        if on_device is None:
            on_device = devices.sent(ids.astype(np.int64), self.device)
        values = sites.read(self.model, on_device, self.wanted)
        return {key: value.flatten(0, 1).to(self._stored) for key, value in values.items()}


def check_finite(values: torch.Tensor, key: Key, step: int, dtype: str, first: int) -> None:
    """Raise InputError if the stored type cannot hold a value.

    Parameters
    ----------
    values : rows, numbered from `first`.
    """
    fine = torch.isfinite(values).all(1)
    if not fine.all():
        row = first + int((~fine).nonzero()[0])
        raise InputError(
            f"activations.dtype: {dtype} cannot hold a value of the {key[1]} of layer {key[0]} at "
            f"step {step}, row {row}; set float32 (if that fails too, the snapshot itself is "
            "damaged)"
        )


def norms(rows: torch.Tensor) -> dict[str, float]:
    """The mean norm of rows (R, D), and that of the rows minus their mean (0 if all are equal).

    Sums are in float64, piece by piece, about the first row.
    """
    pieces, first = rows.split(PIECE_ROWS), rows[0].float()
    total = sum((piece.float() - first).sum(0, dtype=torch.float64) for piece in pieces)
    mean = (total / len(rows)).float()
    plain = sum(piece.float().norm(dim=1).double().sum() for piece in pieces)
    centred = sum((piece.float() - first - mean).norm(dim=1).double().sum() for piece in pieces)
    return {"mean_norm": float(plain / len(rows)), "centred_norm": float(centred / len(rows))}


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
) -> dict[Key, dict[str, Any]]:
    """Write the rows of some windows; a thread computes one while another is written.

    Parameters
    ----------
    files : to write to, by site. group : '' or 'held_out/', a prefix of the datasets' names.

    Returns
    -------
    By site, the `norms` of the first window's rows; for training rows also the findings of
    outliers.py (`outliers`, JSON) and the mean norm by position (`norm_by_offset`).
    """
    rows = int(order.starts[windows.stop] - order.starts[windows.start])
    writers = {
        key: store.Writer(file, f"{group}activations", rows, snapshot.width, a.dtype)
        for key, file in files.items()
    }
    positions = np.concatenate([order.position(window) for window in windows])
    tokens = np.concatenate([order.token(window) for window in windows])
    for file in files.values():
        file[f"{group}position"] = positions
        store.Writer(file, f"{group}token", rows, 2, "int32").write(tokens)

    measured: dict[Key, dict[str, Any]] = {}
    compute = functools.partial(_window, snapshot, order, a=a, progress=progress)
    jobs = ((window, functools.partial(compute, window)) for window in windows)
    for window, by_site in read_ahead(jobs, depth=1):
        for key, values in by_site.items():
            if window == windows.start:
                measured[key] = norms(values)
            if window == windows.start and not group:
                offset, token = order.position(window)[:, 1], order.token(window)[:, 1]
                measured[key] |= {
                    "outliers": json.dumps(outliers.find(values, offset, token)),
                    "norm_by_offset": outliers.by_offset(values, offset, order.tokens.context),
                }
            if key in writers:
                writers[key].write(values.numpy())
    return measured


def _tell(found: dict[str, Any], step: int, layer: int, stream: str) -> None:
    """Report on stderr which rows of a site are unlike the others."""
    for each in json.loads(found["outliers"]):
        print(
            f"the {stream} of layer {layer} at step {step}: {outliers.told(each)}", file=sys.stderr
        )


def extract(
    settings: Settings,
    snapshot: str | Path,
    step: int,
    tokens: str | Path,
    folder: str | Path,
    shard: int = 0,
    loss: Path | None = None,
    norms_folder: Path | None = None,
) -> None:
    """Write a shard of a snapshot's training rows, and with the first shard its held-out rows.

    The norms that determine the scales come from the first window of training rows, for any number
    of shards and also if rows are streamed, in which case no training rows are written.

    Parameters
    ----------
    snapshot : folder of the model. step : its training step. tokens : tokens.h5.
    folder : the experiment's activations folder.
    loss : JSON for the snapshot's loss on a little held-out text, or None.
    norms_folder : output of the norms stage, if activations.leave_out_norm is set.

    Raises
    ------
    InputError : damaged inputs, or a value that the stored type cannot hold.
    """
    section, text = settings.activations, Tokens(tokens)
    over = order_of.above_bound(settings, norms_folder, text)
    train = order_of.Order(text, "train", section, over)

    def look(whole_model: Any) -> None:
        first_look.check_ids(whole_model, text, step)
        if loss is not None:
            first_look.measure(whole_model, text, step, loss)

    model = Snapshot(settings, snapshot, step, devices.choose(settings.device), look)
    shards = order_of.shards(settings, model.width)
    cached = section.mode == "cached"
    windows = shards[shard] if cached else range(1)
    blocks = sum(len(train.windows[window]) for window in windows)
    if shard == 0:
        held_out = order_of.Order(text, "held_out", section, over)
        blocks += sum(map(len, held_out.windows))
    what = f"extract step {step}" + (f", shard {shard}" if shard else "")

    def site_files(name: Callable[[Path], Path]) -> dict[Key, h5py.File]:
        """New files, by site, that are renamed into place when the contexts end."""
        files = {}
        for key in model.wanted:
            path = name(Path(folder) / folder_name(*key) / f"step{step}.h5")
            files[key] = open_files.enter_context(whole_hdf5(path))
        return files

    with ExitStack() as open_files:
        files = [site_files(lambda path: rows_path(path, shard))] if cached else []
        progress = open_files.enter_context(bar(what, blocks * text.context, "tokens"))
        written = files[0] if cached else {}
        measured = _write_rows(model, train, windows, section, written, "", progress)
        if shard == 0:
            files.append(site_files(lambda path: path))
            every = range(len(held_out.windows))
            _write_rows(model, held_out, every, section, files[-1], "held_out/", progress)
        for (layer, stream), found in measured.items():
            facts = {
                "model": str(model.model.config.model_type),
                "step": step,
                "layer": layer,
                "stream": stream,
                "dtype": section.dtype,
                "seed": section.seed,
                "shard_rows": [int(train.starts[w.stop] - train.starts[w.start]) for w in shards],
                "tokens": text.digest,
                "torch": torch.__version__.split("+")[0],
            }
            if shard == 0:
                facts |= found
                _tell(found, step, layer, stream)
            for by_site in files:
                store.describe(by_site[layer, stream], facts)
