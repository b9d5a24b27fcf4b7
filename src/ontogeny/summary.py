"""The experiment's results in one flat file, and what they were made from.

numbers.json has the findings; summary.json has these and their cost, so it is written last;
provenance.json has versions and digests.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ontogeny import doubts, provenance, registry
from ontogeny.activations.basis_file import Kept
from ontogeny.activations.store import open_checked
from ontogeny.declarations import function
from ontogeny.experiment import Experiment
from ontogeny.features.matching import shares
from ontogeny.files import digest_value, read_hdf5, read_job, read_json, write_json
from ontogeny.scratch import below


def known(values: dict[str, Any]) -> dict[str, Any]:
    """The same with None, JSON's null, for unknown values, such as those of a constant stream."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }


def timings(folder: str | Path) -> tuple[dict[str, float], float]:
    """Wall seconds by stage (jobs added up), and the peak memory in bytes of any one job.

    Parameters
    ----------
    folder : Snakemake's benchmark files, STAGE/*.tsv or STAGE.tsv.
    """
    seconds: dict[str, float] = {}
    peak = 0.0
    for path in sorted(Path(folder).glob("**/*.tsv")):
        row = read_job(path)
        stage = path.relative_to(folder).parts[0].removesuffix(".tsv")
        seconds[stage] = seconds.get(stage, 0.0) + row["s"]
        if not math.isnan(row["max_rss"]):
            peak = max(peak, row["max_rss"] * 2**20)
    return seconds, peak


def fidelity_numbers(experiment: Experiment, crosscoder: str) -> dict[str, Any]:
    """Numbers of one crosscoder, means over its seeds, sites and features."""
    seeds = experiment.settings.crosscoders[crosscoder].seeds
    tables = [experiment.table("fidelity", crosscoder, seed=seed) for seed in seeds]
    dead = [experiment.table("density", crosscoder, seed=seed)["dead"] for seed in seeds]
    sites = pd.concat(tables)
    last = pd.concat([table[table["step"] == table["step"].max()] for table in tables])
    return {
        "explained_variance_total_mean": float(sites["explained_variance"].mean()),
        "explained_variance_min": float(sites["explained_variance"].min()),
        "explained_variance_beyond_mean": float(sites["explained_variance_beyond"].mean()),
        "l0_mean": float(sites.loc[sites["explained_variance"].notna(), "l0"].mean()),
        "dead_fraction": float(pd.concat(dead).mean()),
        "pca_explained_variance": float(sites["pca_explained_variance"].mean()),
        "token_explained_variance": float(sites["token_explained_variance"].mean()),
        "pair_explained_variance": float(sites["pair_explained_variance"].mean()),
        "loss_recovered_last": float(last["loss_recovered"].mean()),
        "loss_recovered_last_low": float(last["loss_recovered_low"].min()),
        "loss_recovered_last_high": float(last["loss_recovered_high"].max()),
    }


def _basis(experiment: Experiment, crosscoder: str) -> dict[str, Any]:
    """How much of each site's variance the principal subspace of a crosscoder keeps."""
    sites = experiment.basis_of(crosscoder)
    if sites is None or not experiment.path("basis", sites=sites).exists():
        return {}
    kept = Kept.read(experiment.path("basis", sites=sites))
    return {
        "basis_dimensions": kept.dimensions,
        "basis_kept_least": kept.least,
        "basis_kept_least_site": kept.worst,
        "basis_kept": dict(zip(kept.sites, kept.shares.tolist(), strict=True)),
    }


