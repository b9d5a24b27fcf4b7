"""Do the features that attribution names carry a task? Necessity and sufficiency (METHOD.md 7).

    necessity    m when the k most important features have their corrupted values, and everything
                 else, error node included, its clean one
    sufficiency  m when the k most important features have their clean values, and everything else,
                 error node included, its corrupted one
    restored     (m − m(ã)) / (m(a) − m(ã)), of means over pairs: 1 is as clean, 0 as corrupted

k goes from 0 to all A features that differ between the prompts, and then to all with the error
node, where necessity is the corrupted value and sufficiency the clean one.

Importance is |attr|: a feature that speaks for the wrong answer is part of what a model does, too.
Ranked by attr with its sign, curves overshoot and come back (`signed`, beside it). The ranking of a
pair is that of the *other* half of the pairs, so that no feature is chosen by what it did in the
prompts it is judged on.

Beside them stand k features drawn at random from the A (`random`), and k from outside the top k,
each as often different as one of these (`matched`; where 2k ≤ A): how special are those features?
"""

from __future__ import annotations

from bisect import bisect_left
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ontogeny import devices
from ontogeny.circuits import attribution
from ontogeny.circuits.attribution import Difference
from ontogeny.circuits.downstream import Downstream, Metric, measured
from ontogeny.circuits.tasks import Task
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.files import InputError, write_table
from ontogeny.progress import bar
from ontogeny.settings import Circuits, Settings
from ontogeny.snapshots import sites

SIDES = ("necessity", "sufficiency")
ENOUGH = 0.8  # of the difference between clean and corrupted


class Splice:
    """The site's values with some features' differences taken away or put in.

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
        """What features contribute to clean − corrupted, (P, T, d)."""
        P, T, d = self.clean.shape
        value = self._value * inside[self._half, self._column]
        size = (P * T, len(self._W))
        # A position's entries stand together, in the order of their features.
        change = torch.sparse_coo_tensor(
            self._at, value, size, is_coalesced=True, check_invariants=False
        )
        return torch.sparse.mm(change, self._W).view(P, T, d)

    def values(self, inside: torch.Tensor, error: bool = False) -> torch.Tensor:
        """Values for necessity and for sufficiency of a set of features, (2, P, T, d).

        Parameters
        ----------
        inside : (2, A) bool, the set for pairs of either half. error : the error node with them.
        """
        change = self._of(inside)
        if error:
            change = change + self._error
        return torch.stack([self.clean - change, self.corrupted + change])


def grid(features: int, points: int) -> list[int]:
    """Numbers of features k from 1 to all, evenly apart on a log axis."""
    if features < 1:
        return []
    return sorted({round(k) for k in np.geomspace(1, features, points)})


def matched(top: np.ndarray, frequency: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As many other features, each of a frequency as near to one of `top` as there still is.

    Parameters
    ----------
    top : (k,) of A features, k ≤ A / 2. frequency : (A,).
    """
    jitter = frequency * (1 + 1e-6 * rng.random(len(frequency)))  # equal ones in random order
    rest = np.setdiff1d(np.arange(len(frequency)), top)
    rest = rest[np.argsort(jitter[rest])]
    numbers, values = rest.tolist(), jitter[rest].tolist()
    found = []
    for feature in rng.permutation(top):
        at = bisect_left(values, jitter[feature])
        if at == len(values) or (
            at > 0 and jitter[feature] - values[at - 1] < values[at] - jitter[feature]
        ):
            at -= 1
        found.append(numbers.pop(at))
        values.pop(at)
    return np.array(found, np.int64)


def sets(
    rankings: np.ndarray, frequency: np.ndarray, k: int, draws: int, rng: np.random.Generator
) -> dict[str, list[np.ndarray]]:
    """The features that are ablated together, by group, one set a draw; each (2, k).

    Parameters
    ----------
    rankings : (2, A) attr of the features for the pairs of either half (from the other one).
    """
    A = rankings.shape[1]
    top = np.stack([attribution.order(attr)[:k] for attr in rankings])
    signed = np.stack([np.argsort(-attr, kind="stable")[:k] for attr in rankings])
    found = {"absolute": [top], "signed": [signed]}
    one = [rng.choice(A, k, replace=False) for _ in range(draws)]
    found["random"] = [np.stack([features, features]) for features in one]
    if 2 * k <= A:
        found["matched"] = [
            np.stack([matched(each, frequency, rng) for each in top]) for _ in range(draws)
        ]
    return found


