"""The atlas stage: write the static site of one experiment."""

from __future__ import annotations

import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ontogeny.atlas import pack, passages, start
from ontogeny.atlas.gather import Contents, gather
from ontogeny.corpus.pieces import visible
from ontogeny.experiment import Experiment
from ontogeny.features.contexts import Context, Feature, Store
from ontogeny.features.described import DOUBTS, nearest
from ontogeny.features.histories import decoder_norms, direction_cosines
from ontogeny.files import whole
from ontogeny.progress import bar

PAGE = Path(__file__).parent / "page"
SHARD = 64  # features per file; more would make the first feature slow to load
TEXT_FEATURES = 2048
TEXT_CONTEXTS, TEXT_BEFORE, TEXT_AFTER = 4, 12, 4  # contexts and tokens that can be searched
NEAR = 8  # nearest features
MATRIX = 40  # most snapshots in a direction matrix
MOST_WORDS = 1 << 16  # number of words that two bytes can index


def build(experiment: Experiment) -> None:
    """Write the atlas of a finished experiment; an existing one is replaced.

    Raises
    ------
    InputError : as `gather` does.
    """
    write(gather(experiment), experiment.path("atlas"))


def write(contents: Contents, output: str | Path) -> None:
    """Write the site's files, whole or not at all."""
    with whole(output) as draft:
        shutil.copytree(PAGE, draft)
        table, store, steps = contents.table, contents.store, contents.about["steps"]
        L = len(table)
        matrix = np.linspace(0, len(steps) - 1, min(MATRIX, len(steps))).round()
        matrix = np.unique(matrix).astype(int)
        pack.write(draft, "features", _columns(contents))
        if contents.attribution:
            tasks = {name: _task(*given) for name, given in contents.attribution.items()}
            pack.write(draft, "tasks", tasks)
        strengths: list[np.ndarray] = []
        near, near_cosine = nearest(contents.stacked, NEAR)
        place = {int(number): i for i, number in enumerate(table["feature"])}
        words: dict[str, int] = {}  # texts of tokens, numbered in order of appearance
        promoted: list[str] = []
        texts: list[list[str]] = []
        values: list[list[float]] = []
        with bar("atlas: shards", L, "features") as progress:
            for low in range(0, L, SHARD):
                part = slice(low, min(low + SHARD, L))
                W = contents.decoders(part)
                strengths.append(decoder_norms(W))
                shard = _histories(contents, part, W, strengths[-1], matrix)
                if contents.dimensionality is not None:
                    shard["dimensionality"] = pack.shares(contents.dimensionality[part])
                shard["near"] = pack.array(near[part], "u4")
                shard["near_cosine"] = pack.signed(near_cosine[part])
                if contents.attribution:
                    shard["attribution"] = _attributions(contents, part)
                if store is not None:
                    features = [store.feature(int(i)) for i in table["feature"].iloc[part]]
                    shard |= _contexts(store, features, words)
                    shard["together"] = _together(features, place)
                    promoted += [_promoted(feature) for feature in features]
                    texts += [[_line(top) for top in f.top[:TEXT_CONTEXTS]] for f in features]
                    values += [[top.value for top in f.top[:TEXT_CONTEXTS]] for f in features]
                pack.write(draft, f"shards/{low // SHARD}", pack.plain(shard))
                progress.update(part.stop - low)
        strength = np.concatenate(strengths)
        for low in range(0, L, TEXT_FEATURES):
            high = low + TEXT_FEATURES
            own = strength[low:high]
            curves = pack.shares(own / own.max(1, keepdims=True))
            pack.write(draft, f"curves/{low // TEXT_FEATURES}", curves)
            if store is not None:
                text = {
                    "promoted": promoted[low:high],
                    "contexts": texts[low:high],
                    "values": pack.plain(values[low:high]),
                }
                pack.write(draft, f"text/{low // TEXT_FEATURES}", text)
        if contents.passages is not None:
            passages.write(draft, contents.passages, table["feature"].to_numpy(), steps)
        if store is not None:
            pack.write(draft, "words", [visible(text) for text in words])
        about = contents.about | {
            "living": L,
            "matrix": matrix,
            "shard": SHARD,
            "text_features": TEXT_FEATURES,
            "near": near.shape[1],
            "start": start.choose(table, contents.about["levels"], strength, store),
            "sites": [] if store is None else [site.snapshot for site in store.sites],
        }
        pack.write(draft, "experiment", pack.plain(about))


