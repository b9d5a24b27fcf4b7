"""The fidelity frontier: crosscoders of several sizes and sparsities compared with SAEs.

A crosscoder explains all snapshots with one set of features; an SAE explains a single snapshot.
Both are trained in the same way on the same rows and measured in the same way (docs/method.md 3).
A crosscoder's point at a snapshot has the EV and loss recovered *there*. Its L0 counts either all
features that are active on a token or only those that are present at the snapshot.

Two dictionaries never have the same L0. They are therefore compared at the crosscoder's L0: the
SAEs of the same size and seed are interpolated there, linearly in log L0.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd

from ontogeny.analyses.frontier.dictionaries import FRONTIER
from ontogeny.files import InputError, read_table, write_table
from ontogeny.settings import Settings

MEASURES = ("explained_variance", "loss_recovered")
COUNTS = ("l0", "l0_present")
OF_SITES = [*MEASURES, "pca_explained_variance", *COUNTS, "loss", "loss_ablated"]
BEYOND = 1.1  # ratio of L0 by which a curve is extended beyond its last points


def read_at(l0: np.ndarray, value: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The curve through the points (l0, value) at other L0, linear in log L0.

    Parameters
    ----------
    l0, value : (P,) points in any order, l0 > 0. wanted : (Q,).

    Returns
    -------
    (Q,); NaN more than a tenth beyond the first and last point (up to there, the end segments are
    extended), and everywhere if there are fewer than two points.
    """
    read = np.full(len(wanted), np.nan)
    fine = np.isfinite(l0) & (l0 > 0) & np.isfinite(value)
    x, where = np.unique(np.log(l0[fine]), return_index=True)
    y = value[fine][where]
    if len(x) < 2:
        return read
    with np.errstate(divide="ignore"):
        at = np.log(wanted)
    inside = (at >= x[0] - np.log(BEYOND)) & (at <= x[-1] + np.log(BEYOND))
    left = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(x) - 2)
    slope = (y[left + 1] - y[left]) / (x[left + 1] - x[left])
    read[inside] = (y[left] + slope * (at - x[left]))[inside]
    return read


def compare(table: pd.DataFrame) -> pd.DataFrame:
    """Compare each crosscoder with the SAEs of the same size and seed, at the crosscoder's L0.

    Parameters
    ----------
    table : from `points`.

    Returns
    -------
    One row per crosscoder, snapshot with SAEs, measure and way of counting L0: dictionary,
    features, sparsity, seed, snapshot_index, step, measure, counted ('l0', 'l0_present'), l0,
    crosscoder, sae, difference (crosscoder − SAE); NaN outside the range of the SAEs' curve.
    """
    keys = ["snapshot_index", "step", "features", "seed"]
    saes = table[table["kind"] == "sae"].groupby(keys, sort=True)
    ours = table[table["kind"] == "crosscoder"].set_index(keys).sort_index()
    parts = []
    for key, theirs in saes:
        if key not in ours.index:
            continue
        own = ours.loc[[key]].reset_index()
        names = own[["dictionary", "features", "seed", "sparsity", "snapshot_index", "step"]]
        for measure, counted in itertools.product(MEASURES, COUNTS):
            l0 = theirs["l0"].to_numpy()
            sae = read_at(l0, theirs[measure].to_numpy(), own[counted].to_numpy())
            part = names.assign(measure=measure, counted=counted, l0=own[counted])
            parts.append(part.assign(crosscoder=own[measure], sae=sae))
    comparison = pd.concat(parts, ignore_index=True)
    return comparison.assign(difference=comparison["crosscoder"] - comparison["sae"])


def points(
    settings: Settings, fidelities: dict[str, list[Path]], densities: dict[str, list[Path]]
) -> pd.DataFrame:
    """The fidelity of every dictionary: one row per dictionary, seed and snapshot.

    Parameters
    ----------
    fidelities, densities : for each dictionary, the tables of its seeds.

    Returns
    -------
    dictionary, kind ('crosscoder', 'sae'), features, sparsity (k, or λ), seed, snapshot_index,
    step, then fidelity's measures, averaged over the snapshot's sites, and dead, a share of the
    features.

    Raises
    ------
    InputError : a table is missing, or has other sites than the settings.
    """
    parts = []
    for name, paths in fidelities.items():
        chosen = settings.all_crosscoders[name]
        kept = chosen.written.snapshots
        steps = settings.snapshots.chosen if kept == "all" else sorted(kept)
        about = {
            "dictionary": name,
            "kind": "crosscoder" if name.startswith(FRONTIER) else "sae",
            "features": chosen.features,
            "sparsity": float(chosen.k)
            if chosen.activation == "batch_topk"
            else chosen.peak_sparsity,
        }
        for seed, fidelity, density in zip(chosen.seeds, paths, densities[name], strict=True):
            for path in (fidelity, density):
                if not path.exists():
                    raise InputError(f"{path}: missing; make it with `ontogeny fidelity`")
            sites = read_table(fidelity)
            if sorted(set(sites["step"])) != steps:
                raise InputError(f"{fidelity}: made for other snapshots; make it again")
            by_snapshot = sites.groupby(["snapshot_index", "step"])[OF_SITES].mean().reset_index()
            dead = read_table(density)["dead"].mean()
            part = by_snapshot.assign(**about, seed=seed, dead=dead)
            parts.append(part[[*about, "seed", *by_snapshot, "dead"]])
    return pd.concat(parts, ignore_index=True)


def measure(
    settings: Settings,
    fidelities: dict[str, list[Path]],
    densities: dict[str, list[Path]],
    frontier: Path,
    comparison: Path,
) -> None:
    """Write the frontier's points and the comparison of crosscoders with SAEs, as CSV.

    Parameters
    ----------
    fidelities, densities : as for `points`, which also documents the errors.
    frontier, comparison : the tables that `points` and `compare` return.
    """
    table = points(settings, fidelities, densities)
    write_table(comparison, compare(table))
    write_table(frontier, table)
