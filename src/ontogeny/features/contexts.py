"""What a feature looks like: contexts from held-out text, its density, and its logit lens.

One HDF5 file for a crosscoder, made for looking at one feature at a time: the dataset `features`
has one record of fixed size a living feature, so that all of a feature is one read. `Store` reads
it and needs no other file.

    feature, active, mean, threshold, histogram, found                       numbers (`Feature`)
    block, offset, value, quantile     (top + quantiles + near misses,)      positions
    token                              (…, 2·window + 1)                     ids around each
    activation                         (top + quantiles, 2·window + 1)       of the feature there
    lens_site, lens_strength           (lens_snapshots + 1,)                 the last at its peak
    lens_token, lens_value             (lens_snapshots + 1, 2, lens_tokens)  promoted, suppressed

How positions are chosen stands in collect.py, what the lens is in lens.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet

from ontogeny import __version__, devices
from ontogeny.activations.rows import HeldOut, read_ahead
from ontogeny.activations.sites import Site
from ontogeny.corpus.build import Tokens
from ontogeny.corpus.pieces import Vocabulary, read_tokens, visible
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.features import lens
from ontogeny.features.collect import (
    BINS,
    Collector,
    Found,
    Gate,
    bin_edges,
    over_quantiles,
)
from ontogeny.files import InputError, whole
from ontogeny.progress import bar
from ontogeny.settings import Contexts, Settings
from ontogeny.snapshots import sites as model_sites

FORMAT = "ontogeny-contexts-1"
PIECE_VALUES = 1 << 23  # rows × (inputs or features) in memory at a time
SAMPLE = 8  # positions of the even sample, for each quantile
LENS_BLOCKS = 8  # of held-out text, over which the final norm's denominator is averaged
RECORDS = 1024  # written at a time
CHUNK_BYTES = 1 << 16
BLOCKS = 4096  # whose tokens are read at a time
TABLE_CONTEXTS = 5  # of a feature, in the table
LISTS = ("top", "quantiles", "near_misses")


@dataclass(frozen=True)
class Context:
    """A position and the tokens around it.

    block, offset : of the position. start : offset of the window's first token.
    value : the feature's activation at the position; of a near miss its score.
    quantile : share of the feature's active positions below it, or None.
    ids : (W,) of the window's tokens. texts : a string each, see corpus/pieces.py.
    activations : (W,) of the feature; NaN where none is kept (at the end of a text, say).
    """

    block: int
    offset: int
    start: int
    value: float
    quantile: float | None
    ids: np.ndarray
    texts: list[str]
    activations: np.ndarray


@dataclass(frozen=True)
class Lens:
    """Tokens that the feature's decoder promotes and suppresses at a site, the most first.

    step, layer, stream : the site. peak : whether it is the one where the feature is strongest.
    strength : decoder norm there over the largest of any site. promoted, suppressed : text, id, and
    what a unit of activation adds to the logit, less the vocabulary's mean.
    """

    step: int
    layer: int
    stream: str
    peak: bool
    strength: float
    promoted: list[tuple[str, int, float]]
    suppressed: list[tuple[str, int, float]]


@dataclass(frozen=True)
class Feature:
    """What `Store` knows of a feature.

    active : held-out positions at which it is active. density : their share. mean : of its
    activation there, NaN where there are none. threshold : the score that opens it, and that the
    near misses' scores stay below. histogram : (bins,) counts of its activations; `Store.edges`.
    top, quantiles, near_misses : contexts, the strongest first; quantiles from weak to strong.
    """

    feature: int
    active: int
    density: float
    mean: float
    threshold: float
    histogram: np.ndarray
    top: list[Context]
    quantiles: list[Context]
    near_misses: list[Context]
    lens: list[Lens]


class Store:
    """Reader of a contexts file; it stays open.

    Attributes
    ----------
    features : (L,) the living features, ascending. dictionary : F, dead ones included.
    edges : (bins + 1,) of the histograms. rows : held-out positions. attributes : all else that the
    file says of itself.

    A record is read with its chunk, whose checksum is verified. Not to be shared among threads.

    Raises
    ------
    InputError : the file is truncated or foreign; on reading: no such feature, or a damaged part.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        try:
            self._file = h5py.File(path, "r")
            self._records = self._file["features"].id
            # What h5py would make anew at each access, at ten times the cost of the read.
            self._one = (h5py.h5s.create_simple((1,)), self._records.get_space())
            self._type = (self._file["features"].dtype, self._records.get_type())
            self.attributes: dict[str, Any] = dict(self._file.attrs)
            known = self.attributes.get("format")
            self.features: np.ndarray = self._file["feature"][:]
            raw, stops = self._file["vocabulary"][:].tobytes(), self._file["vocabulary_stop"][:]
            self.edges: np.ndarray = self._file["edges"][:]
            self.sites = [
                Site(int(step), int(layer), str(stream))
                for step, layer, stream in zip(
                    self._file["sites/step"][:],
                    self._file["sites/layer"][:],
                    self._file["sites/stream"].asstr()[:],
                    strict=True,
                )
            ]
        except (OSError, KeyError) as error:
            raise self._damaged(error) from None
        if known != FORMAT:
            raise self._damaged(f"format {known}, not {FORMAT}")
        starts = np.r_[0, stops[:-1]]
        self.vocabulary = Vocabulary([raw[a:b] for a, b in zip(starts, stops, strict=True)])
        self.rows = int(self.attributes["rows"])
        self.dictionary = int(self.attributes["features"])
        self.window = int(self.attributes["window"])
        self.context = int(self.attributes["context"])
        self._sizes = [int(self.attributes[name]) for name in LISTS]

    def _damaged(self, error: Exception | str) -> InputError:
        why = " ".join(str(error).split())
        return InputError(
            f"{self.path}: truncated or not a contexts file of this version; delete it to make it "
            f"again ({why})"
        )

    def __len__(self) -> int:
        return len(self.features)

    def record(self, feature: int) -> np.void:
        """A feature's record as it is stored.

        Raises
        ------
        InputError : no such feature.
        """
        place = int(np.searchsorted(self.features, feature))
        if not 0 <= feature < self.dictionary:
            raise InputError(
                f"{self.path}: no feature {feature}; they are numbered 0 to {self.dictionary - 1}"
            )
        if place == len(self.features) or self.features[place] != feature:
            raise InputError(
                f"{self.path}: feature {feature} is dead and has no contexts; choose a living one, "
                "such as stand in features.parquet"
            )
        memory, stored = self._one
        dtype, kind = self._type
        found = np.empty(1, dtype)
        stored.select_hyperslab((place,), (1,))
        try:
            self._records.read(memory, stored, found, kind)
        except OSError as error:
            raise self._damaged(error) from None
        return found[0]

    def feature(self, number: int) -> Feature:
        """All that is known of a living feature.

        Raises
        ------
        InputError : it is dead, or there is none of that number.
        """
        one = self.record(number)
        lists: dict[str, list[Context]] = {}
        start = 0
        for name, size, found in zip(LISTS, self._sizes, one["found"], strict=True):
            lists[name] = [self._context(one, i, name) for i in range(start, start + int(found))]
            start += size
        active = int(one["active"])
        return Feature(
            feature=number,
            active=active,
            density=active / self.rows,
            mean=float(one["mean"]),
            threshold=float(one["threshold"]),
            histogram=one["histogram"],
            lens=self._lens(one),
            **lists,
        )

    def _context(self, one: np.void, i: int, kind: str) -> Context:
        offset = int(one["offset"][i])
        start = max(0, offset - self.window)
        size = min(self.context, offset + self.window + 1) - start
        ids = one["token"][i, :size]
        near = kind == "near_misses"
        active = np.zeros(size, np.float16) if near else one["activation"][i, :size]
        quantile = one["quantile"][i - self._sizes[0]] if kind == "quantiles" else None
        return Context(
            int(one["block"][i]),
            offset,
            start,
            float(one["value"][i]),
            None if quantile is None else float(quantile),
            ids,
            self.vocabulary.texts(ids),
            active.astype(np.float32),
        )

    def _lens(self, one: np.void) -> list[Lens]:
        if "lens_site" not in (one.dtype.names or ()):
            return []
        found = []
        last = len(one["lens_site"]) - 1
        for i, number in enumerate(one["lens_site"]):
            site = self.sites[number]
            sides = [
                [
                    (self.vocabulary.one(token), int(token), float(value))
                    for token, value in zip(
                        one["lens_token"][i, side], one["lens_value"][i, side], strict=True
                    )
                ]
                for side in (0, 1)
            ]
            strength = float(one["lens_strength"][i])
            found.append(Lens(site.snapshot, site.layer, site.stream, i == last, strength, *sides))
        return found


