"""The induction stage: in which order heads, the copying gain and kinds of feature appear.

Each event has a curve e over snapshots, its excess over the baselines (heads.py). Its onset is the
first crossing of half the maximum, interpolated in log(step + 1), as for a feature:

    previous_token_head      value − chance of the head whose maximum is largest
    fixed_distance_head      the same, at half a block
    induction_head           value − max(chance, control), the median over distances
    duplicate_token_head     the same
    induction_head_text      the same for natural_induction
    copying_gain             in nats, at each distance and their median; _random: random tokens
    features                 the median of the onsets of a kind's features
    loss_unigram, _bigram    the crossing of the n-gram model's level, of the stage `phases`

The median over five distances excludes heads that attend, and models that copy, at only one or two
of them. A curve has the verdict 'none' and no onset if it never exceeds its margin (settings,
induction), or if its maximum does not differ from 0 over blocks of text. Intervals come from a
bootstrap over blocks of text, in which each sample chooses the best head again (for the kinds, over
features). They hold for this one training run, and no onset is known more precisely than the
snapshots on either side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ontogeny.analyses.induction.settings import Induction
from ontogeny.features.described import KINDS
from ontogeny.features.histories import normalise, onset
from ontogeny.files import InputError, read_hdf5, read_json, read_table, write_table
from ontogeny.settings import Settings

SAMPLES = 32  # bootstrap samples of all heads in memory at a time
LEAST_FEATURES = 5  # least number of features of a kind for its median onset
ARRAYS = ("value", "control", "chance", "count", "gain")  # fields of Sums


@dataclass
class Sums:
    """The sums per block that the heads stage wrote; shapes as in `heads.Measures`, n snapshots.

    value, control : (n, S, L, H, B). chance, count : (S, B). gain : (n, 2, D, B).
    """

    value: np.ndarray
    control: np.ndarray
    chance: np.ndarray
    count: np.ndarray
    gain: np.ndarray
    steps: np.ndarray
    scores: list[tuple[str, int]]
    distances: list[int]
    half: int


def read(path: Path) -> Sums:
    """Read what the heads stage wrote.

    Raises
    ------
    InputError : the file is damaged or does not exist.
    """
    with read_hdf5(path, "a file of heads") as file:
        arrays = {name: file[name][()].astype(np.float64) for name in ARRAYS}
        scores = zip(file.attrs["scores"], file.attrs["score_distances"], strict=True)
        return Sums(
            **arrays,
            steps=np.asarray(file.attrs["steps"]),
            scores=[(str(name), int(distance)) for name, distance in scores],
            distances=[int(distance) for distance in file.attrs["distances"]],
            half=int(file.attrs["half"]),
        )


def excess(sums: Sums, score: str, weights: np.ndarray, distances: list[int]) -> np.ndarray:
    """How far heads exceed chance and control, as the median over distances, (W, n, L·H).

    Parameters
    ----------
    weights : (W, B) how often each block counts.
    """
    n, _, L, H, B = sums.value.shape

    def weighted(of_score: np.ndarray) -> np.ndarray:
        return (weights @ of_score.reshape(n * L * H, B).T).reshape(-1, n, L * H)

    above = []
    for distance in distances:
        i = sums.scores.index((score, distance))
        total = np.maximum(weights @ sums.count[i], 1e-9)[:, None, None]
        level = (weights @ sums.chance[i])[:, None, None] / total
        if not np.isnan(sums.control[:, i]).any():
            level = np.maximum(level, weighted(sums.control[:, i]) / total)
        above.append(weighted(sums.value[:, i]) / total - level)
    return np.median(np.stack(above), axis=0)


@dataclass
class Event:
    """An event's curve and its bootstrap.

    detail : a head as 'layer.head' from 0, a distance in tokens, or ''. curve : (n,).
    samples : (samples, n).
    """

    name: str
    detail: str
    curve: np.ndarray
    samples: np.ndarray
    margin: float

    @property
    def forms(self) -> bool:
        """Whether the maximum exceeds its margin, and its bootstrap's 2.5% quantile exceeds 0."""
        best = int(self.curve.argmax())
        low = np.quantile(self.samples[:, best], 0.025)
        return bool(self.curve[best] >= self.margin and low > 0)


