"""The experiment in one flat file: results/NAME/summary.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from ontogeny import provenance
from ontogeny.files import digest_value, write_json
from ontogeny.scratch import below
from ontogeny.settings import Settings


def timings(folder: str | Path) -> tuple[dict[str, float], float]:
    """Wall seconds by stage (jobs added up), and the peak memory in bytes of any one job.

    Parameters
    ----------
    folder : Snakemake's benchmark files, STAGE/*.tsv or STAGE.tsv.
    """
    seconds: dict[str, float] = {}
    peak = 0.0
    for path in sorted(Path(folder).glob("**/*.tsv")):
        row = pd.read_csv(path, sep="\t", na_values="-").iloc[0]
        stage = path.relative_to(folder).parts[0].removesuffix(".tsv")
        seconds[stage] = seconds.get(stage, 0.0) + float(row["s"])
        if pd.notna(row["max_rss"]):
            peak = max(peak, float(row["max_rss"]) * 2**20)
    return seconds, peak


def _mean_of(tables: list[pd.DataFrame], column: str) -> float:
    return float(pd.concat(tables)[column].mean())


def fidelity_numbers(folder: Path, seeds: list[int]) -> dict[str, Any]:
    """Numbers of one crosscoder: the first seed's where they name features, else seeds' means."""
    tables = [pd.read_csv(folder / f"seed{seed}" / "fidelity.csv") for seed in seeds]
    dead = [pd.read_parquet(folder / f"seed{seed}" / "density.parquet") for seed in seeds]
    last = [t[t["step"] == t["step"].max()] for t in tables]
    return {
        "explained_variance_mean": _mean_of(tables, "explained_variance"),
        "explained_variance_min": float(pd.concat(tables)["explained_variance"].min()),
        "l0_mean": _mean_of(tables, "l0"),
        "dead_fraction": float(pd.concat(dead)["dead"].mean()),
        "pca_explained_variance": _mean_of(tables, "pca_explained_variance"),
        "loss_recovered_last": _mean_of(last, "loss_recovered"),
    }


def _stability(matches: pd.DataFrame, threshold: float) -> dict[str, Any]:
    """Share of living features that match, its quantiles, and agreement of the matched's peaks."""
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
    }


def _histories(tables: Path, threshold: float) -> dict[str, Any]:
    """Numbers of the primary crosscoder's feature tables."""
    features = pd.read_parquet(tables / "features.parquet")
    turning = json.loads((tables / "turning_point.json").read_text())
    living = features[features["alive"]]
    values = {
        "living_features": len(living),
        **_stability(pd.read_csv(tables / "matches.csv"), threshold),
    }
    for group, end in (("all", ""), ("matched", "_matched")):
        if group not in turning:
            continue
        for key in ("step", "low", "high"):
            values[f"turning_point_{key}{end}"] = turning[group][key]
        for key in ("within", "between"):
            values[f"{key}_block_cosine{end}"] = turning[group][key]
    for kind in ("initialisation", "emergent", "transient"):
        values[f"{kind}_features"] = int(living[kind].sum())
    return values | _dip(tables, living)


def _dip(tables: Path, living: pd.DataFrame) -> dict[str, Any]:
    """Mean normalised strength of the initialisation features: first, least and where, last."""
    strengths = pd.read_parquet(tables / "strengths.parquet")
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


def _dimensionality(s: Settings, folder: Path) -> dict[str, Any]:
    """How many of the stream's dimensions the first seed's features take up: first, least, last."""
    size = pd.read_csv(_tables(s, folder) / "dimensionality.csv")
    size = size[(size["group"] == "all") & (size["seed"] == size["seed"].iloc[0])]
    least = size.loc[size["share"].idxmin()]
    return {
        "dimensionality_first": float(size["share"].iloc[0]),
        "dimensionality_least": float(least["share"]),
        "dimensionality_least_step": int(least["step"]),
        "dimensionality_last": float(size["share"].iloc[-1]),
    }


