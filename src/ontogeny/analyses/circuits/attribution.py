"""Which features a task hangs on at each snapshot: integrated gradients (METHOD.md 7).

Letters: P pairs of a task, T tokens, a (P, T, d) the site's values for the clean prompts and ã for
the corrupted ones, f and f̃ the crosscoder's features there, W_i the decoder of the snapshot in the
model's units, m the logit difference of right and wrong answer, G = ∂m/∂a averaged along the
straight path from ã to a.

    attr_i = Σ_positions (f_i − f̃_i) · G·W_i        for each feature, by pair
    error  = Σ_positions ((a − â) − (ã − ẫ)) · G    the reconstruction error, a node of its own

The site is set to â + error all along, so both ends are the model's own values, and

    Σ_i attr_i + error = m(a) − m(ã)                 but for the path's finite number of points.

Only differences are ever held: features that are the same in both prompts have no part in this,
and the differences are sparse.

References
----------
Sundararajan et al. 2017, Axiomatic attribution for deep networks; Marks et al. 2024, Sparse feature
circuits.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch
from scipy.stats import norm

from ontogeny import devices
from ontogeny.circuits.downstream import Downstream, measured, path_gradient
from ontogeny.circuits.tasks import Task, read
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.files import InputError, whole, write_table
from ontogeny.progress import bar
from ontogeny.settings import Settings
from ontogeny.snapshots import sites

PIECE_ENTRIES = 1 << 26  # numbers in memory at a time
ERROR = -1  # the error node, where a column names features
LEADING = 10  # features that the halves' agreement is about


@dataclass(frozen=True)
class Difference:
    """f − f̃ of a task's prompts, without what is 0: E entries of A features.

    Attributes
    ----------
    features : (A,) their numbers in the crosscoder. pair, position, column : (E,) where each entry
        stands; column numbers `features`. value : (E, 1), or (E, N) with a gate a snapshot.
    """

    features: np.ndarray
    pair: np.ndarray
    position: np.ndarray
    column: np.ndarray
    value: np.ndarray

    def of(self, site: int) -> np.ndarray:
        """Values at an output site, (E,)."""
        found: np.ndarray = self.value[:, site if self.value.shape[1] > 1 else 0]
        return found

    def frequency(self, pairs: int) -> np.ndarray:
        """Positions of a pair, in the mean, at which each feature differs, (A,)."""
        return np.bincount(self.column, minlength=len(self.features)) / pairs


def attributions(
    value: torch.Tensor, where: torch.Tensor, G: torch.Tensor, W: torch.Tensor
) -> torch.Tensor:
    """attr of each pair and feature, (P, A).

    Parameters
    ----------
    value : (E,) differences f − f̃. where : (3, E) pair, position and column of each.
    G : (P, T, d) mean gradients. W : (A, d) decoders in the model's units.
    """
    found = torch.zeros(len(G), len(W), device=G.device)
    step = max(1, PIECE_ENTRIES // G.shape[2])
    for some, (pair, position, column) in zip(value.split(step), where.split(step, 1), strict=True):
        slope = (G[pair, position] * W[column]).sum(1)
        found.index_put_((pair, column), some * slope, accumulate=True)
    return found


def differences(
    s: Settings, crosscoder: Crosscoder, snapshots: str | Path, tasks: list[Task], scratch: Path
) -> dict[str, Difference]:
    """Differences of the features between clean and corrupted prompts, by task.

    Features need the activations of all input sites at a position, and the snapshots are run one
    after the other: what each gives lies in a nameless file in `scratch` until all are done.
    """
    about, device = crosscoder.about, crosscoder.W_dec.device
    opened = [np.nonzero(task.open) for task in tasks]  # (pair, position) of each row
    rows = sum(len(pair) for pair, _ in opened)
    shape = (2, rows, len(about.inputs), about.width)
    scales = crosscoder.scales_in.cpu().numpy()
    with tempfile.TemporaryFile(dir=scratch) as file:
        # A map of a file that has no name: the system drops it whatever happens.
        values: Any = np.memmap(file, np.float32, "w+", shape=shape)
        steps = list(dict.fromkeys(step for step, _, _ in about.inputs))
        with bar("attribution: features", len(steps), "snapshots") as progress:
            for step in steps:
                here = [
                    (i, (site[1], site[2]))
                    for i, site in enumerate(about.inputs)
                    if site[0] == step
                ]
                _read_rows(s, snapshots, step, here, tasks, opened, values, scales, device)
                progress.update()
        entries = _encoded(crosscoder, values)
        del values
    found = {}
    start = 0
    row, feature, value = entries
    for task, (pair, position) in zip(tasks, opened, strict=True):
        inside = (row >= start) & (row < start + len(pair))
        features, column = np.unique(feature[inside], return_inverse=True)
        at = row[inside] - start
        found[task.name] = Difference(features, pair[at], position[at], column, value[inside])
        start += len(pair)
    return found


def _read_rows(
    s: Settings,
    snapshots: str | Path,
    step: int,
    here: list[tuple[int, tuple[int, str]]],
    tasks: list[Task],
    opened: list[tuple[np.ndarray, ...]],
    values: np.ndarray,
    scales: np.ndarray,
    device: torch.device,
) -> None:
    """Fill in one snapshot's columns of values (2, rows, N, d), in normalised units."""
    wanted = [key for _, key in here]
    folder = Path(snapshots) / f"step{step}"
    last = max(layer for layer, _ in wanted)
    remote = s.snapshots.remote_code
    model = sites.load_model(folder, device, torch.float32, remote, last_layer=last)
    for which in range(2):
        start = 0
        for task, (pair, position) in zip(tasks, opened, strict=True):
            ids = task.corrupted if which else task.clean
            batch = max(1, 4096 // ids.shape[1])
            for first in range(0, len(ids), batch):
                some = torch.from_numpy(ids[first : first + batch].astype(np.int64)).to(device)
                got = sites.read(model, some, list(dict.fromkeys(wanted)))
                rows = np.flatnonzero((pair >= first) & (pair < first + batch))
                at = torch.from_numpy(pair[rows] - first), torch.from_numpy(position[rows])
                for column, key in here:
                    picked = got[key][at[0].to(device), at[1].to(device)]
                    values[which, start + rows, column] = picked.float().cpu() * scales[column]
            start += len(pair)


def _encoded(
    crosscoder: Crosscoder, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, feature and value of f − f̃ where it is not 0, from values (2, rows, N, d)."""
    about, device = crosscoder.about, crosscoder.W_dec.device
    gates = len(about.outputs) if about.gate == "snapshot" else 1
    width = max(about.features * gates, values.shape[2] * values.shape[3])
    step = max(1, PIECE_ENTRIES // width)
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for start in range(0, values.shape[1], step):
        clean, corrupted = (
            crosscoder.encode(torch.from_numpy(values[i, start : start + step]).to(device))
            for i in range(2)
        )
        change = (clean - corrupted).view(len(clean), about.features, gates)
        row, feature = (change != 0).any(2).nonzero(as_tuple=True)
        value = change[row, feature]
        parts.append((row.cpu().numpy() + start, feature.cpu().numpy(), value.cpu().numpy()))
    rows, features, changes = (np.concatenate([part[i] for part in parts]) for i in range(3))
    return rows, features, changes


def write_differences(path: str | Path, found: dict[str, Difference]) -> None:
    """Write what `read_differences` reads: HDF5, a group a task."""
    with whole(path) as draft, h5py.File(draft, "w") as file:
        for name, difference in found.items():
            group = file.create_group(name)
            for field in Difference.__dataclass_fields__:
                group.create_dataset(field, data=getattr(difference, field))


def read_differences(path: str | Path, name: str) -> Difference:
    """A task's differences.

    Raises
    ------
    InputError : the file is damaged, or has no such task.
    """
    try:
        with h5py.File(path, "r") as file:
            return Difference(*(file[name][field][:] for field in Difference.__dataclass_fields__))
    except (OSError, KeyError) as error:
        why = " ".join(str(error).split())
        raise InputError(
            f"{path}: truncated, or of other tasks; delete it to make it again ({why})"
        ) from None


def decoders(
    crosscoder: Crosscoder, site: int, features: np.ndarray, device: torch.device
) -> torch.Tensor:
    """Decoders of some features at an output site in the model's units, (A, d)."""
    chosen = torch.from_numpy(features.astype(np.int64)).to(crosscoder.W_dec.device)
    scale = crosscoder.scales_out[site]
    return (crosscoder.W_dec[chosen, site] / scale).to(device)


def on_device(
    difference: Difference, site: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values (E,) at an output site, and where they stand (3, E)."""
    where = np.stack([difference.pair, difference.position, difference.column]).astype(np.int64)
    value = np.ascontiguousarray(difference.of(site), np.float32)
    return torch.from_numpy(value).to(device), torch.from_numpy(where).to(device)


def weights(pairs: int, samples: int, seed: int) -> np.ndarray:
    """Bootstrap weights of the pairs, (samples, P); each row adds up to 1."""
    rng = np.random.default_rng(seed)
    found: np.ndarray = rng.multinomial(pairs, np.full(pairs, 1 / pairs), samples) / pairs
    return found


def interval(values: np.ndarray, sampled: np.ndarray) -> tuple[float, float, float]:
    """Mean of values (P,) and its 95% interval over pairs, with `weights`."""
    low, high = np.quantile(sampled @ values, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def behaviour(clean: np.ndarray, corrupted: np.ndarray, sampled: np.ndarray) -> dict[str, Any]:
    """What a snapshot does with a task, from m of both prompts of each pair, (P,) each.

    A tie counts as half right. `done`: the accuracy's interval lies above one half.
    """
    right = [np.heaviside(clean, 0.5), np.heaviside(-corrupted, 0.5)]
    found: dict[str, Any] = {"pairs": len(clean)}
    for name, values in (
        ("accuracy", (right[0] + right[1]) / 2),
        ("logit_difference", clean),
        ("logit_difference_corrupted", corrupted),
        ("difference", clean - corrupted),
    ):
        found[name], found[f"{name}_low"], found[f"{name}_high"] = interval(values, sampled)
    found |= {"accuracy_clean": right[0].mean(), "accuracy_corrupted": right[1].mean()}
    found["done"] = found["accuracy_low"] > 0.5 + 1e-9
    return found


def halves(pairs: int) -> np.ndarray:
    """Which half a pair is of, (P,) of 0 and 1: every other two, so that neither kind is in one.

    Which prompt of a pair is clean alternates; each half has as many of either.
    """
    return np.arange(pairs) // 2 % 2


def order(attribution: np.ndarray) -> np.ndarray:
    """Features by falling |attribution|, (A,)."""
    return np.argsort(-np.abs(attribution), kind="stable")


def told(mean: np.ndarray, standard_error: np.ndarray) -> np.ndarray:
    """Which attributions are told from 0, (A,) bool, at 5% for all together (Bonferroni)."""
    return np.asarray(np.abs(mean) > norm.isf(0.025 / max(1, len(mean))) * standard_error)


def describe(
    s: Settings,
    crosscoder: str | Path,
    snapshots: str | Path,
    tasks: str | Path,
    output: str | Path,
) -> None:
    """Write what every snapshot does with every task, and which features it hangs on.

    Parameters
    ----------
    crosscoder : folder of a seed, whose outputs are one layer and stream of every snapshot.
    snapshots : folder of step{S}. tasks : tasks.h5.
    output : folder, to which go
        behaviour.csv : task, snapshot_index, step, pairs; accuracy (over both prompts of each
            pair: one half where the model sees no difference), logit_difference (right − wrong
            answer, clean prompts, nats), logit_difference_corrupted, difference (of the two), each
            with _low and _high, 95% over pairs; accuracy_clean, accuracy_corrupted; done; features
            (that differ), attributed (Σ attr + error, mean over pairs), path_error (mean over pairs
            of |attributed − m(a) + m(ã)|, by that of |m(a) − m(ã)|), error_share (of the error node
            in attributed), told (features), leading_shared (of the 10 largest |attr| of one half of
            the pairs, the share that is also of the other's).
        attribution.parquet : task, feature (−1 is the error node), snapshot_index, step,
            attribution (mean over pairs), standard_error, told (from 0, at 5% for all features of
            the task together), first_half, second_half (means over either half of the pairs),
            frequency (positions of a pair at which the feature
            differs, in the mean).
        differences.h5 : f − f̃ by task, as `read_differences` reads it.

    Raises
    ------
    InputError : damaged input; tasks of other tokens; a crosscoder of several layers or streams.
    """
    trained = Crosscoder.load(crosscoder, devices.choose(s.device))
    given = checked(trained, crosscoder, tasks)
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    found = differences(s, trained, snapshots, given, output)
    write_differences(output / "differences.h5", found)
    rows: list[dict[str, Any]] = []
    tables: list[pd.DataFrame] = []
    total = len(trained.about.outputs) * len(given)
    with bar("attribution: gradients", total, "tasks") as progress:
        for site, (step, layer, stream) in enumerate(trained.about.outputs):
            folder = Path(snapshots) / f"step{step}"
            device = trained.W_dec.device
            model = sites.load_model(folder, device, torch.float32, s.snapshots.remote_code)
            for task in given:
                m = Downstream(model, layer, stream, task)
                row, table = _attributed(s, trained, site, task, found[task.name], m)
                when = {"snapshot_index": s.snapshots.chosen.index(step) + 1, "step": step}
                rows.append({"task": task.name, **when, **row})
                tables.append(table.assign(task=task.name, **when))
                progress.update()
    every = pd.concat(tables, ignore_index=True)
    first = ["task", "feature", "snapshot_index", "step"]
    write_table(output / "attribution.parquet", every[[*first, *every.columns.drop(first)]])
    by_task = {task.name: i for i, task in enumerate(given)}
    kept = pd.DataFrame(rows).sort_values("task", key=lambda c: c.map(by_task), kind="stable")
    write_table(output / "behaviour.csv", kept)


def checked(trained: Crosscoder, folder: str | Path, tasks: str | Path) -> list[Task]:
    """The tasks of a file, if this crosscoder can be held against them.

    Raises
    ------
    InputError : several layers or streams, several sites of a snapshot, or other tokens.
    """
    outputs = [tuple(site) for site in trained.about.outputs]
    if len({site[1:] for site in outputs}) > 1 or len({site[0] for site in outputs}) < len(outputs):
        raise InputError(
            f"{folder}: circuits need snapshots of one layer and stream; choose another crosscoder"
        )
    given = read(tasks)
    with h5py.File(tasks, "r") as file:
        if file.attrs.get("tokens") != trained.about.tokens:
            raise InputError(
                f"{tasks}: of other tokens than the crosscoder was trained on; make them again"
            )
    return given


def _attributed(
    s: Settings, trained: Crosscoder, site: int, task: Task, found: Difference, m: Downstream
) -> tuple[dict[str, Any], pd.DataFrame]:
    """A task's row of behaviour.csv and rows of attribution.parquet at one snapshot."""
    c = s.circuits
    sampled = weights(len(task.clean), s.analysis.bootstrap, c.seed)
    clean, corrupted = (values.cpu().numpy().astype(np.float64) for values in m.behaviour())
    row = behaviour(clean, corrupted, sampled)
    ends = [measured(m, values).double() for values in (m.clean, m.corrupted)]
    G = path_gradient(m, m.clean, m.corrupted, c.path_steps)
    value, where = on_device(found, site, G.device)
    W = decoders(trained, site, found.features, G.device)
    each = attributions(value, where, G, W)
    whole_site = ((m.clean - m.corrupted) * G).sum((1, 2))
    error = whole_site - each.sum(1)
    along = (ends[0] - ends[1]).cpu().numpy()
    attributed = whole_site.double().cpu().numpy()
    row["features"] = len(found.features)
    row["attributed"] = attributed.mean()
    row["path_error"] = np.abs(attributed - along).mean() / max(np.abs(along).mean(), 1e-30)
    row["error_share"] = error.double().mean().item() / attributed.mean()
    by_pair = torch.cat([each, error[:, None]], 1).double().cpu().numpy()  # (P, A + 1)
    half = halves(len(by_pair))
    mean = by_pair.mean(0)
    first, second = (by_pair[half == i].mean(0) for i in (0, 1))
    leading = [set(order(x[:-1])[:LEADING].tolist()) for x in (first, second)]
    spread = by_pair.std(0, ddof=1) / len(by_pair) ** 0.5
    sure = told(mean, spread)
    row["told"] = int(sure[:-1].sum())
    row["leading_shared"] = len(leading[0] & leading[1]) / max(1, len(leading[0]))
    table = pd.DataFrame(
        {
            "feature": [*found.features, ERROR],
            "attribution": mean,
            "standard_error": spread,
            "told": sure,
            "first_half": first,
            "second_half": second,
            "frequency": [*found.frequency(len(by_pair)), np.nan],
        }
    )
    return row, table
