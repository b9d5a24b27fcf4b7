"""The contexts file, which shows what features look like: its format and its reader.

There is one HDF5 file per crosscoder, made for looking at one feature at a time: the dataset
`features` has one record of fixed size per living feature, so that one read returns everything
about a feature. `Store` reads the file and needs no other.

    feature, active, mean, threshold, histogram, found                       numbers (`Feature`)
    block, offset, value, quantile     (top + quantiles + near misses,)      positions
    token                              (…, 2·window + 1)                     ids around each
    activation                         (top + quantiles, 2·window + 1)       of the feature there
    together, together_share           (TOGETHER,)                           features and shares
    lens_site, lens_strength           (lens_snapshots + 1,)                 the last at its peak
    lens_token, lens_value             (lens_snapshots + 1, 2, lens_tokens)  promoted, suppressed

analyses/contexts writes it: collect.py there explains how positions are chosen, and lens.py what
the lens is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ontogeny.activations.sites import Site
from ontogeny.corpus.pieces import Vocabulary
from ontogeny.files import BROKEN, InputError, open_hdf5

FORMAT = "ontogeny-contexts-2"
LISTS = ("top", "quantiles", "near_misses")
TOGETHER = 5  # features that are most often active at the same positions
NEARLY = 0.5  # share of the threshold that the score of a near miss reaches at least
BINS, OCTAVE, LOWEST = 64, 4, -8  # bins of log₂ f: 64 of a quarter octave, from 2⁻⁸ to 2⁸


def bin_edges() -> np.ndarray:
    """Edges of the histogram's bins, (BINS + 1,); the outermost bins also count what is beyond."""
    return 2.0 ** (LOWEST + np.arange(BINS + 1) / OCTAVE)


def record_type(
    sizes: Sequence[int], window: int, ids: np.dtype[Any], lenses: int, tokens: int
) -> np.dtype[Any]:
    """The type of a feature's record.

    Parameters
    ----------
    sizes : maximum number of contexts of each of LISTS. window : tokens on either side of a
        position. ids : type of a token's id. lenses : number of lenses. tokens : number of tokens
        that each lens promotes, and suppresses.
    """
    positions, shown, width = sum(sizes), sum(sizes[:2]), 2 * window + 1
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
        ("quantile", "<f4", (sizes[1],)),
        ("token", ids, (positions, width)),
        ("activation", "<f2", (shown, width)),
        ("together", "<u4", (TOGETHER,)),
        ("together_share", "<f4", (TOGETHER,)),
    ]
    if lenses:
        fields += [
            ("lens_site", "<u4", (lenses,)),
            ("lens_strength", "<f4", (lenses,)),
            ("lens_token", "<u4", (lenses, 2, tokens)),
            ("lens_value", "<f4", (lenses, 2, tokens)),
        ]
    return np.dtype(fields)