def head_events(sums: Sums, weights: np.ndarray, margin: float) -> Iterator[Event]:
    """The best head for each score; none if the model returned no attention weights.

    Parameters
    ----------
    weights : (samples, B) of the bootstrap.
    """
    n, _, L, H, B = sums.value.shape
    if not L * H:
        return
    of = {
        "previous_token_head": ("previous_token", [1]),
        "fixed_distance_head": ("fixed_distance", [sums.half]),
        "duplicate_token_head": ("duplicate_token", sums.distances),
        "induction_head": ("induction", sums.distances),
        "induction_head_text": ("natural_induction", [0]),
    }
    for name, (score, distances) in of.items():
        every = excess(sums, score, np.ones((1, B)), distances)[0]
        best = int(every.max(0).argmax())
        samples = np.empty((len(weights), n))
        for start in range(0, len(weights), SAMPLES):
            resampled = excess(sums, score, weights[start : start + SAMPLES], distances)
            chosen = resampled.max(1).argmax(1)
            each = np.arange(len(resampled))
            samples[start : start + SAMPLES] = resampled[each, :, chosen]
        yield Event(name, f"{best // H}.{best % H}", every[:, best], samples, margin)


def gain_events(sums: Sums, weights: np.ndarray, margin: float) -> Iterator[Event]:
    """The copying gain on text and on random tokens: the median over distances, then each."""
    B = sums.gain.shape[-1]
    for k, name in enumerate(("copying_gain", "copying_gain_random")):
        curves = sums.gain[:, k].mean(-1)  # (n, D)
        samples = np.einsum("wb,ndb->wnd", weights, sums.gain[:, k]) / B
        median = np.median(curves, -1), np.median(samples, -1)
        yield Event(name, "", *median, margin)
        for i, distance in enumerate(sums.distances):
            yield Event(name, str(distance), curves[:, i], samples[:, :, i], margin)