def _stability(experiment: Experiment, crosscoder: str) -> dict[str, Any]:
    """Share of living features that match, its quantiles, and agreement of the matches' peaks."""
    matches = experiment.table("matches", crosscoder)
    threshold = experiment.settings.analysis.matched_cosine
    if matches.empty:
        return {"matched_feature_share": None}
    matched = matches[matches["cosine"] >= threshold]
    apart = (matched["peak_snapshot_index"] - matched["partner_peak_index"]).abs()
    frequent = matches.nlargest(200, "density")
    quantiles = matches["cosine"].fillna(0).quantile([0.25, 0.5, 0.75])
    return {
        "matched_feature_share": len(matched) / len(matches),
        "matched_feature_share_frequent_200": float((frequent["cosine"] >= threshold).mean()),
        **{f"matched_cosine_q{q:.0%}".rstrip("%"): float(v) for q, v in quantiles.items()},
        "matched_peaks_within_two": float((apart <= 2).mean()) if len(matched) else None,
        **_without_training(experiment, crosscoder),
    }


def _without_training(experiment: Experiment, crosscoder: str) -> dict[str, Any]:
    """The shares matched by token means, by random rows, and by further seeds.

    Empty if they were not measured: only the stability figure of the primary crosscoder needs them.
    """
    if not experiment.path("stability_baselines", crosscoder=crosscoder).exists():
        return {}
    table = experiment.table("stability_baselines", crosscoder)
    matches = experiment.table("matches", crosscoder)
    found = shares(table, matches, experiment.settings.analysis.matched_cosine)
    return {f"matched_feature_share_{name}": value for name, value in found.items()}


def _histories(experiment: Experiment, crosscoder: str) -> dict[str, Any]:
    """Numbers from a crosscoder's feature tables."""
    features = experiment.table("features", crosscoder)
    living = features[features["alive"]]
    values = {"living_features": len(living), **_stability(experiment, crosscoder)}
    turning = experiment.json("turning_point", crosscoder=crosscoder)
    for group, end in (("all", ""), ("matched", "_matched")):
        if group in turning:
            about = turning[group]
            values |= {f"turning_point_{key}{end}": about[key] for key in ("step", "low", "high")}
            values |= {f"{key}_block_cosine{end}": about[key] for key in ("within", "between")}
    for kind in ("initialisation", "emergent", "transient"):
        values[f"{kind}_features"] = int(living[kind].sum())
    matched = living[living["matched"]]
    values |= {
        "initialisation_share": float(living["initialisation"].mean()) if len(living) else None,
        "initialisation_share_matched": float(matched["initialisation"].mean())
        if len(matched)
        else None,
    }
    strengths = experiment.table("strengths", crosscoder)
    return values | _dip(strengths, living) | _medians(strengths, living)


def _medians(strengths: pd.DataFrame, living: pd.DataFrame) -> dict[str, Any]:
    """Median normalised strength of living features: minimum and where, deepest dip and where.

    The depth of a dip at a snapshot is the smaller of the distances to the largest value so far and
    to the largest value from then on.
    """
    own = strengths[strengths["feature"].isin(living["feature"])]
    if own.empty:
        return {}
    by_step = own.groupby("step")["normalised_strength"].median()
    steps, median = by_step.index.to_numpy(), by_step.to_numpy()
    until, after = np.maximum.accumulate(median), np.maximum.accumulate(median[::-1])[::-1]
    dip = np.minimum(until, after) - median
    return {
        "least_median_strength": float(median.min()),
        "least_median_strength_step": int(steps[median.argmin()]),
        "median_strength_dip": float(dip.max()),
        "median_strength_dip_step": int(steps[dip.argmax()]),
    }


def _dip(strengths: pd.DataFrame, living: pd.DataFrame) -> dict[str, Any]:
    """Mean normalised strength of initialisation features: first, minimum and where, last."""
    own = strengths[strengths["feature"].isin(living.loc[living["initialisation"], "feature"])]
    if own.empty:
        return {}
    mean = own.groupby("step")["normalised_strength"].mean()
    return {
        "initialisation_strength_first": float(mean.iloc[0]),
        "initialisation_strength_least": float(mean.min()),
        "initialisation_strength_least_step": int(mean.index.to_numpy()[mean.argmin()]),
        "initialisation_strength_last": float(mean.iloc[-1]),
    }


