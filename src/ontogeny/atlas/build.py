"""The atlas stage: write the static site of one experiment."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ontogeny.atlas import pack
from ontogeny.atlas.gather import Contents, gather
from ontogeny.corpus.pieces import visible
from ontogeny.features.contexts import Context, Feature, Store
from ontogeny.analyses.dimensionality.measure import of_decoders
from ontogeny.features.histories import direction_cosines
from ontogeny.files import whole
from ontogeny.progress import bar
from ontogeny.settings import Settings

PAGE = Path(__file__).parent / "page"
SHARD = 64  # features in a file of their own; more would make the first feature slow
TEXT_FEATURES = 2048
TEXT_CONTEXTS, TEXT_BEFORE, TEXT_AFTER = 4, 12, 4  # of a feature, and tokens, that are searched
NEAR = 8  # nearest features
MATRIX = 40  # snapshots of a direction matrix, at most
NEAR_ENTRIES = 1 << 24  # cosines in memory at a time
MOST_WORDS = 1 << 16  # that two bytes number


def build(s: Settings, folder: str | Path, output: str | Path) -> None:
    """Write the atlas of a finished experiment.

    Parameters
    ----------
    folder : results/NAME. output : the site's folder; one that is there is replaced.

    Raises
    ------
    InputError : as `gather` does.
    """
    write(gather(s, folder), output)


def write(c: Contents, output: str | Path) -> None:
    """Write the site's files, whole or not at all."""
    with whole(output) as draft:
        shutil.copytree(PAGE, draft)
        L, steps = len(c.table), c.about["steps"]
        matrix = np.unique(np.linspace(0, len(steps) - 1, min(MATRIX, len(steps))).round())
        matrix = matrix.astype(int)
        tasks = list(c.attribution)
        pack.write(draft, "features", _columns(c))
        if tasks:
            pack.write(draft, "tasks", {name: _task(*c.attribution[name]) for name in tasks})
        D = of_decoders(c.decoders) if c.dimensionality else None
        near, near_cosine = nearest(c.stacked, NEAR)
        words = _Words()
        promoted: list[str] = []
        texts: list[list[str]] = []
        with bar("atlas: shards", L, "features") as progress:
            for low in range(0, L, SHARD):
                part = slice(low, min(low + SHARD, L))
                shard = _histories(c, part, matrix)
                if D is not None:
                    shard["dimensionality"] = pack.array(np.round(D[part].clip(0, 1) * 255), "u1")
                shard["near"] = pack.array(near[part], "u4")
                shard["near_cosine"] = pack.array(pack.signed(near_cosine[part]), "i2")
                if tasks:
                    shard["attribution"] = _attributions(c, part)
                if c.store is not None:
                    found = [c.store.feature(int(i)) for i in c.table["feature"].iloc[part]]
                    shard |= _contexts(c.store, found, words)
                    promoted += [_promoted(one) for one in found]
                    texts += [[_line(t) for t in one.top[:TEXT_CONTEXTS]] for one in found]
                pack.write(draft, f"shards/{low // SHARD}", pack.plain(shard))
                progress.update(part.stop - low)
        for low in range(0, len(texts), TEXT_FEATURES):
            some = slice(low, low + TEXT_FEATURES)
            value = {"promoted": promoted[some], "contexts": texts[some]}
            pack.write(draft, f"text/{low // TEXT_FEATURES}", value)
        if c.store is not None:
            pack.write(draft, "words", words.texts)
        about = c.about | {
            "living": L,
            "matrix": matrix,
            "shard": SHARD,
            "text_features": TEXT_FEATURES,
            "near": near.shape[1],
            "sites": [] if c.store is None else [site.snapshot for site in c.store.sites],
        }
        pack.write(draft, "experiment", pack.plain(about))