def _kinds(s: Settings, folder: Path) -> dict[str, Any]:
    """Features of each kind, and when they appear: median and quartiles of the onset step."""
    tables = _tables(s, folder)
    kinds = pd.read_parquet(tables / "kinds.parquet")
    control = pd.read_csv(tables / "kinds_control.csv").set_index("kind")
    features = pd.read_parquet(tables / "features.parquet").merge(kinds, on="feature")
    values: dict[str, Any] = {
        "kinds_permuted_features": int(control["permuted"].drop("none").sum()),
    }
    for kind in control.index.drop("none"):
        some = features[features["alive"] & (features["kind"] == kind)]
        values[f"{kind}_features"] = int(control.loc[kind, "features"])
        for group, part in (("", some), ("_matched", some[some["matched"]])):
            onset = part["onset_step"].quantile([0.25, 0.5, 0.75]) if len(part) else [None] * 3
            names = ("q25", "median", "q75")
            values |= {
                f"{kind}_onset_{name}{group}": value
                for name, value in zip(names, onset, strict=True)
            }
    return values


def _complexity(s: Settings, folder: Path) -> dict[str, Any]:
    """Correlations of the context spans with peak and onset, of all features and the emergent."""
    table = pd.read_csv(_tables(s, folder) / "complexity.csv")
    values: dict[str, Any] = {}
    for group, end in (("all", ""), ("emergent", "_emergent")):
        some = table[(table["which"] == "all") & (table["class"] == group)]
        for row in some.to_dict("records"):
            against = str(row["against"]).removesuffix("_snapshot_index")
            name = f"{row['score']}_{against}_{row['coefficient']}{end}"
            values |= {name: row["value"], f"{name}_low": row["low"], f"{name}_high": row["high"]}
    return values


def _presence(s: Settings, folder: Path) -> dict[str, Any]:
    """Share of the features and snapshots that are absent by norm but there by scaling."""
    values: dict[str, Any] = {}
    for name in s.crosscoders:
        path = folder / "features" / name / "presence.csv"
        if not path.exists():
            continue
        table = pd.read_csv(path)
        at = (table["measure"] == "contradicted") & (table["group"] == "all")
        at &= (table["threshold"] - s.presence_tests.contradicted).abs() < 1e-9
        for test in ("scaling", "free"):
            row = table[at & (table["test"] == test)].iloc[0]
            key = f"{name}_absent_contradicted_{test}"
            values |= {key: row["value"], f"{key}_low": row["low"], f"{key}_high": row["high"]}
    return values


def _induction(s: Settings, folder: Path) -> dict[str, Any]:
    """Onset steps of heads and copying; none where they do not form."""
    table = pd.read_csv(folder / "phases" / "induction.csv")
    table = table[table["event"] != "features"]
    values: dict[str, Any] = {}
    for event, rows in table.groupby("event"):
        formed = rows[rows["verdict"] == "forms"]
        values[f"{event}_onset"] = formed["onset_step"].min() if len(formed) else None
        values[f"{event}_maximum"] = rows["maximum"].max()
    return values


def _circuits(s: Settings, folder: Path) -> dict[str, Any]:
    """Accuracy in each task at the last snapshot, and what its features alone restore."""
    own = folder / "circuits" / s.primary
    behaviour, found = pd.read_csv(own / "behaviour.csv"), pd.read_csv(own / "circuits.csv")
    values: dict[str, Any] = {}
    last = behaviour[behaviour["step"] == behaviour["step"].max()]
    for row in last.itertuples():
        values[f"task_{row.task}_accuracy"] = row.accuracy
        values[f"task_{row.task}_done"] = bool(row.done)
    done = found[(found["step"] == found["step"].max()) & found["done"]]
    for row in done[done["side"] == "sufficiency"].itertuples():
        for key in ("k_enough", "features_alone", "area_random", "area_matched"):
            value = float(getattr(row, key))
            values[f"task_{row.task}_{key}"] = value if np.isfinite(value) else None
    return values


def _tables(s: Settings, folder: Path) -> Path:
    return folder / "features" / s.primary


NUMBERS_OF: dict[str, Callable[[Settings, Path], dict[str, Any]]] = {
    "dimensionality": _dimensionality,
    "kinds": _kinds,
    "complexity": _complexity,
    "presence": _presence,
    "induction": _induction,
    "circuits": _circuits,
}