def _pretraining(experiment: Experiment) -> dict[str, Any]:
    """Numbers of a model that is trained here."""
    log = experiment.table("log")
    measured = log.dropna(subset=["copying_gain"]).iloc[-1]
    return {
        "pretrain_tokens": int(log["tokens"].max()),
        "copying_gain_last": float(measured["copying_gain"]),
    }


def _others(experiment: Experiment) -> dict[str, Any]:
    """Numbers of the crosscoders other than the primary one."""
    values: dict[str, Any] = {}
    for name, settings in experiment.settings.crosscoders.items():
        if name == experiment.primary:
            continue
        own = fidelity_numbers(experiment, name)
        if not settings.train_decoder:
            values["random_dictionary_explained_variance"] = own["explained_variance_total_mean"]
            continue
        if experiment.has_histories(name):
            own |= _histories(experiment, name)
        values |= {f"{name}_{key}": value for key, value in own.items()}
    return values


def gather(experiment: Experiment) -> None:
    """Write numbers.json from everything that was measured."""
    settings = experiment.settings
    values: dict[str, Any] = {
        "snapshots": len(experiment.steps),
        **(_pretraining(experiment) if experiment.has("log") else {}),
        "final_loss": float(experiment.table("phases")["loss"].iloc[-1]),
        **experiment.json("levels"),
        "primary": experiment.primary,
        "features": settings.crosscoders[experiment.primary].features,
        **_basis(experiment, experiment.primary),
        **fidelity_numbers(experiment, experiment.primary),
    }
    if experiment.path("features").exists():  # not for one snapshot, or several sites
        values |= _histories(experiment, experiment.primary)
        for name in experiment.analyses():
            numbers = registry.all_analyses()[name].numbers
            values |= function(numbers)(experiment) if numbers else {}
    write_json(experiment.path("numbers"), known(values | _others(experiment)))


def summarise(experiment: Experiment) -> None:
    """Write summary.json and provenance.json of a finished experiment."""
    seconds, peak = timings(experiment.path("benchmarks"))
    values: dict[str, Any] = dict(experiment.json("numbers"))
    values["wall_seconds"] = round(sum(seconds.values()), 1)
    values |= {f"wall_seconds_{stage}": round(s, 1) for stage, s in seconds.items()}
    values["peak_memory_bytes"] = int(peak)
    # Snapshots are links to the archive's files: each inode counts once.
    files = [p.stat() for p in below(experiment.folder) if p.is_file() and not p.is_symlink()]
    values["disk_bytes"] = sum({(s.st_dev, s.st_ino): s.st_size for s in files}.values())
    values["doubts"] = [*values.get("doubts", []), *doubts.every(experiment)]  # trust's come first
    write_json(experiment.path("summary"), known(values))
    write_json(experiment.path("provenance"), _provenance(experiment))
    doubts.tell(values["doubts"])


def _provenance(experiment: Experiment) -> dict[str, Any]:
    """What the results were made from; no commit if the package is not in a checkout."""
    root = provenance.ROOT.parents[1]
    with read_hdf5(experiment.path("tokens"), "a file of tokens") as file:
        digests = {name: str(file.attrs[name]) for name in ("corpus", "tokenizer")}
    with open_checked(experiment.path("stack", site=experiment.sites[0])) as file:
        tokens = str(file.attrs["tokens"])
    # Each snapshot that was not trained here names its source.
    sources = {step: experiment.path("snapshot", step=step) for step in experiment.steps}
    sources = {step: folder / "source.json" for step, folder in sources.items()}
    return {
        "commit": provenance.commit(root) if (root / ".git").exists() else "",
        "versions": provenance.versions(),
        "settings_digest": digest_value(experiment.settings.model_dump(mode="json")),
        "corpus_sha256": digests["corpus"],
        "tokenizer_sha256": digests["tokenizer"],
        "tokens_sha256": tokens,
        "snapshots": {
            str(step): read_json(path) for step, path in sources.items() if path.exists()
        },
    }