def record_type(c: Contexts, ids: np.dtype[Any], lenses: int, tokens: int) -> np.dtype[Any]:
    """The type of a feature's record, for so many lenses of so many tokens each."""
    positions, width = c.top + c.quantiles + c.near_misses, 2 * c.window + 1
    fields: list[Any] = [
        ("feature", "<u4"),
        ("active", "<u8"),
        ("mean", "<f4"),
        ("threshold", "<f4"),
        ("histogram", "<u4", (BINS,)),
        ("found", "<u2", (len(LISTS),)),
        ("block", "<u4", (positions,)),
        ("offset", "<u4", (positions,)),
        ("value", "<f4", (positions,)),
        ("quantile", "<f4", (c.quantiles,)),
        ("token", ids, (positions, width)),
        ("activation", "<f2", (c.top + c.quantiles, width)),
    ]
    if lenses:
        fields += [
            ("lens_site", "<u4", (lenses,)),
            ("lens_strength", "<f4", (lenses,)),
            ("lens_token", "<u4", (lenses, 2, tokens)),
            ("lens_value", "<f4", (lenses, 2, tokens)),
        ]
    return np.dtype(fields)


def collect(
    crosscoder: Crosscoder,
    inputs: HeldOut,
    living: np.ndarray,
    context: int,
    c: Contexts,
    seed: int,
) -> Collector:
    """Look at all held-out rows once.

    Parameters
    ----------
    living : (L,) features to look at. context : tokens in a block. seed : of the sample.
    """
    device = crosscoder.W_dec.device
    chosen = torch.from_numpy(living).to(device)
    whole_dictionary = len(living) == crosscoder.about.features
    found = Collector(
        Gate.of(crosscoder, chosen),
        context,
        c.top,
        SAMPLE * c.quantiles,
        c.near_misses,
        c.window,
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
            h = crosscoder.pre_activations(torch.from_numpy(rows).to(device))
            here = position[low : low + len(rows)].astype(np.int64)
            found.add(h if whole_dictionary else h[:, chosen], here[:, 0], here[:, 1])
            progress.update(len(rows))
    return found


def _whole_blocks(block: np.ndarray, rows: int) -> list[int]:
    """Bounds of pieces of whole blocks, about `rows` rows each, a block at least."""
    starts = np.r_[0, np.flatnonzero(np.diff(block)) + 1, len(block)]
    bounds = [0]
    while bounds[-1] < len(block):
        after = int(np.searchsorted(starts, bounds[-1] + rows, side="right")) - 1
        if starts[after] <= bounds[-1]:
            after += 1
        bounds.append(int(starts[after]))
    return bounds


def _rectangle(found: Found, features: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(feature, place in its list) of each entry, by feature; and counts."""
    count = np.bincount(found.feature, minlength=features)
    first = np.cumsum(count) - count
    assert count.max(initial=0) <= size
    return np.arange(len(found)) - first[found.feature], count


def _tokens_around(data: Tokens, block: np.ndarray, offset: np.ndarray, window: int) -> np.ndarray:
    """(M, 2·window + 1) ids around positions (M,), filled up with 0 beyond the block.

    The corpus is read once, in order.
    """
    dtype = data.take(np.zeros(0, np.int64)).dtype
    found = np.zeros((len(block), 2 * window + 1), dtype)
    order = np.argsort(block, kind="stable")
    first, last = data.splits["held_out"]
    for start in range(first, last, BLOCKS):
        low, high = np.searchsorted(block[order], [start, start + BLOCKS])
        some = order[low:high]
        if not len(some):
            continue
        numbers, inside = np.unique(block[some], return_inverse=True)
        ids = data.take(numbers)
        place = offset[some]
        around = np.maximum(place - window, 0)[:, None] + np.arange(2 * window + 1)
        there = around <= np.minimum(place + window, data.context - 1)[:, None]
        values = ids[inside[:, None], np.minimum(around, data.context - 1)]
        found[some] = np.where(there, values, 0)
    return found


@dataclass(frozen=True)
class _Lenses:
    """site (L, P) numbers of sites, strength (L, P), token and value (L, P, 2, k)."""

    site: np.ndarray
    strength: np.ndarray
    token: np.ndarray
    value: np.ndarray


def _lenses(
    s: Settings, crosscoder: Crosscoder, living: np.ndarray, snapshots: Path, data: Tokens
) -> _Lenses | None:
    """The logit lens of living features; None where none is asked for, or no site is one of it.

    An MLP's input is not part of the residual stream, and has none.
    """
    sites = [Site(*site) for site in crosscoder.about.outputs]
    able = [i for i, site in enumerate(sites) if site.stream != "mlp_in"]
    if not able or not s.contexts.lens_snapshots or not len(living):
        return None
    device = crosscoder.W_dec.device
    some = min(s.contexts.lens_snapshots, len(able))
    spread = [able[i] for i in np.unique(np.linspace(0, len(able) - 1, some).round().astype(int))]
    strength = crosscoder.strength.cpu().numpy()[living]
    peak = np.array(able)[strength[:, able].argmax(1)]
    site = np.c_[np.tile(spread, (len(living), 1)), peak]
    k = min(s.contexts.lens_tokens, data.vocabulary)
    first, last = data.splits["held_out"]
    text = data.take(np.arange(first, min(first + LENS_BLOCKS, last))).astype(np.int64)
    ids = torch.from_numpy(text).to(device)
    token = np.zeros((*site.shape, 2, k), np.uint32)
    value = np.zeros(token.shape, np.float32)
    scales = crosscoder.scales_out.cpu().numpy()
    wanted = sorted(set(site.ravel()), key=lambda i: (sites[i].snapshot, i))
    loaded, head = -1, None
    with bar("contexts: logit lens", len(wanted), "sites") as progress:
        for i in wanted:
            if sites[i].snapshot != loaded:
                loaded = sites[i].snapshot
                folder, remote = snapshots / f"step{loaded}", s.snapshots.remote_code
                model = model_sites.load_model(folder, device, torch.float32, remote)
                head = lens.unembedding(model, data.vocabulary, ids)
                del model
            assert head is not None
            features, place = np.nonzero(site == i)
            which = np.unique(features)
            at = torch.from_numpy(living[which]).to(device)
            best, logits = head.extremes(crosscoder.W_dec[at, i] / float(scales[i]), k)
            own = np.searchsorted(which, features)
            token[features, place] = best.numpy()[own]
            value[features, place] = logits.numpy()[own]
            progress.update()
    most = np.maximum(strength.max(1, keepdims=True), 1e-30)
    return _Lenses(site, np.take_along_axis(strength, site, 1) / most, token, value)


def describe(
    s: Settings,
    crosscoder: str | Path,
    activations: str | Path,
    snapshots: str | Path,
    tokens: str | Path,
    tokenizer: str | Path,
    output: str | Path,
    table: str | Path,
) -> None:
    """Write what a crosscoder's living features look like.

    Parameters
    ----------
    crosscoder : folder of a seed. activations, snapshots : the experiment's folders.
    tokens, tokenizer : tokens.h5 and tokenizer.json.
    output : HDF5, for `Store`.
    table : Parquet, a row a feature and context, of the largest activations alone: feature, rank,
        block, offset, activation, density, tokens (each as it is shown), activations (of each),
        position (the context's own among them), promoted, suppressed (by the lens at its peak).

    Raises
    ------
    InputError : no living feature, or files that do not belong together.
    """
    c = s.contexts
    device = devices.choose(s.device)
    trained = Crosscoder.load(crosscoder, device)
    inputs = HeldOut(activations, [Site(*site) for site in trained.about.inputs])
    if inputs.tokens != trained.about.tokens:
        raise InputError(
            f"{activations}: activations of other tokens than the crosscoder was trained on; "
            "train it again"
        )
    data = Tokens(tokens)
    pieces = read_tokens(tokenizer, data.vocabulary)
    living = np.flatnonzero(~trained.dead.cpu().numpy())
    if not len(living):
        raise InputError(f"{crosscoder}: no living feature; train it for longer")
    lenses = _lenses(s, trained, living, Path(snapshots), data)
    found = collect(trained, inputs, living, data.context, c, s.analysis.seed)
    position = inputs.position.astype(np.int64)
    with whole(output) as draft, h5py.File(draft, "w") as file:
        k = 0 if lenses is None else lenses.token.shape[-1]
        sizes = {"context": data.context, "features": trained.about.features, "rows": found.rows}
        about = {
            "format": FORMAT,
            "ontogeny": __version__,
            "tokens": data.digest,
            "seed": trained.about.seed,
            "window": c.window,
            **{name: getattr(c, name) for name in LISTS},
            **sizes,
        }
        for name, value in about.items():
            file.attrs[name] = value
        file["feature"] = living.astype(np.uint32)
        file["edges"] = bin_edges()
        file["vocabulary"] = np.frombuffer(b"".join(pieces), np.uint8)
        file["vocabulary_stop"] = np.cumsum([len(piece) for piece in pieces])
        for name, column in zip(
            ("step", "layer", "stream"), zip(*trained.about.outputs, strict=True), strict=True
        ):
            file[f"sites/{name}"] = list(column)
        dtype = record_type(
            c,
            data.take(np.zeros(0, np.int64)).dtype,
            0 if lenses is None else lenses.site.shape[1],
            k,
        )
        rows = max(1, min(len(living), CHUNK_BYTES // dtype.itemsize))
        stored = file.create_dataset(
            "features", (len(living),), dtype, chunks=(rows,), fletcher32=True
        )
        with whole(table) as drafted:
            writer = _Table(drafted, Vocabulary(pieces), c, data.context)
            with bar("contexts: writing", len(living), "features") as progress:
                for low, records in _records(dtype, living, found, lenses, position, data, c):
                    stored[low : low + len(records)] = records
                    writer.add(records, found.rows)
                    progress.update(len(records))
            writer.close()


def _records(
    dtype: np.dtype[Any],
    living: np.ndarray,
    found: Collector,
    lenses: _Lenses | None,
    position: np.ndarray,
    data: Tokens,
    c: Contexts,
) -> Iterator[tuple[int, np.ndarray]]:
    """All features' records, some at a time, as (first, records)."""
    F = len(living)
    top, near = found.top.settled(), found.near.settled()
    drawn, quantile = over_quantiles(found.sample.settled(), F, c.quantiles)
    lists = (top, drawn, near)
    starts = (0, c.top, c.top + c.quantiles)
    places = [_rectangle(one, F, getattr(c, n)) for one, n in zip(lists, LISTS, strict=True)]
    every = position[np.concatenate([one.row for one in lists])]
    tokens = _tokens_around(data, every[:, 0], every[:, 1], c.window)
    firsts = np.cumsum([0, *map(len, lists)])
    for low in range(0, F, RECORDS):
        high = min(low + RECORDS, F)
        part = np.zeros(high - low, dtype)
        part["feature"] = living[low:high]
        part["active"] = found.active[low:high]
        with np.errstate(invalid="ignore"):
            part["mean"] = found.total[low:high] / found.active[low:high]
        part["threshold"] = found.gate.threshold[low:high].cpu().numpy()
        part["histogram"] = found.histogram[low:high]
        for n, (one, start, (place, count)) in enumerate(zip(lists, starts, places, strict=True)):
            part["found"][:, n] = count[low:high]
            a, b = np.searchsorted(one.feature, [low, high])
            feature, slot = one.feature[a:b] - low, place[a:b] + start
            where = every[firsts[n] :][a:b]
            part["block"][feature, slot], part["offset"][feature, slot] = where.T
            part["value"][feature, slot] = one.value[a:b]
            part["token"][feature, slot] = tokens[firsts[n] :][a:b]
            if LISTS[n] == "quantiles":
                part["quantile"][feature, place[a:b]] = quantile[a:b]
            if LISTS[n] != "near_misses":
                part["activation"][feature, slot] = one.window[a:b]
        if lenses is not None:
            part["lens_site"] = lenses.site[low:high]
            part["lens_strength"] = lenses.strength[low:high]
            part["lens_token"] = lenses.token[low:high]
            part["lens_value"] = lenses.value[low:high]
        yield low, part


class _Table:
    """Writes the Parquet table of largest activations, some features at a time."""

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

    def __init__(self, path: Path, vocabulary: Vocabulary, c: Contexts, context: int) -> None:
        self._writer = parquet.ParquetWriter(path, self.SCHEMA)
        self._vocabulary, self._c, self._context = vocabulary, c, context

    def add(self, records: np.ndarray, rows: int) -> None:
        """Append the records' contexts as a row group."""
        made: list[dict[str, Any]] = []
        shown = min(self._c.top, TABLE_CONTEXTS)
        for one in records:
            sides: list[list[str]] = [[], []]
            if "lens_token" in (records.dtype.names or ()):
                sides = [
                    [visible(self._vocabulary.one(t)) for t in one["lens_token"][-1, side]]
                    for side in (0, 1)
                ]
            for i in range(min(shown, int(one["found"][0]))):
                offset = int(one["offset"][i])
                start = max(0, offset - self._c.window)
                size = min(self._context, offset + self._c.window + 1) - start
                texts = self._vocabulary.texts(one["token"][i, :size])
                made.append(
                    {
                        "feature": int(one["feature"]),
                        "rank": i + 1,
                        "block": int(one["block"][i]),
                        "offset": offset,
                        "activation": float(one["value"][i]),
                        "density": int(one["active"]) / rows,
                        "tokens": [visible(text) for text in texts],
                        "activations": one["activation"][i, :size].astype(np.float32),
                        "position": offset - start,
                        "promoted": sides[0],
                        "suppressed": sides[1],
                    }
                )
        self._writer.write_table(pa.Table.from_pylist(made, self.SCHEMA))

    def close(self) -> None:
        """End the file."""
        self._writer.close()
