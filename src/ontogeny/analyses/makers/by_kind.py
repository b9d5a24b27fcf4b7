"""The makers_by_kind stage: which heads produce which kinds of feature, and since when.

For each head and kind, it averages over the kind's features the loss at all snapshots together and
the share at each one (measure.py). A share's onset is the first crossing of half its maximum over
snapshots, interpolated in log(step + 1), as for features. Intervals come from a bootstrap over
the kind's features.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from ontogeny.features.histories import normalise, onset
from ontogeny.files import InputError, read_hdf5, read_table, write_table
from ontogeny.settings import Settings

LEAST_FEATURES = 5  # least number of features of a kind
INTERVAL = (0.025, 0.975)
COLUMNS = ["kind", "layer", "head", "features", "loss", "low", "high", "strongest"]
COLUMNS += ["onset_step", "onset_low", "onset_high"]
CURVES = ["kind", "layer", "head", "snapshot_index", "step", "share", "low", "high"]


def summarise(
    loss: np.ndarray, share: np.ndarray, steps: np.ndarray, samples: np.ndarray
) -> tuple[pd.DataFrame, np.ndarray]:
    """Means over the features of a kind.

    Parameters
    ----------
    loss : (S, K). share : (S, K, n). samples : (samples, S) weights that add up to 1.

    Returns
    -------
    One row per head; and (3, K, n) the mean share with its interval.
    """
    low, high = np.quantile(samples @ loss, INTERVAL, axis=0)
    mean = loss.mean(0)
    table = pd.DataFrame({"loss": mean, "low": low, "high": high})
    table["strongest"] = table.index == int(mean.argmax())
    curve = share.mean(0)
    drawn = np.einsum("ws,skn->wkn", samples, share)
    at = np.full((len(curve), 3), np.nan)
    for k, one in enumerate(curve):
        rises = drawn[drawn[:, k].max(1) > 0, k]
        if one.max() > 0 and len(rises):
            between = np.quantile(onset(normalise(rises), steps, 0.5), INTERVAL)
            at[k] = [onset(normalise(one[None]), steps, 0.5)[0], *between]
    table[["onset_step", "onset_low", "onset_high"]] = at
    return table, np.stack([curve, *np.quantile(drawn, INTERVAL, axis=0)])


def measure(
    settings: Settings,
    makers: Path,
    shares: Path,
    features: Path,
    kinds: Path | None,
    by_kind: Path,
    curves: Path,
) -> None:
    """Write the heads of each kind, and their shares over snapshots.

    Parameters
    ----------
    makers, shares : Parquet and HDF5 of the makers stage. features : Parquet; feature, alive.
    kinds : Parquet; feature, kind. Without it there is one kind, 'all'.
    by_kind, curves : CSV; their columns are in the declaration.

    Raises
    ------
    InputError : makers and shares come from different runs.
    """
    table = read_table(makers)
    with read_hdf5(shares, "a file of makers' shares") as file:
        share, known = file["share"][()].astype(np.float64), file["feature"][()]
        heads, steps = np.c_[file["layer"][()], file["head"][()]], file["step"][()]
    loss = table["loss"].to_numpy().reshape(-1, len(heads)) if len(heads) else np.zeros((0, 0))
    if len(heads) and not np.array_equal(table["feature"].unique(), known):
        raise InputError(
            f"{shares}: from another run than {makers}; delete both to make them again"
        )
    living = read_table(features).set_index("feature")["alive"]
    about = pd.DataFrame({"feature": known, "kind": "all"})
    if kinds is not None:
        named = about[["feature"]].merge(read_table(kinds)[["feature", "kind"]], how="left")
        about = pd.concat([about, named.fillna({"kind": "none"})])
    about["row"] = about.index
    about = about[about["feature"].map(living)]
    rng = np.random.default_rng(settings.analysis.seed)
    tables, drawn = [pd.DataFrame(columns=COLUMNS)], [pd.DataFrame(columns=CURVES)]
    for kind, rows in about.groupby("kind", sort=False)["row"] if len(heads) else ():
        S = len(rows)
        if S < LEAST_FEATURES:
            continue
        samples = rng.multinomial(S, np.full(S, 1 / S), settings.analysis.bootstrap) / S
        of_kind, curve = summarise(loss[rows], share[rows], steps, samples)
        which = {"kind": kind, "layer": heads[:, 0], "head": heads[:, 1]}
        tables.append(of_kind.assign(**which, features=S)[COLUMNS])
        numbers = [settings.snapshots.number(step) for step in steps]
        for k, (layer, head) in enumerate(heads):
            points = {"kind": kind, "layer": layer, "head": head, "snapshot_index": numbers}
            points |= dict(
                zip(("step", "share", "low", "high"), (steps, *curve[:, k]), strict=True)
            )
            drawn.append(pd.DataFrame(points)[CURVES])
    write_table(by_kind, pd.concat(tables[1:] or tables, ignore_index=True))
    write_table(curves, pd.concat(drawn[1:] or drawn, ignore_index=True))
