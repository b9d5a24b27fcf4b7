"""Which features a task depends on at each snapshot: integrated gradients (docs/method.md 7).

Letters: P pairs of a task, T tokens, a (P, T, d) the site's values for the clean prompts and ã for
the corrupted ones, f and f̃ the crosscoder's features there, W_i the decoder of the snapshot in the
model's units, m the logit difference between right and wrong answer, G = ∂m/∂a averaged along the
straight path from ã to a.

    attr_i = Σ_positions (f_i − f̃_i) · G·W_i        for each feature, by pair
    error  = Σ_positions ((a − â) − (ã − ẫ)) · G    the reconstruction error, a separate node

The site is set to â + error along the whole path, so both ends are the model's own values, and

    Σ_i attr_i + error = m(a) − m(ã)                 up to the finite number of points on the path.

For pairs of sentences, no prompt is corrupted: f̃ = 0, and ã is reconstructed without features.

`relie` is a feature's share of its effect at all snapshots together, Σ over snapshots of |attr|.

Only differences are stored: features that are equal in both prompts have no effect here, and the
differences are sparse.

References
----------
Sundararajan et al. 2017, Axiomatic attribution for deep networks; Marks et al. 2024, Sparse feature
circuits; Bayazit et al. 2025, Crosscoding through time (RelIE, arXiv 2509.05291).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import norm

from ontogeny import devices
from ontogeny.analyses.circuits import tasks as prompts
from ontogeny.analyses.circuits.downstream import Downstream, measured, of, path_gradient
from ontogeny.analyses.circuits.settings import Circuits
from ontogeny.analyses.circuits.tasks import AnyTask, Sentences
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.files import InputError, read_hdf5, reserve, whole_hdf5, write_table
from ontogeny.progress import bar
from ontogeny.settings import Settings
from ontogeny.snapshots import sites

PIECE_ENTRIES = 1 << 24  # numbers in memory at a time
READ_TOKENS = 4096  # tokens of a forward pass that reads prompts
ERROR = -1  # stands for the error node in a column of feature numbers
LEADING = 10  # features that the agreement of the halves compares
MEASURES = ("accuracy", "logit_difference", "logit_difference_corrupted", "difference")
# Columns of tables without rows, which occur if the last snapshot can do no task.
BEHAVIOUR = ["task", "snapshot_index", "step", "done"]
BEHAVIOUR += [name + end for name in MEASURES for end in ("", "_low", "_high")]
ATTRIBUTION = ["task", "feature", "snapshot_index", "step", "attribution", "standard_error", "told"]
ATTRIBUTION += ["first_half", "second_half", "frequency", "relie"]


@dataclass(frozen=True)
class Difference:
    """Nonzero entries of f − f̃ in a task's prompts: E entries of A features.

    Attributes
    ----------
    features : (A,) their numbers in the crosscoder. pair, position, column : (E,) place of each
        entry; `column` is an index into `features`. value : (E, 1), or (E, N) with one gate per
        snapshot.
    """

    features: np.ndarray
    pair: np.ndarray
    position: np.ndarray
    column: np.ndarray
    value: np.ndarray

    def of(self, site: int) -> np.ndarray:
        """Values at an output site, (E,)."""
        return np.asarray(self.value[:, site if self.value.shape[1] > 1 else 0])

    def on_device(self, site: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Values (E,) at an output site, and pair, position and column of each, (3, E)."""
        where = np.stack([self.pair, self.position, self.column]).astype(np.int64)
        value = np.ascontiguousarray(self.of(site), np.float32)
        return torch.from_numpy(value).to(device), torch.from_numpy(where).to(device)

    def frequency(self, pairs: int) -> np.ndarray:
        """Mean number of positions of a pair at which each feature differs, (A,)."""
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
    attr = torch.zeros(len(G), len(W), device=G.device)
    step = max(1, PIECE_ENTRIES // G.shape[2])
    for change, at in zip(value.split(step), where.split(step, 1), strict=True):
        pair, position, column = at
        slope = (G[pair, position] * W[column]).sum(1)
        attr.index_put_((pair, column), change * slope, accumulate=True)
    return attr


def find_differences(
    settings: Settings, crosscoder: Crosscoder, snapshots: Path, tasks: list[AnyTask], scratch: Path
) -> dict[str, Difference]:
    """Differences of the features between clean and corrupted prompts, by task.

    Features need the activations of all input sites at a position, but snapshots are run one after
    another. Until all are done, their activations are kept in a nameless file in `scratch`.
    """
    if not tasks:
        return {}
    about, device = crosscoder.about, crosscoder.device
    rows = [np.nonzero(task.open) for task in tasks]  # (pair, position) of each row
    bounds = np.cumsum([0, *(len(pair) for pair, _ in rows)]).tolist()
    shape = (2, bounds[-1], len(about.inputs), about.width)
    scales = crosscoder.scales_in.cpu().numpy()
    remote = settings.snapshots.remote_code
    with tempfile.TemporaryFile(dir=scratch) as file:
        # The mapped file has no name, so the system deletes it whatever happens.
        reserve(file, 4 * math.prod(shape), scratch)
        values: Any = np.memmap(file, np.float32, "w+", shape=shape)
        steps = list(dict.fromkeys(step for step, _, _ in about.inputs))
        with bar("attribution: features", len(steps), "snapshots") as progress:
            for step in steps:
                here = [(i, site) for i, site in enumerate(about.inputs) if site[0] == step]
                inputs = {i: (layer, stream) for i, (_, layer, stream) in here}
                folder, last = snapshots / f"step{step}", max(layer for layer, _ in inputs.values())
                model = sites.load_model(folder, device, torch.float32, remote, last_layer=last)
                for i, task in enumerate(tasks):
                    for which, ids in enumerate(task.prompts):
                        filled = values[which, bounds[i] : bounds[i + 1]]
                        _read_rows(model, ids, rows[i], inputs, scales, filled)
                progress.update()
        read = [(task.prompts, at) for task, at in zip(tasks, rows, strict=True)]
        ids = np.stack(
            [
                np.concatenate([each[which % len(each)].reshape(len(each[0]), -1)[at]
                                for each, at in read])
                for which in range(2)
            ]
        )  # fmt: skip
        paired = np.concatenate([np.full(len(at[0]), len(each) == 2) for each, at in read])
        row, feature, value = _encoded(crosscoder, values, ids, paired)
        del values, filled
    by_task = {}
    for task, (pair, position), start in zip(tasks, rows, bounds, strict=False):
        inside = (row >= start) & (row < start + len(pair))
        features, column = np.unique(feature[inside], return_inverse=True)
        at = row[inside] - start
        by_task[task.name] = Difference(features, pair[at], position[at], column, value[inside])
    return by_task


def _read_rows(
    model: Any,
    ids: np.ndarray,
    positions: tuple[np.ndarray, ...],
    inputs: dict[int, Any],
    scales: np.ndarray,
    values: np.ndarray,
) -> None:
    """Fill in one snapshot's columns of values (rows, N, d), in normalised units.

    Parameters
    ----------
    ids : (P, T), or (P, 2, S) for sentences. positions : pair and position of each row, (rows,).
    inputs : layer and stream by column. scales : (N,).
    """
    device = next(model.parameters()).device
    pair, position = positions
    if ids.ndim == 3:  # each sentence of a pair becomes a separate row
        pair, position = 2 * pair + position // ids.shape[2], position % ids.shape[2]
        ids = ids.reshape(-1, ids.shape[2])
    batch = max(1, READ_TOKENS // ids.shape[1])
    for first in range(0, len(ids), batch):
        piece = torch.from_numpy(ids[first : first + batch].astype(np.int64)).to(device)
        read = sites.read(model, piece, list(dict.fromkeys(inputs.values())))
        rows = np.flatnonzero((pair >= first) & (pair < first + batch))
        at = [torch.from_numpy(each).to(device) for each in (pair[rows] - first, position[rows])]
        for column, site in inputs.items():
            values[rows, column] = read[site][at[0], at[1]].float().cpu() * scales[column]


def _encoded(
    crosscoder: Crosscoder, values: np.ndarray, ids: np.ndarray, paired: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, feature and value of f − f̃ where it is not 0.

    Parameters
    ----------
    values : (2, rows, N, d), of clean and of corrupted prompts. ids : (2, rows) their tokens.
    paired : (rows,) whether there is a corrupted prompt; if not, f̃ is 0.
    """
    about, device = crosscoder.about, crosscoder.device
    gates = len(about.outputs) if about.gate == "snapshot" else 1
    width = max(about.features * gates, values.shape[2] * values.shape[3])
    step = max(1, PIECE_ENTRIES // width)
    parts: list[tuple[np.ndarray, ...]] = []
    for start in range(0, values.shape[1], step):
        here = slice(start, start + step)
        clean, corrupted = (
            crosscoder.encode(torch.from_numpy(values[i, here]).to(device), ids[i, here])
            for i in range(2)
        )
        if not paired[here].all():
            corrupted[~torch.from_numpy(paired[here])] = 0
        change = (clean - corrupted).view(len(clean), about.features, gates)
        row, feature = (change != 0).any(2).nonzero(as_tuple=True)
        value = change[row, feature]
        parts.append((row.cpu().numpy() + start, feature.cpu().numpy(), value.cpu().numpy()))
    rows, features, changes = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return rows, features, changes


def write_differences(path: Path, by_task: dict[str, Difference]) -> None:
    """Write the file that `read_differences` reads: HDF5, one group per task."""
    with whole_hdf5(path) as file:
        for name, difference in by_task.items():
            for field in fields(Difference):
                file[f"{name}/{field.name}"] = getattr(difference, field.name)


def read_differences(path: Path, name: str) -> Difference:
    """A task's differences.

    Raises
    ------
    InputError : the file is damaged, or does not have this task.
    """
    with read_hdf5(path, f"a file of differences of {name}") as file:
        return Difference(*(file[name][field.name][:] for field in fields(Difference)))


def decoders(
    crosscoder: Crosscoder, site: int, features: np.ndarray, device: torch.device
) -> torch.Tensor:
    """Decoders of some features at an output site in the model's units, (A, d)."""
    own = crosscoder.decoders_at(site, features.astype(np.int64))
    return (own / crosscoder.divisors[site]).to(device)


def baseline(
    crosscoder: Crosscoder, site: int, device: torch.device
) -> Callable[[torch.Tensor], torch.Tensor]:
    """From tokens (R,) to an output site's reconstruction without features, in model units."""

    def values(ids: torch.Tensor) -> torch.Tensor:
        rest = crosscoder.b_dec[site] + crosscoder.table.at(site, ids)
        return (rest / crosscoder.divisors[site]).expand(len(ids), -1).to(device)

    return values


def weights(pairs: int, samples: int, seed: int) -> np.ndarray:
    """Bootstrap weights of the pairs, (samples, P); each row adds up to 1."""
    rng = np.random.default_rng(seed)
    return np.asarray(rng.multinomial(pairs, np.full(pairs, 1 / pairs), samples) / pairs)


def right(clean: np.ndarray, corrupted: np.ndarray | None) -> np.ndarray:
    """Whether each prompt's right answer is the likelier one, (2, P) of 0 and 1; ½ for a tie.

    Parameters
    ----------
    clean, corrupted : (P,) m of the two prompts of each pair. `corrupted` is None for sentences,
        whose good one should be the likelier, (1, P).
    """
    each = [np.heaviside(clean, 0.5)]
    return np.stack(each if corrupted is None else [*each, np.heaviside(-corrupted, 0.5)])


def behaviour(
    clean: np.ndarray, corrupted: np.ndarray, sampled: np.ndarray, paired: bool = True
) -> dict[str, Any]:
    """How well a snapshot does a task, from m of both prompts of each pair, (P,) each.

    `done` is whether the accuracy's interval is above one half.

    Parameters
    ----------
    sampled : `weights` of the pairs, for 95% intervals. paired : whether `corrupted` comes from
        prompts, not from sentences without active features.
    """
    each = right(clean, corrupted if paired else None)
    row: dict[str, Any] = {"pairs": len(clean)}
    measured_as = (each.mean(0), clean, corrupted, clean - corrupted)
    for name, values in zip(MEASURES, measured_as, strict=True):
        row[name] = float(values.mean())
        low, high = np.quantile(sampled @ values, [0.025, 0.975])
        row |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    row["accuracy_clean"] = each[0].mean()
    row["accuracy_corrupted"] = each[1].mean() if paired else np.nan
    row["done"] = row["accuracy_low"] > 0.5 + 1e-9
    return row


def halves(pairs: int) -> np.ndarray:
    """The half to which each pair belongs, (P,) of 0 and 1, alternating every two pairs.

    Which prompt is clean alternates from pair to pair, so each half has both equally often.
    """
    return np.arange(pairs) // 2 % 2


def order(attribution: np.ndarray) -> np.ndarray:
    """Indices of features by decreasing |attribution|, (A,)."""
    return np.argsort(-np.abs(attribution), kind="stable")


def told(mean: np.ndarray, standard_error: np.ndarray) -> np.ndarray:
    """Which attributions differ from 0, (A,) bool, at 5% for all of them together (Bonferroni)."""
    return np.asarray(np.abs(mean) > norm.isf(0.025 / max(1, len(mean))) * standard_error)


def measure(
    settings: Settings,
    crosscoder: Path,
    snapshots: Path,
    tasks: Path,
    behaviour: Path,
    attribution: Path,
    differences: Path,
) -> None:
    """Write how well every snapshot does every task, and which features it depends on.

    Parameters
    ----------
    crosscoder : folder of a seed, whose outputs are one layer and stream of every snapshot.
    snapshots : folder of step{S}. tasks : tasks.h5.
    behaviour, attribution : CSV and Parquet, whose columns are in the declaration.
    differences : HDF5 of f − f̃ by task, as `read_differences` reads it.

    Raises
    ------
    InputError : the input is damaged, the tasks belong to other tokens, or the crosscoder has
        several layers or streams.
    """
    trained = Crosscoder.load(crosscoder, devices.choose(settings.device))
    given = checked(trained, crosscoder, tasks)
    differences.parent.mkdir(parents=True, exist_ok=True)
    changes = find_differences(settings, trained, snapshots, given, differences.parent)
    write_differences(differences, changes)
    section, samples = settings.section(Circuits), settings.analysis.bootstrap
    rows: list[dict[str, Any]] = []
    tables: list[pd.DataFrame] = []
    total = len(trained.about.outputs) * len(given)
    with bar("attribution: gradients", total, "tasks") as progress:
        for site, (step, layer, stream) in enumerate(trained.about.outputs if given else ()):
            model = load(settings, snapshots, step, trained.device)
            number = settings.snapshots.number(step)
            for task in given:
                m = of(model, layer, stream, task, baseline(trained, site, model.device))
                sampled = weights(len(task.clean), samples, section.seed)
                row, table = _attributed(
                    trained, site, changes[task.name], m, section.path_steps, sampled,
                    paired=not isinstance(task, Sentences),
                )  # fmt: skip
                about: dict[str, Any] = {"task": task.name, "snapshot_index": number, "step": step}
                rows.append(about | row)
                tables.append(table.assign(**about))
                progress.update()
    tables = tables or [pd.DataFrame(columns=ATTRIBUTION)]
    whole = columns_first(tables, ["task", "feature", "snapshot_index", "step"])
    write_table(attribution, whole.assign(relie=relie(whole)))
    done = pd.DataFrame(rows) if rows else pd.DataFrame(columns=BEHAVIOUR)
    write_table(behaviour, in_task_order(done, given))


def relie(table: pd.DataFrame) -> pd.Series[float]:
    """A feature's relative indirect effect, by row: |attr| divided by its sum over the snapshots.

    It shows at which snapshots a feature matters for a task; NaN if it never does.
    """
    effect = table["attribution"].abs()
    whole = effect.groupby([table["task"], table["feature"]]).transform("sum")
    return effect / whole.where(whole > 0)


def checked(trained: Crosscoder, folder: Path, tasks: Path) -> list[AnyTask]:
    """Read the tasks in a file, and check that this crosscoder can be used on them.

    Raises
    ------
    InputError : several layers or streams, several sites of a snapshot, or other tokens.
    """
    outputs = [tuple(site) for site in trained.about.outputs]
    if len({site[1:] for site in outputs}) > 1 or len({site[0] for site in outputs}) < len(outputs):
        raise InputError(
            f"{folder}: circuits need snapshots of one layer and stream; choose another crosscoder"
        )
    return prompts.read(tasks, trained.about.tokens)


def load(settings: Settings, snapshots: Path, step: int, device: torch.device) -> Any:
    """A snapshot's model in full precision."""
    remote = settings.snapshots.remote_code
    return sites.load_model(snapshots / f"step{step}", device, torch.float32, remote)


def columns_first(tables: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    """Concatenate tables, with some columns first."""
    table = pd.concat(tables, ignore_index=True)
    return table[[*columns, *table.columns.drop(columns)]]


def in_task_order(table: pd.DataFrame, tasks: list[AnyTask]) -> pd.DataFrame:
    """The rows in the order of the tasks."""
    order_of = {task.name: i for i, task in enumerate(tasks)}
    return table.sort_values("task", key=lambda column: column.map(order_of), kind="stable")


def _attributed(
    trained: Crosscoder,
    site: int,
    difference: Difference,
    m: Downstream,
    path_steps: int,
    sampled: np.ndarray,
    paired: bool,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """A task's row of behaviour.csv and rows of attribution.parquet at one snapshot."""
    clean, corrupted = (values.cpu().numpy().astype(np.float64) for values in m.behaviour())
    row = behaviour(clean, corrupted, sampled, paired)
    ends = [measured(m, values).double() for values in (m.clean, m.corrupted)]
    G = path_gradient(m, m.clean, m.corrupted, path_steps)
    value, where = difference.on_device(site, G.device)
    each = attributions(value, where, G, decoders(trained, site, difference.features, G.device))
    whole_site = ((m.clean - m.corrupted) * G).sum((1, 2))
    error = whole_site - each.sum(1)
    along = (ends[0] - ends[1]).cpu().numpy()
    attributed = whole_site.double().cpu().numpy()
    by_pair = torch.cat([each, error[:, None]], 1).double().cpu().numpy()  # (P, A + 1)
    half = halves(len(by_pair))
    mean = by_pair.mean(0)
    of_half = [by_pair[half == i].mean(0) for i in (0, 1)]
    leading = [set(order(attr[:-1])[:LEADING].tolist()) for attr in of_half]
    spread = by_pair.std(0, ddof=1) / len(by_pair) ** 0.5
    sure = told(mean, spread)
    row |= {
        "features": len(difference.features),
        "attributed": attributed.mean(),
        "path_error": np.abs(attributed - along).mean() / max(np.abs(along).mean(), 1e-30),
        "error_share": error.double().mean().item() / attributed.mean(),
        "told": int(sure[:-1].sum()),
        "leading_shared": len(leading[0] & leading[1]) / max(1, len(leading[0])),
    }
    return row, pd.DataFrame(
        {
            "feature": [*difference.features, ERROR],
            "attribution": mean,
            "standard_error": spread,
            "told": sure,
            "first_half": of_half[0],
            "second_half": of_half[1],
            "frequency": [*difference.frequency(len(by_pair)), np.nan],
        }
    )