def around(offset: np.ndarray, window: int, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Offsets of the tokens around positions (M,), and whether each belongs to the window.

    Both are (M, 2·window + 1). Near the end of a block the window is cut off, not shifted.
    """
    offsets = np.maximum(offset - window, 0)[:, None] + np.arange(2 * window + 1)
    return offsets, offsets <= np.minimum(offset + window, context - 1)[:, None]


@dataclass(frozen=True)
class Context:
    """A position and the tokens around it.

    block, offset : the position. start : offset of the window's first token.
    value : the feature's activation at the position, or the score of a near miss.
    quantile : share of the feature's active positions with a smaller activation, or None.
    ids : (W,) tokens of the window. texts : one string per token, see corpus/pieces.py.
    activations : (W,) of the feature; NaN where none is stored, for example at the end of a text.
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
    """Tokens that the feature's decoder promotes and suppresses at a site, strongest effect first.

    step, layer, stream : the site. peak : whether the feature is strongest at this site.
    strength : decoder norm there divided by the largest at any site. promoted, suppressed : text,
    id, and what a unit of activation adds to the logit, minus the vocabulary's mean.
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

    active : number of held-out positions at which the feature is active. density : their share.
    mean : mean activation at them, NaN if there are none. threshold : the score at which the gate
    opens; the scores of near misses are below it. histogram : (bins,) counts of the activations,
    with bins from `Store.edges`. top, quantiles, near_misses : contexts, the strongest first, but
    quantiles from weak to strong. together : the features that are most often active at the same
    positions, and the share of the positions with either at which both are (in the first held-out
    text, analyses/contexts/together.py), the largest share first.
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
    together: list[tuple[int, float]]


class Store:
    """Reader of a contexts file; it keeps the file open.

    Attributes
    ----------
    features : (L,) the living features, ascending. dictionary : F, including dead features.
    edges : (bins + 1,) of the histograms. rows : held-out positions. attributes : everything else
    that the file's attributes hold.

    A record is read with its chunk, whose checksum is verified. Do not share it between threads.

    Raises
    ------
    InputError : the file is truncated or of another kind; on reading, the feature does not exist,
        or a part of the file is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        try:
            self._file = open_hdf5(path)
            self._records = self._file["features"].id
            # h5py would make these anew at each access, at ten times the cost of the read.
            self._one = (h5py.h5s.create_simple((1,)), self._records.get_space())
            self._type = (self._file["features"].dtype, self._records.get_type())
            self.attributes: dict[str, Any] = dict(self._file.attrs)
            version = self.attributes.get("format")
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
        except InputError:
            raise
        except BROKEN as error:
            raise self._damaged(error) from None
        if version != FORMAT:
            raise self._damaged(f"format {version}, not {FORMAT}")
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
            f"{self.path}: truncated, or not a contexts file of this version; delete it to make "
            f"it again ({why})"
        )

    def __len__(self) -> int:
        return len(self.features)

    def record(self, feature: int) -> np.void:
        """A feature's record as stored.

        Raises
        ------
        InputError : the feature does not exist.
        """
        if not 0 <= feature < self.dictionary:
            raise InputError(
                f"{self.path}: no feature {feature}; they are numbered 0 to {self.dictionary - 1}"
            )
        number = int(np.searchsorted(self.features, feature))
        if number == len(self.features) or self.features[number] != feature:
            raise InputError(
                f"{self.path}: feature {feature} is dead and has no contexts; choose a living one "
                "(features.parquet lists them)"
            )
        memory, stored = self._one
        dtype, kind = self._type
        record = np.empty(1, dtype)
        stored.select_hyperslab((number,), (1,))
        try:
            self._records.read(memory, stored, record, kind)
        except OSError as error:
            raise self._damaged(error) from None
        return record[0]

    def feature(self, number: int) -> Feature:
        """Everything that the file holds about a living feature.

        Raises
        ------
        InputError : the feature is dead or does not exist.
        """
        record = self.record(number)
        active = int(record["active"])
        return Feature(
            feature=number,
            active=active,
            density=active / self.rows,
            mean=float(record["mean"]),
            threshold=float(record["threshold"]),
            histogram=record["histogram"],
            top=self.contexts(record, "top"),
            quantiles=self.contexts(record, "quantiles"),
            near_misses=self.contexts(record, "near_misses"),
            lens=self.lens(record),
            together=[
                (int(other), float(share))
                for other, share in zip(record["together"], record["together_share"], strict=True)
                if share > 0
            ],
        )

    def contexts(self, record: np.void, kind: str) -> list[Context]:
        """The contexts of one of LISTS in a record; near misses only where they are near enough."""
        which = LISTS.index(kind)
        first, contexts = sum(self._sizes[:which]), []
        for i in range(first, first + int(record["found"][which])):
            offset = int(record["offset"][i])
            start = max(0, offset - self.window)
            size = min(self.context, offset + self.window + 1) - start
            ids = record["token"][i, :size]
            near = kind == "near_misses"
            if near and record["value"][i] < NEARLY * record["threshold"]:
                continue
            active = np.zeros(size, np.float16) if near else record["activation"][i, :size]
            contexts.append(
                Context(
                    int(record["block"][i]),
                    offset,
                    start,
                    float(record["value"][i]),
                    float(record["quantile"][i - first]) if kind == "quantiles" else None,
                    ids,
                    self.vocabulary.texts(ids),
                    active.astype(np.float32),
                )
            )
        return contexts

    def lens(self, record: np.void) -> list[Lens]:
        """The lenses in a record; the last one is at the feature's peak."""
        if "lens_site" not in (record.dtype.names or ()):
            return []
        lenses = []
        last = len(record["lens_site"]) - 1
        for i, number in enumerate(record["lens_site"]):
            site = self.sites[number]
            tokens, values = record["lens_token"][i], record["lens_value"][i]
            promoted, suppressed = (
                [
                    (self.vocabulary.one(token), int(token), float(value))
                    for token, value in zip(tokens[side], values[side], strict=True)
                ]
                for side in (0, 1)
            )
            strength = float(record["lens_strength"][i])
            place = (site.snapshot, site.layer, site.stream)
            lenses.append(Lens(*place, i == last, strength, promoted, suppressed))
        return lenses