def _columns(contents: Contents) -> dict[str, Any]:
    """The numbers of all features that the map and the table need."""
    table = contents.table
    names = contents.about["classes"]
    flags = np.sum([table[name] * (1 << bit) for bit, name in enumerate(names)], axis=0)
    columns = {
        "feature": pack.array(table["feature"], "u4"),
        "peak": pack.array(table["peak_snapshot_index"], "u2"),
        "class": pack.array(flags, "u1"),
    }
    floats = {"onset": "onset_step", "lifetime": "lifetime", "strength": "peak_strength"}
    floats["settled"] = "settled_step"
    floats |= {"density": "density", "cosine": "matched_cosine", "complexity": "span"}
    columns["trusted"] = pack.array(table["trusted"], "u1")
    columns |= {key: pack.array(table[name], "f4") for key, name in floats.items() if name in table}
    if "doubtful" in table:
        doubts = np.sum([table[name] * (1 << bit) for bit, name in enumerate(DOUBTS)], axis=0)
        columns["doubts"] = pack.array(doubts, "u1")
    if "kind" in table:
        kinds = contents.about["kinds"]
        columns["kind"] = pack.array([kinds.index(kind) for kind in table["kind"]], "u1")
    return columns


def _task(places: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    """A task's largest attributions."""
    at = np.nan_to_num(np.abs(values)).argmax(1)
    return {
        "place": pack.array(places, "u4"),
        "value": pack.array(values[np.arange(len(values)), at], "f4"),
        "at": pack.array(at, "u2"),
    }


def _histories(
    contents: Contents, part: slice, W: np.ndarray, own: np.ndarray, matrix: np.ndarray
) -> dict[str, Any]:
    """Strengths and directions of some features, from their decoders and the decoders' norms."""
    strength = np.concatenate([own[:, None], contents.others[part]], 1)
    scale = np.nanmax(strength, axis=(1, 2))
    # The floor is relative to the largest strength over all snapshots, shown in the matrix or not.
    cosines = direction_cosines(W, contents.direction_floor)[:, matrix][:, :, matrix]
    above = np.triu_indices(len(matrix), 1)
    return {
        "scale": scale,
        "strength": pack.levels(strength, scale[:, None, None]),
        "partner": contents.partner[part],
        "cosine": pack.cosines(cosines[:, above[0], above[1]]),
    }


def _attributions(contents: Contents, part: slice) -> dict[str, Any]:
    """Attribution of some features through training: one entry per feature and task."""
    feature, task, values = [], [], []
    for number, (places, curves) in enumerate(contents.attribution.values()):
        low, high = np.searchsorted(places, [part.start, part.stop])
        feature += [places[low:high] - part.start]
        task += [np.full(high - low, number)]
        values += [curves[low:high]]
    every = np.concatenate(values)
    scale = np.nan_to_num(np.abs(every)).max(1, initial=0, keepdims=True)
    return {
        "feature": pack.array(np.concatenate(feature), "u1"),
        "task": pack.array(np.concatenate(task), "u1"),
        "scale": pack.array(scale.ravel(), "f4"),
        "value": pack.signed(every, scale),
    }


def _contexts(store: Store, features: list[Feature], words: dict[str, int]) -> dict[str, Any]:
    """Contexts and lens of some features."""
    names = ("block", "offset", "position", "size", "value", "quantile", "word", "lit", "where")
    columns: dict[str, list[Any]] = {name: [] for name in (*names, "how")}
    counts = []
    for feature in features:
        lists = (feature.top, feature.quantiles, feature.near_misses)
        counts.append([len(each) for each in lists])
        largest = max((t.value for t in (*feature.top, *feature.quantiles)), default=0.0)
        for context in chain(*lists):
            _add(columns, context, largest, words)
    tokens: dict[str, Any] = {"found": pack.array(counts)}
    numbers = np.array(columns.pop("word"), np.int64)
    if len(words) > MOST_WORDS:
        own, numbers = np.unique(numbers, return_inverse=True)
        tokens["words"] = pack.array(own, "u4")
    tokens["word"] = pack.array(numbers, "u2")
    tokens["quantile"] = pack.levels(np.array(columns.pop("quantile")))
    kinds = {"block": "u4", "value": "f4", "how": "u1"}
    tokens |= {name: pack.array(each, kinds.get(name, "")) for name, each in columns.items()}
    made = {
        "contexts": tokens,
        "active": [feature.active for feature in features],
        "mean": [feature.mean for feature in features],
        "threshold": [feature.threshold for feature in features],
    }
    if features and features[0].lens:
        made["lens"] = _lens(store, features, words)
    return made


def _together(features: list[Feature], place: dict[int, int]) -> dict[str, Any]:
    """The features that are active at the same positions as each, and their shares.

    Parameters
    ----------
    place : of each feature in the atlas; others are left out.
    """
    shown = [[pair for pair in feature.together if pair[0] in place] for feature in features]
    pairs = list(chain(*shown))
    return {
        "found": pack.array([len(each) for each in shown]),
        "place": pack.array([place[other] for other, _ in pairs], "u4"),
        "share": pack.levels(np.array([share for _, share in pairs])),
    }


def _add(
    columns: dict[str, list[Any]], context: Context, largest: float, words: dict[str, int]
) -> None:
    """Append a context to the columns."""
    share = context.activations / max(largest, 1e-30)
    code = np.where(np.isnan(share), 255, np.round(np.nan_to_num(share).clip(0, 1) * 254))
    where = np.flatnonzero(code)
    columns["block"].append(context.block)
    columns["offset"].append(context.offset)
    columns["position"].append(context.offset - context.start)
    columns["size"].append(len(context.texts))
    columns["value"].append(context.value)
    columns["quantile"].append(np.nan if context.quantile is None else context.quantile)
    columns["word"] += [words.setdefault(text, len(words)) for text in context.texts]
    columns["lit"].append(len(where))
    columns["where"] += where.tolist()
    columns["how"] += code[where].tolist()


def _lens(store: Store, features: list[Feature], words: dict[str, int]) -> dict[str, Any]:
    """Promoted and suppressed tokens of some features; the last lens is the one at the peak."""
    number = {(x.snapshot, x.layer, x.stream): i for i, x in enumerate(store.sites)}
    lenses = [lens for feature in features for lens in feature.lens]
    strength = np.array([lens.strength for lens in lenses])
    tokens = [token for x in lenses for side in (x.promoted, x.suppressed) for token in side]
    word = [words.setdefault(text, len(words)) for text, _, _ in tokens]
    value = np.array([logit for _, _, logit in tokens])
    value = value.reshape(len(features), len(features[0].lens), 2, -1)
    scale = np.abs(value).max((1, 2, 3))
    return {
        "tokens": value.shape[3],
        "site": pack.array([number[x.step, x.layer, x.stream] for x in lenses], "u2"),
        "strength": pack.shares(strength),
        "word": pack.array(word),
        "scale": scale,
        "value": pack.signed(value, scale[:, None, None, None]),
    }


def _promoted(feature: Feature) -> str:
    """The tokens that a feature promotes most at its peak, as text to search in."""
    if not feature.lens:
        return ""
    return " ".join(visible(text).strip() for text, _, _ in feature.lens[-1].promoted)


def _line(context: Context) -> str:
    """The text around a position, to search in and to show."""
    return start.line(context, TEXT_BEFORE, TEXT_AFTER)