def curves(
    m: Metric, splice: Splice, rankings: np.ndarray, frequency: np.ndarray, c: Circuits
) -> list[dict[str, Any]]:
    """m of every pair along the curves: side, group, k, error, frequency, m (draws, P).

    Parameters
    ----------
    rankings : (2, A), as for `sets`. frequency : (A,).
    """
    A = rankings.shape[1]
    device = splice.clean.device
    rng = np.random.default_rng(c.seed)
    found: list[dict[str, Any]] = []

    def look(chosen: dict[str, list[np.ndarray]], k: int, error: bool = False) -> None:
        for group, draws in chosen.items():
            values = []
            for features in draws:
                inside = np.zeros((2, A), bool)
                np.put_along_axis(inside, features, True, 1)
                spliced = splice.values(torch.from_numpy(inside).to(device), error)
                values.append(measured(m, spliced).double().cpu().numpy())
            often = float(np.mean([frequency[features].mean() for features in draws])) if k else 0.0
            for i, side in enumerate(SIDES):
                each = np.stack([value[i] for value in values])
                about = {"side": side, "group": group, "k": k, "error": error, "frequency": often}
                found.append({**about, "m": each})

    nothing = np.zeros((2, 0), np.int64)
    everything = np.tile(np.arange(A), (2, 1))
    groups = ("absolute", "signed", "random", "matched")
    # Nothing and everything are the same for all groups.
    look({"absolute": [nothing]}, 0)
    for k in grid(A, c.curve_points)[:-1]:
        look(sets(rankings, frequency, k, c.draws, rng), k)
    look({"absolute": [everything]}, A)
    look({"absolute": [everything]}, A, error=True)
    shared = [row for row in found if row["k"] in (0, A)]
    for group in groups[1:3]:
        found += [{**row, "group": group} for row in shared]
    found += [{**row, "group": "matched"} for row in shared if row["k"] == 0]
    return sorted(
        found,
        key=lambda row: (
            SIDES.index(row["side"]), groups.index(row["group"]), row["k"], row["error"],
        ),
    )  # fmt: skip