def _columns(c: Contents) -> dict[str, Any]:
    """The numbers that map and table need, of all features."""
    t = c.table
    flags = t["initialisation"] * 1 + t["emergent"] * 2 + t["transient"] * 4
    found = {
        "feature": pack.array(t["feature"], "u4"),
        "peak": pack.array(t["peak_snapshot_index"], "u2"),
        "class": pack.array(flags, "u1"),
    }
    floats = {"onset": "onset_step", "lifetime": "lifetime", "strength": "peak_strength"}
    floats |= {"density": "density", "cosine": "matched_cosine", "complexity": "span"}
    found |= {key: pack.array(t[name], "f4") for key, name in floats.items() if name in t}
    if "kind" in t:
        found["kind"] = pack.array([c.about["kinds"].index(kind) for kind in t["kind"]], "u1")
    return found


def _task(places: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    """A task's largest attributions."""
    at = np.nan_to_num(np.abs(values)).argmax(1)
    largest = values[np.arange(len(values)), at]
    return {
        "place": pack.array(places, "u4"),
        "value": pack.array(largest, "f4"),
        "at": pack.array(at, "u2"),
    }


def _histories(c: Contents, part: slice, matrix: np.ndarray) -> dict[str, Any]:
    """Strengths and directions of some features."""
    W = c.decoders[part]
    own = np.linalg.norm(W, axis=2)
    strength = np.concatenate([own[:, None], c.others[part]], 1)
    scale = np.nanmax(strength, axis=(1, 2))
    # The floor is of the largest strength over all snapshots, whichever the matrix shows.
    cosines = direction_cosines(W, c.direction_floor)[:, matrix][:, :, matrix]
    above = np.triu_indices(len(matrix), 1)
    return {
        "scale": scale,
        "strength": pack.array(pack.levels(strength, scale[:, None, None]), "u2"),
        "partner": c.partner[part],
        "cosine": pack.array(pack.cosines(cosines[:, above[0], above[1]]), "i1"),
    }


def nearest(stacked: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The features whose stacked decoders have the largest cosine with each one's.

    Parameters
    ----------
    stacked : (L, R).

    Returns
    -------
    places and cosines, (L, min(k, L − 1)), the nearest first.
    """
    unit = torch.nn.functional.normalize(stacked.float(), dim=1)
    L = len(unit)
    k = min(k, L - 1)
    place = np.zeros((L, k), np.int64)
    cosine = np.zeros((L, k), np.float32)
    step = max(1, NEAR_ENTRIES // L)
    for low in range(0, L, step):
        some = unit[low : low + step] @ unit.T
        rows = torch.arange(len(some))
        some[rows, low + rows] = -2
        best = some.topk(k, dim=1)
        place[low : low + step] = best.indices.numpy()
        cosine[low : low + step] = best.values.numpy()
    return place, cosine


def _attributions(c: Contents, part: slice) -> dict[str, Any]:
    """Attribution through time of some features: an entry a feature and task."""
    feature, task, values = [], [], []
    for number, (places, found) in enumerate(c.attribution.values()):
        low, high = np.searchsorted(places, [part.start, part.stop])
        feature += [places[low:high] - part.start]
        task += [np.full(high - low, number)]
        values += [found[low:high]]
    every = np.concatenate(values)
    scale = np.nan_to_num(np.abs(every)).max(1, initial=0, keepdims=True)
    return {
        "feature": pack.array(np.concatenate(feature), "u1"),
        "task": pack.array(np.concatenate(task), "u1"),
        "scale": pack.array(scale.ravel(), "f4"),
        "value": pack.array(pack.signed(every, scale), "i2"),
    }


class _Words:
    """Numbers the strings that tokens show as, in the order in which they are met."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._known: dict[str, int] = {}

    def __getitem__(self, text: str) -> int:
        number = self._known.get(text)
        if number is None:
            number = self._known[text] = len(self.texts)
            self.texts.append(visible(text))
        return number


def _contexts(store: Store, found: list[Feature], words: _Words) -> dict[str, Any]:
    """Contexts and lens of some features."""
    columns: dict[str, list[Any]] = {
        name: []
        for name in ("block", "offset", "position", "size", "value", "quantile", "word", "lit",
                     "where", "how")
    }  # fmt: skip
    counts = []
    for one in found:
        lists = (one.top, one.quantiles, one.near_misses)
        counts.append([len(each) for each in lists])
        largest = max((t.value for t in (*one.top, *one.quantiles)), default=0.0)
        for each in lists:
            for context in each:
                _add(columns, context, largest, words)
    tokens: dict[str, Any] = {}
    numbers = np.array(columns["word"], np.int64)
    if len(words.texts) > MOST_WORDS:
        own, numbers = np.unique(numbers, return_inverse=True)
        tokens["words"] = pack.array(own, "u4")
    tokens["word"] = pack.array(numbers, "u2")
    columns["quantile"] = pack.levels(np.array(columns["quantile"]), np.ones(1)).tolist()
    kinds = {"block": "u4", "value": "f4", "quantile": "u2", "how": "u1"}
    for name in ("block", "offset", "position", "size", "value", "quantile", "lit", "where", "how"):
        kind = kinds.get(name) or pack.smallest(columns[name])
        tokens[name] = pack.array(columns[name], kind)
    made = {
        "contexts": {"found": pack.array(counts, pack.smallest(counts)), **tokens},
        "active": [one.active for one in found],
        "mean": [one.mean for one in found],
        "threshold": [one.threshold for one in found],
    }
    if found and found[0].lens:
        made["lens"] = _lens(store, found, words)
    return made


def _add(columns: dict[str, list[Any]], one: Context, largest: float, words: _Words) -> None:
    """Append a context to the columns."""
    share = one.activations / max(largest, 1e-30)
    code = np.where(np.isnan(share), 255, np.round(np.nan_to_num(share).clip(0, 1) * 254))
    where = np.flatnonzero(code)
    columns["block"].append(one.block)
    columns["offset"].append(one.offset)
    columns["position"].append(one.offset - one.start)
    columns["size"].append(len(one.texts))
    columns["value"].append(one.value)
    columns["quantile"].append(np.nan if one.quantile is None else one.quantile)
    columns["word"] += [words[text] for text in one.texts]
    columns["lit"].append(len(where))
    columns["where"] += where.tolist()
    columns["how"] += code[where].tolist()


def _lens(store: Store, found: list[Feature], words: _Words) -> dict[str, Any]:
    """Promoted and suppressed tokens of some features; the last lens is the one at the peak."""
    number = {(x.snapshot, x.layer, x.stream): i for i, x in enumerate(store.sites)}
    site = [[number[x.step, x.layer, x.stream] for x in one.lens] for one in found]
    strength = np.array([[x.strength for x in one.lens] for one in found])
    sides = [[(x.promoted, x.suppressed) for x in one.lens] for one in found]
    word = [[[[words[t[0]] for t in side] for side in x] for x in one] for one in sides]
    value = np.array([[[[t[2] for t in side] for side in x] for x in one] for one in sides])
    scale = np.abs(value).max((1, 2, 3))
    return {
        "tokens": value.shape[3],
        "site": pack.array(site, "u2"),
        "strength": pack.array(np.round(strength.clip(0, 1) * 255), "u1"),
        "word": pack.array(word, pack.smallest(word)),
        "scale": scale,
        "value": pack.array(pack.signed(value, scale[:, None, None, None]), "i2"),
    }


def _promoted(one: Feature) -> str:
    """Tokens that a feature promotes most at its peak, to search in."""
    return (
        " ".join(visible(token[0]).strip() for token in one.lens[-1].promoted) if one.lens else ""
    )


def _line(one: Context) -> str:
    """Text around a position, to search in; tabs before and after the position's own token."""
    at = one.offset - one.start
    tokens = [visible(text) for text in one.texts]
    before, after = tokens[max(0, at - TEXT_BEFORE) : at], tokens[at + 1 : at + 1 + TEXT_AFTER]
    return "\t".join(["".join(before), tokens[at], "".join(after)])