def onsets(curves: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """First crossing of half the maximum of each curve, (F,) steps; the maxima must be positive.

    Parameters
    ----------
    curves : (F, n).
    """
    return onset(normalise(curves), steps, 0.5)


def feature_rows(
    features: pd.DataFrame, kinds: pd.DataFrame, samples: int, rng: np.random.Generator
) -> Iterator[tuple[dict[str, object], np.ndarray]]:
    """Table rows for each kind, for all living features and the matched ones, and the bootstrap.

    Parameters
    ----------
    features : the features table; feature, alive, matched, onset_step. kinds : feature, kind.
    """
    known = features[features["alive"]].merge(kinds[["feature", "kind"]], on="feature")
    for kind in KINDS:
        of_kind = known[known["kind"] == kind]
        for group, part in (("all", of_kind), ("matched", of_kind[of_kind["matched"]])):
            at = part["onset_step"].to_numpy(dtype=float)
            row: dict[str, object] = {"event": "features", "detail": kind, "group": group}
            row |= {"count": len(at), "verdict": "none"}
            medians = np.empty(0)
            if len(at) >= LEAST_FEATURES:
                medians = np.median(at[rng.integers(0, len(at), (samples, len(at)))], 1)
                low, high = np.quantile(medians, [0.025, 0.975])
                row |= {"verdict": "forms", "onset_step": np.median(at), "low": low, "high": high}
                row["quartile_low"], row["quartile_high"] = np.quantile(at, [0.25, 0.75])
            yield row, medians


def level_rows(levels: dict[str, Any]) -> Iterator[dict[str, object]]:
    """Table rows for the steps at which the loss crosses the n-gram levels; they have no bootstrap.

    Parameters
    ----------
    levels : written by the phases stage; NAME_crossing_step is None if the loss stays above.
    """
    for name in ("unigram", "bigram"):
        step = levels[f"{name}_crossing_step"]
        row: dict[str, object] = {"event": f"loss_{name}", "detail": "", "verdict": "none"}
        yield row if step is None else row | {"verdict": "forms", "onset_step": step}


def measure(
    settings: Settings,
    sums: Path,
    levels: Path,
    features: Path | None,
    kinds: Path | None,
    table: Path,
    curves: Path,
) -> None:
    """Write the order of onsets, and the curves that they are computed from.

    Parameters
    ----------
    sums : HDF5 of the heads stage. levels : JSON of the phases stage.
    features, kinds : Parquet of the features' histories and of their kinds; None leaves the
        features out.
    table, curves : CSV; their columns are in the declaration.

    Raises
    ------
    InputError : the sums are damaged, or belong to other snapshots than those in the settings.
    """
    section, analysis = settings.section(Induction), settings.analysis
    measured = read(sums)
    steps = measured.steps
    if list(steps) != settings.snapshots.chosen:
        raise InputError(f"{sums}: made from other snapshots than snapshots.steps; make it again")
    B = measured.count.shape[1]
    rng = np.random.default_rng(analysis.seed)
    weights = rng.multinomial(B, np.full(B, 1 / B), analysis.bootstrap).astype(np.float64)
    rows: list[dict[str, object]] = []
    samples: list[np.ndarray] = []
    drawn = []
    for event in (
        *head_events(measured, weights, section.least_attention),
        *gain_events(measured, weights, section.least_gain),
    ):
        about = {"event": event.name, "detail": event.detail}
        row: dict[str, object] = {**about, "verdict": "none"}
        row |= {"maximum": event.curve.max(), "margin": event.margin}
        at = np.empty(0)
        if event.forms:
            at = onsets(event.samples[event.samples.max(1) > 0], steps)
            low, high = np.quantile(at, [0.025, 0.975])
            row["onset_step"] = onsets(event.curve[None], steps)[0]
            row |= {"verdict": "forms", "low": low, "high": high}
        rows.append(row)
        samples.append(at)
        low, high = np.quantile(event.samples, [0.025, 0.975], axis=0)
        points = {"snapshot_index": np.arange(1, len(steps) + 1), "step": steps}
        points |= {"value": event.curve, "low": low, "high": high}
        drawn.append(pd.DataFrame(about | points))
    for crossing in level_rows(read_json(levels)):
        rows.append(crossing)
        samples.append(np.empty(0))
    if features is not None and kinds is not None:
        tables = read_table(features), read_table(kinds)
        for row, at in feature_rows(*tables, analysis.bootstrap, rng):
            rows.append(row)
            samples.append(at)
    write_table(table, _ordered(rows, samples))
    write_table(curves, pd.concat(drawn, ignore_index=True))


def _ordered(rows: list[dict[str, object]], samples: list[np.ndarray]) -> pd.DataFrame:
    """The rows ordered by onset, each with the certainty that it precedes the next one."""
    names = ["event", "detail", "group", "count", "verdict", "maximum", "margin", "onset_step"]
    names += ["low", "high", "quartile_low", "quartile_high"]
    table = pd.DataFrame(rows).reindex(columns=names)
    table["count"] = table["count"].astype("Int64")
    at = table["onset_step"].to_numpy(dtype=float)
    order = np.argsort(at, kind="stable").tolist()  # events without an onset, NaN, come last
    table = table.iloc[order]
    before: list[float] = []
    for this, following in zip(order, [*order[1:], None], strict=True):
        a, b = samples[this], samples[following] if following is not None else np.empty(0)
        count = min(len(a), len(b))
        before.append(float((a[:count] < b[:count]).mean()) if count else float("nan"))
    return table.assign(before_next=before).reset_index(drop=True)