def _sampled(values: np.ndarray, pairs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means of values (draws, P) over resampled pairs, with weights (samples, P), and draws."""
    draws = len(values)
    chosen = rng.multinomial(draws, np.full(draws, 1 / draws), len(pairs)) / draws
    found: np.ndarray = ((pairs @ values.T) * chosen).sum(1)
    return found


def _crossing(k: np.ndarray, restored: np.ndarray) -> np.ndarray:
    """Where curves (samples, K) first reach ENOUGH, interpolated in log(k + 1); inf: nowhere."""
    x = np.log1p(k)
    above = restored >= ENOUGH
    first = above.argmax(1)
    found = np.full(len(restored), np.inf)
    found[above[:, 0]] = k[0]
    inside = np.flatnonzero(above.any(1) & (first > 0))
    i = first[inside]
    low, high = restored[inside, i - 1], restored[inside, i]
    share = (ENOUGH - low) / (high - low)
    found[inside] = np.expm1(x[i - 1] + share * (x[i] - x[i - 1]))
    return found


def _area(k: np.ndarray, between: np.ndarray) -> np.ndarray:
    """Mean height of curves (samples, K) over log(k + 1)."""
    x = np.log1p(k)
    found: np.ndarray = np.trapezoid(between, x, axis=1) / max(float(x[-1] - x[0]), 1e-30)
    return found


def summarise(
    rows: list[dict[str, Any]], sampled: np.ndarray, done: bool, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Curves with their intervals, and the numbers that sum them up, for a task at a snapshot.

    Parameters
    ----------
    rows : as `curves` gives them. sampled : bootstrap weights of the pairs, (samples, P).
    done : whether the snapshot does the task; where not, nothing is set against its difference.

    Returns
    -------
    curves : side, group, k, error, frequency, m, m_low, m_high, restored, restored_low,
        restored_high.
    summary : a row a side; k_enough, features_alone, area_random and area_matched, each with _low
        and _high.
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
        mean, at = row["m"].mean(), _sampled(row["m"], sampled, rng)
        low, high = np.quantile(at, [0.025, 0.975])
        found = {key: row[key] for key in ("side", "group", "k", "error", "frequency")}
        found |= {"m": mean, "m_low": low, "m_high": high}
        if done:
            share = np.concatenate(
                [[(mean - corrupted.mean()) / span], (at - sampled @ corrupted) / span_sampled]
            )
            found["restored"] = share[0]
            found["restored_low"], found["restored_high"] = np.quantile(share[1:], [0.025, 0.975])
            if not row["error"]:
                restored.setdefault((row["side"], row["group"]), {})[row["k"]] = share
        table.append(found)
    columns = ["side", "group", "k", "error", "frequency", "m", "m_low", "m_high"]
    columns += ["restored", "restored_low", "restored_high"]
    summary = [_summary(side, restored) for side in SIDES]
    return pd.DataFrame(table).reindex(columns=columns), pd.DataFrame(summary)


SUMMED = ("k_enough", "features_alone", "area_random", "area_matched")


def _summary(side: str, restored: dict[tuple[str, str], dict[int, np.ndarray]]) -> dict[str, Any]:
    """A side's row; the first of each array is the value, the rest are bootstrap samples."""
    found: dict[str, Any] = {"side": side}
    numbers: dict[str, np.ndarray] = {}
    top = restored.get((side, "absolute"))
    if top:
        sign = 1 if side == "sufficiency" else -1
        done = {k: share if sign > 0 else 1 - share for k, share in top.items()}
        k = np.array(sorted(done))
        numbers["k_enough"] = _crossing(k, np.stack([done[i] for i in k], 1))
        numbers["features_alone"] = top[int(k[-1])]
        for group in ("random", "matched"):
            other = restored[side, group]
            k = np.array(sorted(other))
            gap = np.stack([sign * (top[i] - other[i]) for i in k], 1)
            numbers[f"area_{group}"] = _area(k, gap) if len(k) > 1 else np.full(len(gap), np.nan)
    for name in SUMMED:
        values = numbers.get(name, np.full(2, np.nan))
        found[name] = values[0] if np.isfinite(values[0]) else np.nan
        # Order statistics, since a sample may lie at infinity.
        found[f"{name}_low"], found[f"{name}_high"] = (
            np.quantile(values[1:], q, method="inverted_cdf") for q in (0.025, 0.975)
        )
    return found


def chosen(snapshots: int, count: int) -> list[int]:
    """Indices from 0 of snapshots with curves: evenly apart in number, the last among them."""
    count = min(count, snapshots)
    return sorted({round(snapshots * (i + 1) / count) - 1 for i in range(count)})


def describe(
    s: Settings,
    crosscoder: str | Path,
    snapshots: str | Path,
    tasks: str | Path,
    folder: str | Path,
    output: str | Path,
    summary: str | Path,
) -> None:
    """Write the curves of every task at some snapshots.

    Parameters
    ----------
    crosscoder, snapshots, tasks : as for `attribution.describe`. folder : what that wrote.
    output : CSV; task, snapshot_index, step, side, group (absolute, signed, random, matched), k,
        error (the error node is among those ablated), frequency (positions of a pair at which the
        features differ, in the mean), m with m_low and m_high (nats, 95% over pairs and draws),
        restored with restored_low and restored_high (empty where the snapshot does not do the
        task).
    summary : CSV; task, snapshot_index, step, done, features, side, and with _low and _high:
        k_enough (the k from which 80% of the difference is restored, or for necessity gone; empty:
        never by features alone; high may be inf), features_alone (restored with all features but
        the error node), area_random and area_matched (mean height over log(k + 1) between the
        curve and those of other features).
    """
    c = s.circuits
    device = devices.choose(s.device)
    trained = Crosscoder.load(crosscoder, device)
    given = attribution.checked(trained, crosscoder, tasks)
    folder = Path(folder)
    done = pd.read_csv(folder / "behaviour.csv").set_index(["task", "step"])["done"]
    attributed = pd.read_parquet(folder / "attribution.parquet")
    outputs = trained.about.outputs
    at = chosen(len(outputs), c.curve_snapshots)
    found: list[pd.DataFrame] = []
    sums: list[pd.DataFrame] = []
    with bar("ablation", len(at) * len(given), "tasks") as progress:
        for site in at:
            step, layer, stream = outputs[site]
            here = attributed[(attributed["step"] == step) & (attributed["feature"] >= 0)]
            remote = s.snapshots.remote_code
            model = sites.load_model(Path(snapshots) / f"step{step}", device, torch.float32, remote)
            for task in given:
                difference = attribution.read_differences(folder / "differences.h5", task.name)
                table = here[here["task"] == task.name]
                if list(table["feature"]) != list(difference.features):
                    raise InputError(
                        f"{folder}: attribution.parquet and differences.h5 are of two runs; delete "
                        "them to make them again"
                    )
                m = Downstream(model, layer, stream, task)
                splice = _splice(trained, site, task, difference, m)
                rankings = table[["second_half", "first_half"]].to_numpy().T
                frequency = difference.frequency(len(task.clean))
                rows = curves(m, splice, rankings, frequency, c)
                sampled = attribution.weights(len(task.clean), s.analysis.bootstrap, c.seed)
                can = bool(done.loc[task.name, step])
                curve, numbers = summarise(rows, sampled, can, c.seed)
                when: dict[str, Any] = {"task": task.name, "step": step}
                when["snapshot_index"] = s.snapshots.chosen.index(step) + 1
                found.append(curve.assign(**when))
                counts: dict[str, Any] = {"done": can, "features": len(difference.features)}
                sums.append(numbers.assign(**when, **counts))
                progress.update()
    names = [task.name for task in given]
    first = ["task", "snapshot_index", "step"]
    _write(output, found, first, names)
    _write(summary, sums, [*first, "done", "features"], names)


def _splice(
    trained: Crosscoder, site: int, task: Task, difference: Difference, m: Downstream
) -> Splice:
    device = m.clean.device
    value, where = attribution.on_device(difference, site, device)
    W = attribution.decoders(trained, site, difference.features, device)
    half = torch.from_numpy(attribution.halves(len(task.clean))).to(device)
    return Splice(m.clean, m.corrupted, value, where, W, half)


def _write(
    path: str | Path, tables: list[pd.DataFrame], first: list[str], names: list[str]
) -> None:
    """Tables as one, some columns first, by task and then by snapshot."""
    every = pd.concat(tables, ignore_index=True)
    every = every.sort_values("task", key=lambda column: column.map(names.index), kind="stable")
    write_table(path, every[[*first, *every.columns.drop(first)]])
