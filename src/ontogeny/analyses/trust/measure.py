"""How far a crosscoder's births and deaths can be trusted (docs/method.md 4).

Three diagnostics need no ground truth: relays (relays.py), silent births and deaths
(readability.py), and whether two signs of presence agree, a feature's decoder norm and how often
its gate is open at a snapshot. In addition, the median normalised strength of all features by
snapshot: where it jumps, the snapshot's scale has changed and not its features.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse, stats

from ontogeny import devices
from ontogeny.activations.rows import HeldOut
from ontogeny.activations.sites import Site
from ontogeny.analyses.trust.numbers import doubts
from ontogeny.analyses.trust.readability import judge_events, read_out
from ontogeny.analyses.trust.relays import find_relays
from ontogeny.analyses.trust.settings import Trust
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.features.held_out import held_out, own_activations
from ontogeny.features.histories import lives, normalise, snapshot_numbers
from ontogeny.files import read_table, write_table
from ontogeny.progress import bar
from ontogeny.settings import Settings


def gate_rates(crosscoder: Crosscoder, f: sparse.csr_array) -> np.ndarray:
    """How often each feature's gate is open at each site, relative to its highest rate, (F, n).

    NaN if one gate serves all sites, and for features that are never active.
    """
    n = len(crosscoder.about.outputs)
    if crosscoder.about.gate == "feature":
        return np.full((f.shape[1], n), np.nan)
    counts = [
        np.asarray((own_activations(crosscoder, f, site) > 0).sum(0)).ravel() for site in range(n)
    ]
    rates = np.stack(counts, 1).astype(float)
    highest = rates.max(1, keepdims=True)
    return np.divide(rates, highest, out=np.full(rates.shape, np.nan), where=highest > 0)


def share(part: int, whole: int) -> dict[str, float]:
    """A share with its 95% interval (Wilson's), and the count it refers to; NaN if that is 0."""
    if not whole:
        return {"value": np.nan, "low": np.nan, "high": np.nan, "count": 0}
    low, high = stats.binomtest(part, whole).proportion_ci(method="wilson")
    return {"value": part / whole, "low": float(low), "high": float(high), "count": whole}


def find_verdicts(
    table: pd.DataFrame, events: pd.DataFrame, gates: np.ndarray, present: np.ndarray, gate: float
) -> pd.DataFrame:
    """The shares of relays, of silent births and deaths, and of agreement between the two signs.

    Parameters
    ----------
    table : of the living features: feature, frequent, matched, relay. events : from `judge_events`.
    gates, present : (L, n) of the living features, in the table's order. gate : the least rate.

    Returns
    -------
    measure, group ('all', 'frequent', 'matched'), value, low, high, count (size of the whole).
    """
    rows = []
    groups = {"all": np.ones(len(table), bool)}
    groups |= {name: table[name].to_numpy(bool) for name in ("frequent", "matched")}
    for group, chosen in groups.items():
        own = events[events["feature"].isin(table.loc[chosen, "feature"]) & events["judged"]]
        relays = share(int(table.loc[chosen, "relay"].sum()), int(chosen.sum()))
        rows.append({"measure": "relays", "group": group, **relays})
        for event in ("birth", "death"):
            of_event = own.loc[own["event"] == event, "silent"]
            silent = share(int(of_event.sum()), len(of_event))
            rows.append({"measure": f"silent_{event}s", "group": group, **silent})
        known = ~np.isnan(gates[chosen])
        agree = ((gates[chosen] >= gate) == present[chosen])[known]
        # Snapshots of one feature are not independent, so there is no interval.
        both = {"value": float(agree.mean()) if agree.size else np.nan, "count": agree.size}
        rows.append({"measure": "signs_agree", "group": group, **both})
    return pd.DataFrame(rows)


def measure(
    settings: Settings,
    crosscoder: Path,
    activations: Path,
    features: Path,
    trust: Path,
    events: Path,
    relays: Path,
    by_snapshot: Path,
    verdicts: Path,
) -> None:
    """Write the diagnostics of one crosscoder, and print what is doubtful.

    Parameters
    ----------
    crosscoder : folder of the seed that the features table describes. activations : the
        experiment's folder. features : the features table.
    trust : Parquet, one row per living feature. events : CSV, one row per birth or death.
    relays : CSV of `find_relays`. by_snapshot : CSV. verdicts : CSV of `find_verdicts`. Their
        columns are in columns.yaml.
    """
    section, analysis = settings.section(Trust), settings.analysis
    trained = Crosscoder.load(crosscoder, devices.choose(settings.device))
    sites = [Site(*site) for site in trained.about.outputs]
    steps = np.array([site.snapshot for site in sites])
    numbers = snapshot_numbers(settings, steps)
    about = read_table(features)
    about = about[about["alive"]].reset_index(drop=True)
    living = about["feature"].to_numpy()
    f, position = held_out(trained, activations)
    gates = gate_rates(trained, f)[living]
    f = sparse.csr_array(f[:, living])
    decoders = trained.decoders(living).cpu().numpy()
    normalised = normalise(np.linalg.norm(decoders, axis=2))
    present = lives(normalised, analysis.presence, analysis.absence)

    scales = trained.scales_out.cpu().numpy()
    _, block = np.unique(position[:, 0], return_inverse=True)
    with bar("trust", len(sites), "snapshots") as progress:

        def read(site: int) -> np.ndarray:
            """A site's activations as the dictionary sees them, minus any token table."""
            progress.update()
            rows = HeldOut(activations, [sites[site]], scales[site : site + 1])
            ids = rows.tokens_at(0, len(position))[:, 1]
            table = trained.table.at(site, ids)
            a = rows.read(0, len(position))[:, 0]
            return a if isinstance(table, float) else a - table.cpu().numpy()

        explained = read_out(f, read, len(sites), block % 2 == 0)
    found = find_relays(decoders, present, f.tocsc(), section.relay_cosine, section.relay_overlap)
    table = pd.DataFrame(
        {
            "feature": living,
            "frequent": about["density"] >= section.frequent,
            "matched": about["matched"],
            "relay": np.isin(np.arange(len(living)), found[["falling", "rising"]]),
            "readable": np.where(present, explained, -np.inf).max(1),
        }
    )
    judged = judge_events(present, explained, section.readable, section.silent)
    for event in ("birth", "death"):
        silent = judged.loc[(judged["event"] == event) & judged["silent"], "feature"]
        table[f"silent_{event}"] = np.isin(np.arange(len(living)), silent)
    judged["feature"] = living[judged["feature"]]
    shares = find_verdicts(table, judged, gates, present, section.gate)
    for column in ("falling", "rising"):
        found[column] = living[found[column].to_numpy(int)]
    for name, frame in (("death", found), ("birth", found), ("snapshot", judged)):
        at = frame.pop(name).to_numpy(int)
        suffix = "" if name == "snapshot" else f"{name}_"
        frame[f"{suffix}snapshot_index"], frame[f"{suffix}step"] = numbers[at], steps[at]
    quartiles = np.quantile(normalised, [0.25, 0.5, 0.75], axis=0)
    agree = np.where(np.isnan(gates), np.nan, (gates >= section.gate) == present)
    snapshots = {"snapshot_index": numbers, "step": steps, "present": present.sum(0)}
    snapshots |= dict(zip(("strength_q25", "strength_median", "strength_q75"), quartiles,
                          strict=True))  # fmt: skip
    known = ~np.isnan(agree)
    snapshots["signs_agree"] = np.divide(
        np.where(known, agree, 0).sum(0),
        known.sum(0),
        out=np.full(len(steps), np.nan),
        where=known.any(0),
    )
    write_table(relays, found)
    write_table(events, judged)
    write_table(by_snapshot, pd.DataFrame(snapshots))
    write_table(verdicts, shares)
    write_table(trust, table)
    for line in doubts(shares):
        print(f"{crosscoder.parent.name}: {line}")