def _pretraining(folder: Path) -> dict[str, Any]:
    """Numbers of a model that was trained here."""
    log = pd.read_csv(folder / "pretrain" / "log.csv")
    measured = log.dropna(subset=["copying_gain"]).iloc[-1]
    return {
        "pretrain_tokens": int(log["tokens"].max()),
        "copying_gain_last": float(measured["copying_gain"]),
    }


def _sources(settings: Settings, folder: Path) -> dict[str, Any]:
    """Where each snapshot that was not trained here came from, as its source.json tells."""
    found = {}
    for step in settings.snapshots.chosen:
        path = folder / "snapshots" / f"step{step}" / "source.json"
        if path.exists():
            found[str(step)] = json.loads(path.read_text())
    return found


def summarise(settings: Settings, folder: str | Path, source: str | Path) -> None:
    """Write summary.json and provenance.json of a finished experiment.

    Parameters
    ----------
    folder : results/NAME. source : folder of the workflow's source, for the git commit.
    """
    folder = Path(folder)
    primary = settings.crosscoders[settings.primary]
    levels = json.loads((folder / "phases" / "levels.json").read_text())
    phases = pd.read_csv(folder / "phases" / "phases.csv")
    tables = folder / "features" / settings.primary
    seconds, peak = timings(folder / "benchmarks")

    values: dict[str, Any] = {
        "snapshots": len(settings.snapshots.chosen),
        **(_pretraining(folder) if settings.snapshots.pretrain is not None else {}),
        "final_loss": float(phases["loss"].iloc[-1]),
        **levels,
        "primary": settings.primary,
        "features": primary.features,
        **fidelity_numbers(folder / "crosscoders" / settings.primary, primary.seeds),
    }
    if tables.exists():  # a dictionary of fewer than four snapshots has no histories
        values |= _histories(tables, settings.analysis.matched_cosine)
        for analysis in settings.analyses:
            values |= NUMBERS_OF[analysis](settings, folder) if analysis in NUMBERS_OF else {}
    for name, other in settings.crosscoders.items():
        if name == settings.primary:
            continue
        found = fidelity_numbers(folder / "crosscoders" / name, other.seeds)
        if not other.train_decoder:
            values["random_dictionary_explained_variance"] = found["explained_variance_mean"]
            continue
        values |= {f"{name}_{key}": value for key, value in found.items()}
        there = folder / "features" / name / "matches.csv"
        if there.exists():
            stability = _stability(pd.read_csv(there), settings.analysis.matched_cosine)
            values |= {f"{name}_{key}": value for key, value in stability.items()}
    values["wall_seconds"] = round(sum(seconds.values()), 1)
    values |= {f"wall_seconds_{stage}": round(s, 1) for stage, s in seconds.items()}
    values["peak_memory_bytes"] = int(peak)
    # Snapshots are links to the archive's files: each inode counts once.
    files = {(s.st_dev, s.st_ino): s.st_size for s in map(Path.stat, _files(folder))}
    values["disk_bytes"] = sum(files.values())
    write_json(folder / "summary.json", values)

    with h5py.File(folder / "corpus" / "tokens.h5") as file:
        digests = {name: str(file.attrs[name]) for name in ("corpus", "tokenizer")}
    write_json(
        folder / "provenance.json",
        {
            "commit": provenance.commit(source),
            "versions": provenance.versions(),
            "settings_digest": digest_value(settings.model_dump(mode="json")),
            "corpus_sha256": digests["corpus"],
            "tokenizer_sha256": digests["tokenizer"],
            "tokens_sha256": _tokens_digest(folder, settings),
            "snapshots": _sources(settings, folder),
        },
    )


def _files(folder: Path) -> list[Path]:
    return [p for p in below(folder) if p.is_file() and not p.is_symlink()]


def _tokens_digest(folder: Path, settings: Settings) -> str:
    a = settings.activations
    name = f"{a.streams[0]}.{a.layers[0]}"
    with h5py.File(folder / "activations" / name / "stack.h5") as file:
        return str(file.attrs["tokens"])
