"""Do a task's most important features carry it? Necessity and sufficiency (docs/method.md 7).

    necessity    m when the k most important features have their corrupted values, and everything
                 else, including the error node, its clean one
    sufficiency  m when the k most important features have their clean values, and everything else,
                 including the error node, its corrupted one
    restored     (m − m(ã)) / (m(a) − m(ã)), of means over pairs: 1 is clean, 0 is corrupted

k goes from 0 to all A features that differ between the prompts. The last point adds the error node:
necessity is then the corrupted value, and sufficiency the clean one.

Importance is |attr|, since a feature that supports the wrong answer is part of the computation too.
Curves ranked by attr with its sign (`signed`, for comparison) overshoot and return. A pair uses
the ranking of the *other* half of the pairs, so that no feature is selected by its effect in the
prompts that test it.

The baselines are k features drawn at random from the A (`random`), and k from outside the top k
that differ as often as these (`matched`; where 2k ≤ A). They show how special the top features are.
"""

from __future__ import annotations

from bisect import bisect_left
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ontogeny import devices
from ontogeny.analyses.circuits import attribution as attributed
from ontogeny.analyses.circuits.downstream import Metric, measured, of
from ontogeny.analyses.circuits.settings import Circuits
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.files import InputError, read_table, write_table
from ontogeny.progress import bar
from ontogeny.settings import Settings

SIDES = ("necessity", "sufficiency")
GROUPS = ("absolute", "signed", "random", "matched")
INTERVAL = (0.025, 0.975)
ENOUGH = 0.8  # share of the difference between clean and corrupted that counts as enough
SUMMED = ("k_enough", "features_alone", "area_random", "area_matched")
POINT = ["side", "group", "k", "error", "frequency", "m", "m_low", "m_high"]
POINT += ["restored", "restored_low", "restored_high"]


class Splice:
    """The site's values with the differences of some features removed or inserted.

    Parameters
    ----------
    clean, corrupted : (P, T, d). value, where : a task's differences, (E,) and (3, E).
    W : (A, d) decoders in the model's units. half : (P,) of 0 and 1.
    """

    def __init__(
        self,
        clean: torch.Tensor,
        corrupted: torch.Tensor,
        value: torch.Tensor,
        where: torch.Tensor,
        W: torch.Tensor,
        half: torch.Tensor,
    ) -> None:
        self.clean, self.corrupted, self._W = clean, corrupted, W
        pair, position, self._column = where
        rows = pair * clean.shape[1] + position
        self._at = torch.stack([rows, self._column])
        self._value, self._half = value, half[pair]
        everything = torch.ones(2, len(W), dtype=torch.bool, device=W.device)
        self._error = clean - corrupted - self._of(everything)

    def _of(self, inside: torch.Tensor) -> torch.Tensor:
        """The contribution of features to clean − corrupted, (P, T, d)."""
        P, T, d = self.clean.shape
        value = self._value * inside[self._half, self._column]
        size = (P * T, len(self._W))
        # The entries of a position are adjacent, in the order of their features.
        change = torch.sparse_coo_tensor(
            self._at, value, size, is_coalesced=True, check_invariants=False
        )
        return torch.sparse.mm(change, self._W).view(P, T, d)

    def values(self, inside: torch.Tensor, error: bool = False) -> torch.Tensor:
        """Values for necessity and for sufficiency with a set of features, (2, P, T, d).

        Parameters
        ----------
        inside : (2, A) bool, the set for the pairs of each half. error : whether to include the
            error node.
        """
        change = self._of(inside)
        if error:
            change = change + self._error
        return torch.stack([self.clean - change, self.corrupted + change])


def grid(features: int, points: int) -> list[int]:
    """Numbers of features k from 1 to all, evenly spaced on a log axis."""
    if features < 1:
        return []
    return sorted({round(k) for k in np.geomspace(1, features, points)})


