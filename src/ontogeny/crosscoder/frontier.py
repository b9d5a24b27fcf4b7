"""The fidelity frontier: what crosscoders of several sizes and sparsities reach, beside SAEs.

A crosscoder explains all snapshots with one set of features, an SAE one snapshot alone. Both come
from the same training on the same rows and are measured alike (fidelity.py; method.md 3). A
crosscoder's point at a snapshot has EV and loss recovered *there*; its L0 counts every feature that
is active on a token, or, smaller, those alone that are present at the snapshot.

Two dictionaries never have the same L0, so they are compared at the crosscoder's, where the SAEs
of the same size and seed are read off between their points: straight in log L0.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from ontogeny.activations.sites import expand
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
    """Each crosscoder beside the SAEs of the same size and seed, at the crosscoder's L0.

    Parameters
    ----------
    table : of `points`.

    Returns
    -------
    One row per crosscoder, snapshot with SAEs, measure and way of counting L0: dictionary,
    features, sparsity, seed, snapshot_index, step, measure, counted ('l0', 'l0_present'), l0,
    crosscoder, sae, difference (crosscoder − SAE); NaN where the SAEs' curve does not reach.
    """
    keys = ["snapshot_index", "step", "features", "seed"]
    saes = table[table["kind"] == "sae"].groupby(keys, sort=True)
    crosscoders = table[table["kind"] == "crosscoder"].set_index(keys).sort_index()
    parts = []
    for key, curve in saes:
        if key not in crosscoders.index:
            continue
        here = crosscoders.loc[[key]].reset_index()
        for measure, counted in product(MEASURES, COUNTS):
            part = here[["dictionary", *keys[2:], "sparsity", *keys[:2]]].copy()
            part["measure"], part["counted"], part["l0"] = measure, counted, here[counted]
            part["crosscoder"] = here[measure]
            l0, value, wanted = curve["l0"], curve[measure], here[counted]
            part["sae"] = read_at(l0.to_numpy(), value.to_numpy(), wanted.to_numpy())
            part["difference"] = part["crosscoder"] - part["sae"]
            parts.append(part)
    return pd.concat(parts, ignore_index=True)


def points(settings: Settings, crosscoders: str | Path) -> pd.DataFrame:
    """What every dictionary of the frontier reaches, one row per dictionary, seed and snapshot.

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
    for name, c in settings.all_crosscoders.items():
        if name in settings.crosscoders:
            continue
        for seed in c.seeds:
            folder = Path(crosscoders) / name / f"seed{seed}"
            for file in ("fidelity.csv", "density.parquet"):
                if not (folder / file).exists():
                    raise InputError(f"{folder / file}: missing; make it with `ontogeny fidelity`")
            sites = pd.read_csv(folder / "fidelity.csv")
            dead = pd.read_parquet(folder / "density.parquet")["dead"].mean()
            outputs = expand(c.outputs or c.inputs, settings.snapshots.chosen)
            if set(sites["step"]) != {site.snapshot for site in outputs}:
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


def gather(
    settings: Settings, crosscoders: str | Path, table: str | Path, comparison: str | Path
) -> None:
    """Write the frontier's points and the comparison of crosscoders with SAEs, as CSV.

    Parameters
    ----------
    crosscoders : folder of all trained dictionaries.
    table, comparison : what `points` and `compare` return.

    Raises
    ------
    InputError : the settings have no frontier, or a table does not fit them.
    """
    if settings.frontier is None:
        raise InputError("frontier: missing; add the section to the configuration")
    reached = points(settings, crosscoders)
    write_table(comparison, compare(reached))
    write_table(table, reached)
