"""The fidelity frontier: what crosscoders of several sizes and sparsities reach, beside SAEs.

A crosscoder explains all snapshots with one set of features, an SAE one snapshot alone. Both come
from the same training on the same rows and are measured alike (fidelity.py; METHOD.md 3). A
crosscoder's point at a snapshot has EV and loss recovered *there*; its L0 counts every feature that
is active on a token, or, smaller, those alone that are present at the snapshot.

Two dictionaries never have the same L0, so they are compared at the crosscoder's, where the SAEs
of the same size and seed are read off between their points: straight in log L0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from ontogeny.files import InputError, write_table
from ontogeny.settings import FRONTIER, Settings

MEASURES = ("explained_variance", "loss_recovered")
COUNTS = ("l0", "l0_present")
OF_SITES = [*MEASURES, "pca_explained_variance", *COUNTS, "loss", "loss_ablated"]
BEYOND = 1.1  # how far beyond its last points, as a ratio of L0, a curve is drawn on


def read_at(l0: np.ndarray, value: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The curve through the points (l0, value) at other L0, straight in log L0.

    Parameters
    ----------
    l0, value : (P,) points in any order, l0 > 0. wanted : (Q,).

    Returns
    -------
    (Q,); NaN further than a tenth beyond the first and last point, where the curve's end pieces
    are drawn on, and everywhere for fewer than two points.
    """
    found = np.full(len(wanted), np.nan)
    fine = np.isfinite(l0) & (l0 > 0) & np.isfinite(value)
    x, where = np.unique(np.log(l0[fine]), return_index=True)
    y = value[fine][where]
    if len(x) < 2:
        return found
    with np.errstate(divide="ignore"):
        at = np.log(wanted)
    inside = (at >= x[0] - np.log(BEYOND)) & (at <= x[-1] + np.log(BEYOND))
    left = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(x) - 2)
    slope = (y[left + 1] - y[left]) / (x[left + 1] - x[left])
    found[inside] = (y[left] + slope * (at - x[left]))[inside]
    return found


def compare(table: pd.DataFrame) -> pd.DataFrame:
    """Each crosscoder beside the SAEs of the same size and seed, at the crosscoder's L0.

    Parameters
    ----------
    table : of `points`.

    Returns
    -------
    One row a crosscoder, snapshot with SAEs, measure and way of counting L0: dictionary, features,
    sparsity, seed, snapshot_index, step, measure, counted ('l0', 'l0_present'), l0, crosscoder,
    sae, difference (crosscoder − SAE); NaN where the SAEs' curve does not reach.
    """
    keys = ["snapshot_index", "step", "features", "seed"]
    saes = table[table["kind"] == "sae"].groupby(keys, sort=True)
    ours = table[table["kind"] == "crosscoder"].set_index(keys).sort_index()
    found = []
    for key, theirs in saes:
        if key not in ours.index:
            continue
        some = ours.loc[[key]].reset_index()
        for measure in MEASURES:
            for counted in COUNTS:
                there = read_at(
                    theirs["l0"].to_numpy(), theirs[measure].to_numpy(), some[counted].to_numpy()
                )
                one = some[["dictionary", *keys[2:], "sparsity", *keys[:2]]].copy()
                one["measure"], one["counted"], one["l0"] = measure, counted, some[counted]
                one["crosscoder"], one["sae"] = some[measure], there
                one["difference"] = one["crosscoder"] - one["sae"]
                found.append(one)
    return pd.concat(found, ignore_index=True)


def points(s: Settings, crosscoders: str | Path) -> pd.DataFrame:
    """What every dictionary of the frontier reaches, a row a (dictionary, seed, snapshot).

    Parameters
    ----------
    crosscoders : folder with NAME/seedS/fidelity.csv and density.parquet.

    Returns
    -------
    dictionary, kind ('crosscoder', 'sae'), features, sparsity (k, or λ), seed, snapshot_index,
    step, then fidelity's measures, means over the snapshot's sites, and dead, a share of the
    features.

    Raises
    ------
    InputError : a table is missing, or of other sites than the settings have.
    """
    rows = []
    for name, c in s.all_crosscoders.items():
        if name in s.crosscoders:
            continue
        for seed in c.seeds:
            folder = Path(crosscoders) / name / f"seed{seed}"
            for file in ("fidelity.csv", "density.parquet"):
                if not (folder / file).exists():
                    raise InputError(f"{folder / file}: missing; make it with `ontogeny fidelity`")
            sites = pd.read_csv(folder / "fidelity.csv")
            dead = pd.read_parquet(folder / "density.parquet")["dead"].mean()
            there = (c.outputs or c.inputs).snapshots
            wanted = s.snapshots.chosen if there == "all" else sorted(there)
            if sorted(set(sites["step"])) != wanted:
                raise InputError(f"{folder}/fidelity.csv: of other snapshots; make it again")
            by_snapshot = sites.groupby(["snapshot_index", "step"])[OF_SITES].mean().reset_index()
            about = {
                "dictionary": name,
                "kind": "crosscoder" if name.startswith(FRONTIER) else "sae",
                "features": c.features,
                "sparsity": float(c.k) if c.activation == "batch_topk" else c.sparsity,
                "seed": seed,
            }
            for number, (column, value) in enumerate(about.items()):
                by_snapshot.insert(number, column, value)
            rows.append(by_snapshot.assign(dead=dead))
    return pd.concat(rows, ignore_index=True)


def gather(s: Settings, crosscoders: str | Path, table: str | Path, comparison: str | Path) -> None:
    """Write the frontier's points and the comparison of crosscoders with SAEs, as CSV.

    Parameters
    ----------
    crosscoders : folder of all trained dictionaries.
    table, comparison : what `points` and `compare` return.

    Raises
    ------
    InputError : the settings have no frontier, or a table does not fit them.
    """
    if s.frontier is None:
        raise InputError("frontier: missing; add the section to the configuration")
    found = points(s, crosscoders)
    write_table(comparison, compare(found))
    write_table(table, found)