def matched(top: np.ndarray, frequency: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Equally many other features, each with the closest frequency to one of `top` still available.

    Parameters
    ----------
    top : (k,) of A features, k ≤ A / 2. frequency : (A,).
    """
    jitter = frequency * (1 + 1e-6 * rng.random(len(frequency)))  # ties in random order
    rest = np.setdiff1d(np.arange(len(frequency)), top)
    rest = rest[np.argsort(jitter[rest])]
    numbers, values = rest.tolist(), jitter[rest].tolist()
    partners = []
    for feature in rng.permutation(top):
        at = bisect_left(values, jitter[feature])
        if at == len(values) or (
            at > 0 and jitter[feature] - values[at - 1] < values[at] - jitter[feature]
        ):
            at -= 1
        partners.append(numbers.pop(at))
        values.pop(at)
    return np.array(partners, np.int64)


def sets(
    rankings: np.ndarray, frequency: np.ndarray, k: int, draws: int, rng: np.random.Generator
) -> dict[str, list[np.ndarray]]:
    """The features to ablate together, by group, one set per draw; each (2, k).

    Parameters
    ----------
    rankings : (2, A) attr of the features, for the pairs of each half (computed on the other one).
    """
    A = rankings.shape[1]
    top = np.stack([attributed.order(attr)[:k] for attr in rankings])
    signed = np.stack([np.argsort(-attr, kind="stable")[:k] for attr in rankings])
    random = [rng.choice(A, k, replace=False) for _ in range(draws)]
    by_group = {"absolute": [top], "signed": [signed], "random": [np.stack([r, r]) for r in random]}
    if 2 * k <= A:
        by_group["matched"] = [
            np.stack([matched(each, frequency, rng) for each in top]) for _ in range(draws)
        ]
    return by_group


def measure_curves(
    m: Metric, splice: Splice, rankings: np.ndarray, frequency: np.ndarray, section: Circuits
) -> list[dict[str, Any]]:
    """m of every pair along the curves: side, group, k, error, frequency, and m (draws, P).

    Parameters
    ----------
    rankings : (2, A), as for `sets`. frequency : (A,).
    """
    A = rankings.shape[1]
    device = splice.clean.device
    rng = np.random.default_rng(section.seed)
    rows: list[dict[str, Any]] = []

    def look(by_group: dict[str, list[np.ndarray]], k: int, error: bool = False) -> None:
        for group, draws in by_group.items():
            values = []
            for features in draws:
                inside = np.zeros((2, A), bool)
                np.put_along_axis(inside, features, True, 1)
                spliced = splice.values(torch.from_numpy(inside).to(device), error)
                values.append(measured(m, spliced).double().cpu().numpy())
            often = float(np.mean([frequency[features].mean() for features in draws])) if k else 0.0
            for side, each in zip(SIDES, np.stack(values, 1), strict=True):
                about = {"side": side, "group": group, "k": k, "error": error, "frequency": often}
                rows.append({**about, "m": each})

    everything = np.tile(np.arange(A), (2, 1))
    # k = 0 and k = A give the same sets in all groups.
    look({"absolute": [everything[:, :0]]}, 0)
    for k in grid(A, section.curve_points)[:-1]:
        look(sets(rankings, frequency, k, section.draws, rng), k)
    look({"absolute": [everything]}, A)
    look({"absolute": [everything]}, A, error=True)
    shared = [row for row in rows if row["k"] in (0, A)]
    for group in ("signed", "random"):
        rows += [{**row, "group": group} for row in shared]
    rows += [{**row, "group": "matched"} for row in shared if row["k"] == 0]
    return sorted(
        rows,
        key=lambda row: (
            SIDES.index(row["side"]), GROUPS.index(row["group"]), row["k"], row["error"],
        ),
    )  # fmt: skip


def _sampled(values: np.ndarray, pairs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means of values (draws, P) over resampled pairs, with weights (samples, P), and draws."""
    draws = len(values)
    drawn = rng.multinomial(draws, np.full(draws, 1 / draws), len(pairs)) / draws
    return np.asarray(((pairs @ values.T) * drawn).sum(1))


def _crossing(k: np.ndarray, restored: np.ndarray) -> np.ndarray:
    """Where curves (samples, K) first reach ENOUGH, interpolated in log(k + 1); inf if nowhere."""
    x = np.log1p(k)
    above = restored >= ENOUGH
    first = above.argmax(1)
    crossing = np.full(len(restored), np.inf)
    crossing[above[:, 0]] = k[0]
    inside = np.flatnonzero(above.any(1) & (first > 0))
    i = first[inside]
    low, high = restored[inside, i - 1], restored[inside, i]
    share = (ENOUGH - low) / (high - low)
    crossing[inside] = np.expm1(x[i - 1] + share * (x[i] - x[i - 1]))
    return crossing


def _area(k: np.ndarray, between: np.ndarray) -> np.ndarray:
    """Mean height of curves (samples, K) over log(k + 1)."""
    x = np.log1p(k)
    return np.asarray(np.trapezoid(between, x, axis=1) / max(float(x[-1] - x[0]), 1e-30))


def summarise(
    rows: list[dict[str, Any]], sampled: np.ndarray, done: bool, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Curves with their intervals, and the numbers that summarise them, for a task at a snapshot.

    Parameters
    ----------
    rows : from `measure_curves`. sampled : bootstrap weights of the pairs, (samples, P).
    done : whether the snapshot can do the task; if not, nothing is divided by its difference.

    Returns
    -------
    Rows of curves.csv and of circuits.csv, whose columns are in the declaration.
    """
    rng = np.random.default_rng(seed)
    ends = {
        row["side"]: row["m"][0] for row in rows if row["k"] == 0 and row["group"] == "absolute"
    }
    clean, corrupted = ends["necessity"], ends["sufficiency"]
    span, span_sampled = (clean - corrupted).mean(), sampled @ (clean - corrupted)
    table = []
    restored: dict[tuple[str, str], dict[int, np.ndarray]] = {}
    for row in rows:
        mean, means = row["m"].mean(), _sampled(row["m"], sampled, rng)
        low, high = np.quantile(means, INTERVAL)
        point = row | {"m": mean, "m_low": low, "m_high": high}
        if done:
            value = (mean - corrupted.mean()) / span
            values = (means - sampled @ corrupted) / span_sampled
            low, high = np.quantile(values, INTERVAL)
            point |= {"restored": value, "restored_low": low, "restored_high": high}
            if not row["error"]:
                share = np.r_[value, values]
                restored.setdefault((row["side"], row["group"]), {})[row["k"]] = share
        table.append(point)
    summary = [_summary(side, restored) for side in SIDES]
    return pd.DataFrame(table).reindex(columns=POINT), pd.DataFrame(summary)


def _summary(side: str, restored: dict[tuple[str, str], dict[int, np.ndarray]]) -> dict[str, Any]:
    """The row of a side; the first of each array is the value, the rest are bootstrap samples."""
    numbers: dict[str, np.ndarray] = {}
    top = restored.get((side, "absolute"))
    if top:
        sign = 1 if side == "sufficiency" else -1
        k = np.array(sorted(top))
        shares = np.stack([top[i] for i in k], 1)
        numbers["k_enough"] = _crossing(k, shares if sign > 0 else 1 - shares)
        numbers["features_alone"] = top[int(k[-1])]
        for group in ("random", "matched"):
            other = restored[side, group]
            k = np.array(sorted(other))
            gap = np.stack([sign * (top[i] - other[i]) for i in k], 1)
            numbers[f"area_{group}"] = _area(k, gap) if len(k) > 1 else np.full(len(gap), np.nan)
    row: dict[str, Any] = {"side": side}
    for name in SUMMED:
        values = numbers.get(name, np.full(2, np.nan))
        row[name] = values[0] if np.isfinite(values[0]) else np.nan
        # Order statistics, since a sample may be infinite.
        low, high = np.quantile(values[1:], INTERVAL, method="inverted_cdf")
        row |= {f"{name}_low": low, f"{name}_high": high}
    return row


def chosen(snapshots: int, count: int) -> list[int]:
    """Indices from 0 of the snapshots with curves: evenly spaced, including the last one."""
    count = min(count, snapshots)
    return sorted({round(snapshots * (i + 1) / count) - 1 for i in range(count)})


def measure(
    settings: Settings,
    crosscoder: Path,
    snapshots: Path,
    tasks: Path,
    behaviour: Path,
    attribution: Path,
    differences: Path,
    curves: Path,
    summary: Path,
) -> None:
    """Write the curves of every task at some snapshots.

    Parameters
    ----------
    crosscoder, snapshots, tasks, behaviour, attribution, differences : as for
        `attribution.measure`.
    curves, summary : CSV, one row per point of a curve, and one per task, snapshot and side; their
        columns are in the declaration.

    Raises
    ------
    InputError : the input is damaged, the tasks belong to other tokens, or the tables come from
        different runs.
    """
    section = settings.section(Circuits)
    device = devices.choose(settings.device)
    trained = Crosscoder.load(crosscoder, device)
    given = attributed.checked(trained, crosscoder, tasks)
    done = read_table(behaviour).set_index(["task", "step"])["done"]
    table = read_table(attribution)
    outputs = trained.about.outputs
    at = chosen(len(outputs), section.curve_snapshots) if given else []
    points: list[pd.DataFrame] = []
    sums: list[pd.DataFrame] = []
    with bar("ablation", len(at) * len(given), "tasks") as progress:
        for site in at:
            step, layer, stream = outputs[site]
            number = settings.snapshots.number(step)
            model = attributed.load(settings, snapshots, step, device)
            features = table[(table["step"] == step) & (table["feature"] != attributed.ERROR)]
            for task in given:
                difference = attributed.read_differences(differences, task.name)
                ranked = features[features["task"] == task.name]
                if list(ranked["feature"]) != list(difference.features):
                    raise InputError(
                        f"{differences.parent}: attribution.parquet and differences.h5 come from "
                        "different runs; delete them to make them again"
                    )
                nothing = attributed.baseline(trained, site, device)
                m, pairs = of(model, layer, stream, task, nothing), len(task.clean)
                W = attributed.decoders(trained, site, difference.features, device)
                half = torch.from_numpy(attributed.halves(pairs)).to(device)
                splice = Splice(m.clean, m.corrupted, *difference.on_device(site, device), W, half)
                rankings = ranked[["second_half", "first_half"]].to_numpy().T
                rows = measure_curves(m, splice, rankings, difference.frequency(pairs), section)
                sampled = attributed.weights(pairs, settings.analysis.bootstrap, section.seed)
                can = bool(done.loc[task.name, step])
                curve, numbers = summarise(rows, sampled, can, section.seed)
                about: dict[str, Any] = {"task": task.name, "snapshot_index": number, "step": step}
                points.append(curve.assign(**about))
                counts: dict[str, Any] = {"done": can, "features": len(difference.features)}
                sums.append(numbers.assign(**about, **counts))
                progress.update()
    leading = ["task", "snapshot_index", "step"]
    for path, tables, columns, rest in (
        (curves, points, leading, POINT),
        (summary, sums, [*leading, "done", "features"], ["side", *SUMMED]),
    ):
        tables = tables or [pd.DataFrame(columns=[*columns, *rest])]
        whole = attributed.columns_first(tables, columns)
        write_table(path, attributed.in_task_order(whole, given))
