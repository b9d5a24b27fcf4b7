"""What features look like: contexts from held-out text, densities, and logit lenses."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet

from ontogeny import devices
from ontogeny.activations.rows import HeldOut, read_ahead
from ontogeny.analyses.contexts import lens
from ontogeny.analyses.contexts.collect import Collector, Gate, over_quantiles, ranks
from ontogeny.analyses.contexts.settings import Contexts
from ontogeny.corpus.build import Tokens
from ontogeny.corpus.pieces import read_tokens, visible
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.features.contexts import (
    FORMAT,
    LISTS,
    TOGETHER,
    Store,
    around,
    bin_edges,
    record_type,
)
from ontogeny.features.held_out import inputs_of
from ontogeny.files import InputError, whole, whole_hdf5
from ontogeny.progress import bar
from ontogeny.settings import Settings
from ontogeny.version import VERSION

PIECE_VALUES = 1 << 23  # rows × (inputs or features) in memory at a time
SAMPLE = 8  # positions of the uniform sample for each quantile
RECORDS = 1024  # records written at a time
CHUNK_BYTES = 1 << 16
BLOCKS = 4096  # blocks whose tokens are read at a time
TABLE_CONTEXTS = 5  # contexts per feature in the table
SCHEMA = pa.schema(
    {
        "feature": pa.int64(),
        "rank": pa.int64(),
        "block": pa.int64(),
        "offset": pa.int64(),
        "activation": pa.float32(),
        "density": pa.float64(),
        "tokens": pa.list_(pa.string()),
        "activations": pa.list_(pa.float32()),
        "position": pa.int64(),
        "promoted": pa.list_(pa.string()),
        "suppressed": pa.list_(pa.string()),
    }
)


def measure(
    settings: Settings,
    crosscoder: Path,
    activations: Path,
    snapshots: Path,
    tokens: Path,
    tokenizer: Path,
    contexts: Path,
    table: Path,
) -> None:
    """Write what a crosscoder's living features look like.

    Parameters
    ----------
    crosscoder : folder of a seed. activations, snapshots : the experiment's folders.
    tokens, tokenizer : tokens.h5 and tokenizer.json.
    contexts : HDF5 for `Store`. table : Parquet with the contexts of the largest activations only.

    Raises
    ------
    InputError : there is no living feature, or files do not belong together.
    """
    section = settings.section(Contexts)
    trained = Crosscoder.load(crosscoder, devices.choose(settings.device))
    inputs = inputs_of(trained, activations)
    data = Tokens(tokens)
    pieces = read_tokens(tokenizer, data.vocabulary)
    living = np.flatnonzero(~trained.dead.cpu().numpy())
    if not len(living):
        raise InputError(f"{crosscoder}: no living feature; train it for longer")
    lenses = lens.of_features(settings, trained, living, snapshots, data)
    seen = collect(trained, inputs, living, data.context, section, settings.analysis.seed)
    position = inputs.position.astype(np.int64)
    sizes = [getattr(section, name) for name in LISTS]
    ids = data.take(np.zeros(0, np.int64)).dtype
    _, count, _, k = lenses["lens_token"].shape if lenses else (0, 0, 2, 0)
    dtype = record_type(sizes, section.window, ids, count, k)
    with whole(table) as draft_table:
        with whole_hdf5(contexts) as file:
            file.attrs.update(
                {
                    "format": FORMAT,
                    "ontogeny": VERSION,
                    "tokens": data.digest,
                    "seed": trained.about.seed,
                    "window": section.window,
                    **dict(zip(LISTS, sizes, strict=True)),
                    "context": data.context,
                    "features": trained.about.features,
                    "rows": seen.rows,
                }
            )
            file["feature"] = living.astype(np.uint32)
            file["edges"] = bin_edges()
            file["vocabulary"] = np.frombuffer(b"".join(pieces), np.uint8)
            file["vocabulary_stop"] = np.cumsum([len(piece) for piece in pieces])
            sites = zip(*trained.about.outputs, strict=True)
            for name, column in zip(("step", "layer", "stream"), sites, strict=True):
                file[f"sites/{name}"] = list(column)
            rows = max(1, min(len(living), CHUNK_BYTES // dtype.itemsize))
            stored = file.create_dataset(
                "features", (len(living),), dtype, chunks=(rows,), fletcher32=True
            )
            with bar("contexts: writing", len(living), "features") as progress:
                for low, records in _records(dtype, living, seen, lenses, position, data, section):
                    stored[low : low + len(records)] = records
                    progress.update(len(records))
        store = Store(contexts)
        with parquet.ParquetWriter(draft_table, SCHEMA) as writer:
            for low in range(0, len(living), RECORDS):
                lines = [
                    line for i in living[low : low + RECORDS] for line in _largest(store, int(i))
                ]
                writer.write_table(pa.Table.from_pylist(lines, SCHEMA))


def collect(
    crosscoder: Crosscoder,
    inputs: HeldOut,
    living: np.ndarray,
    context: int,
    section: Contexts,
    seed: int,
) -> Collector:
    """Process all held-out rows once.

    Parameters
    ----------
    living : (L,) features to process. context : tokens in a block. seed : of the sample.
    """
    device = crosscoder.device
    chosen = torch.from_numpy(living).to(device)
    whole_dictionary = len(living) == crosscoder.about.features
    collector = Collector(
        Gate.of(crosscoder, chosen),
        context,
        section.top,
        SAMPLE * section.quantiles,
        section.near_misses,
        section.window,
        seed,
    )
    position = inputs.position
    entries = max(crosscoder.about.features, len(inputs.sites) * inputs.width)
    bounds = _whole_blocks(position[:, 0], max(1, PIECE_VALUES // entries))
    pieces = read_ahead(
        (low, lambda low=low, high=high: inputs.read(low, high)) for low, high in pairwise(bounds)
    )
    with bar("contexts: held-out rows", len(position), "rows") as progress:
        for low, rows in pieces:
            ids = inputs.tokens_at(low, low + len(rows))[:, 1]
            h = crosscoder.pre_activations(torch.from_numpy(rows).to(device), ids)
            block, offset = position[low : low + len(rows)].astype(np.int64).T
            collector.add(h if whole_dictionary else h[:, chosen], block, offset)
            progress.update(len(rows))
    return collector


def _whole_blocks(block: np.ndarray, rows: int) -> list[int]:
    """Bounds of pieces of whole blocks with about `rows` rows each, at least one block."""
    starts = np.r_[0, np.flatnonzero(np.diff(block)) + 1, len(block)]
    bounds = [0]
    while bounds[-1] < len(block):
        after = int(np.searchsorted(starts, bounds[-1] + rows, side="right")) - 1
        if starts[after] <= bounds[-1]:
            after += 1
        bounds.append(int(starts[after]))
    return bounds


def _tokens_around(data: Tokens, block: np.ndarray, offset: np.ndarray, window: int) -> np.ndarray:
    """(M, 2·window + 1) ids around positions (M,), padded with 0 beyond the block.

    The corpus is read once, in order.
    """
    dtype = data.take(np.zeros(0, np.int64)).dtype
    tokens = np.zeros((len(block), 2 * window + 1), dtype)
    order = np.argsort(block, kind="stable")
    first, last = data.splits["held_out"]
    for start in range(first, last, BLOCKS):
        low, high = np.searchsorted(block[order], [start, start + BLOCKS])
        part = order[low:high]
        if not len(part):
            continue
        numbers, row = np.unique(block[part], return_inverse=True)
        offsets, inside = around(offset[part], window, data.context)
        ids = data.take(numbers)[row[:, None], np.minimum(offsets, data.context - 1)]
        tokens[part] = np.where(inside, ids, 0)
    return tokens


def _records(
    dtype: np.dtype[Any],
    living: np.ndarray,
    seen: Collector,
    lenses: dict[str, np.ndarray],
    position: np.ndarray,
    data: Tokens,
    section: Contexts,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the records of all features, RECORDS at a time, as (first, records)."""
    F = len(living)
    drawn, quantile = over_quantiles(seen.sample.settled(), F, section.quantiles)
    lists = [seen.top.settled(), drawn, seen.near.settled()]
    ranked = [ranks(entries["feature"], F) for entries in lists]
    starts = (0, section.top, section.top + section.quantiles)
    # For every entry of the three lists, one list after the other: its slot and its record.
    feature = np.concatenate([entries["feature"] for entries in lists])
    slot = np.concatenate([start + rank for start, (rank, _) in zip(starts, ranked, strict=True)])
    value = np.concatenate([entries["value"] for entries in lists])
    where = position[np.concatenate([entries["row"] for entries in lists])]
    tokens = _tokens_around(data, where[:, 0], where[:, 1], section.window)
    windows = np.concatenate([entries["window"] for entries in lists[:2]])
    count = np.stack([count for _, count in ranked], 1)
    together, share = seen.together.nearest(TOGETHER)
    for low in range(0, F, RECORDS):
        high = min(low + RECORDS, F)
        records = np.zeros(high - low, dtype)
        records["feature"] = living[low:high]
        records["active"] = seen.active[low:high]
        with np.errstate(invalid="ignore"):
            records["mean"] = seen.total[low:high] / seen.active[low:high]
        records["threshold"] = seen.gate.threshold[low:high].cpu().numpy()
        records["histogram"] = seen.histogram[low:high]
        records["found"] = count[low:high]
        records["together"] = living[together[low:high]]
        records["together_share"] = share[low:high]
        here = np.flatnonzero((low <= feature) & (feature < high))
        at = feature[here] - low, slot[here]
        records["block"][at], records["offset"][at] = where[here].T
        records["value"][at] = value[here]
        records["token"][at] = tokens[here]
        shown = here[here < len(windows)]
        records["activation"][feature[shown] - low, slot[shown]] = windows[shown]
        of_quantiles = shown[shown >= len(lists[0])]
        at = feature[of_quantiles] - low, slot[of_quantiles] - section.top
        records["quantile"][at] = quantile[of_quantiles - len(lists[0])]
        for name, values in lenses.items():
            records[name] = values[low:high]
        yield low, records


def _largest(store: Store, feature: int) -> Iterator[dict[str, Any]]:
    """The table's rows for a feature: the contexts of its largest activations, as text."""
    record = store.record(feature)
    peak = store.lens(record)[-1:]
    for rank, context in enumerate(store.contexts(record, "top")[:TABLE_CONTEXTS], 1):
        yield {
            "feature": feature,
            "rank": rank,
            "block": context.block,
            "offset": context.offset,
            "activation": context.value,
            "density": int(record["active"]) / store.rows,
            "tokens": [visible(text) for text in context.texts],
            "activations": context.activations,
            "position": context.offset - context.start,
            "promoted": [visible(text) for lens in peak for text, *_ in lens.promoted],
            "suppressed": [visible(text) for lens in peak for text, *_ in lens.suppressed],
        }
