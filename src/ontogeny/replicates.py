"""The same experiment with other models: which results replicate (docs/method.md 8).

It compares every number of summary.json by model, with its mean and 95% t interval over models that
differ only in the seed; the curves behind the findings; and single features across models. Decoders
of two models are in different spaces, so features are matched by what they do: the correlation of
their activations f and g (N, F) on the same N held-out positions,

    c_ij = Σ_t (f_ti − f̄_i)(g_tj − ḡ_j) / (N σ_i σ_j),

one to one, with the largest possible sum.

The time of an event is given twice: as the training step, and as the sum of the learning rate up to
it, Σ_{t < step} lr_t, in steps at the experiment's own peak rate. If models with different warm-ups
or rates reach a point at the same sum, their weights were moved equally far by then.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse, stats

from ontogeny import devices
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.features.held_out import held_out
from ontogeny.features.histories import contrasts, split_step
from ontogeny.features.matching import assign
from ontogeny.files import InputError, read_json, read_table, write_table
from ontogeny.settings import Pretrain, Settings
from ontogeny.settings.experiment import MODEL_SEED
from ontogeny.snapshots.pretrain import learning_rate

Files = dict[str, Path]
"""The paths of the products of a model's experiment, by their names in the map."""
# Numbers of summary.json that depend on the machine, or that all models share.
LEFT_OUT = ("wall_seconds", "peak_memory", "disk_bytes", "snapshots", "features", "pretrain_tokens")
# Steps of events that are also given as the sum of the learning rate.
CLOCKED = (
    "unigram_crossing_step",
    "bigram_crossing_step",
    "turning_point_step",
    "turning_point_low",
    "turning_point_high",
    "initialisation_strength_least_step",
    "previous_token_onset_median",
    "previous_token_head_onset",
    "copying_gain_onset",
)


def correlations(f: sparse.csr_array, g: sparse.csr_array) -> np.ndarray:
    """c, (F1, F2), of activations (N, F1) and (N, F2); 0 where a feature does not vary."""
    N = f.shape[0]
    means = [np.asarray(x.sum(0)).ravel() / N for x in (f, g)]
    squares = [np.asarray(x.power(2).sum(0)).ravel() / N for x in (f, g)]
    spread = [np.sqrt(np.maximum(s - m**2, 0)) for s, m in zip(squares, means, strict=True)]
    both = (f.T @ g).toarray() / N - np.outer(*means)
    scale = np.outer(*spread)
    return np.divide(both, scale, out=np.zeros_like(both), where=scale > 1e-12)


def interval(values: np.ndarray) -> dict[str, float]:
    """Number of finite values, mean, 95% t interval of the mean (NaN for fewer than two)."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    count = len(values)
    mean = float(values.mean()) if count else np.nan
    half = np.nan
    if count > 1:
        half = float(stats.t.ppf(0.975, count - 1) * values.std(ddof=1) / np.sqrt(count))
    return {"models": count, "mean": mean, "low": mean - half, "high": mean + half}


def rate_sum(p: Pretrain, step: float, peak: float) -> float:
    """Σ_{t < step} lr_t over a peak rate; a fraction of a step counts in proportion.

    All models are divided by the same peak; otherwise, twice the rate would give the same sum.
    """
    whole = int(step)
    total = sum(learning_rate(t, p) for t in range(whole))
    return (total + (step - whole) * learning_rate(whole, p)) / peak


def match_models(first: Files, second: Files, device: torch.device) -> pd.DataFrame:
    """Living features of one model, each with its partner in another and their correlation.

    Raises
    ------
    InputError : the models read different text, so that their positions differ.
    """
    read = []
    for files in (first, second):
        trained = Crosscoder.load(files["trained"], device)
        f, position = held_out(trained, files["activations"])
        active = np.flatnonzero(np.asarray((f > 0).sum(0)).ravel())
        read.append((trained.about.tokens, f[:, active].astype(np.float64), position, active))
    (text, f, position, own), (other_text, g, other_position, others) = read
    if text != other_text or not np.array_equal(position, other_position):
        raise InputError(
            f"{second['trained']}: trained on a different text from {first['trained']}; run both "
            "again"
        )
    partner, correlation = assign(correlations(f, g))
    named = np.where(partner >= 0, others[partner], -1)
    return pd.DataFrame({"feature": own, "partner": named, "correlation": correlation})


def _features(files: Files) -> pd.DataFrame:
    """Histories of a model's features, with their kinds if they are known."""
    columns = ["feature", "onset_step", "peak_snapshot_index", "initialisation"]
    table = read_table(files["features"])[columns]
    if files["kinds"].exists():
        kinds = read_table(files["kinds"])[["feature", "kind"]]
        table = table.merge(kinds, on="feature", how="left")
        table["kind"] = table["kind"].fillna("none")
    return table


def agreement(matches: pd.DataFrame, least: float, samples: int, seed: int) -> dict[str, float]:
    """How well histories of a model's features agree with those of matched features in another.

    Parameters
    ----------
    matches : one row per living feature; correlation, and for feature and partner initialisation,
        onset_step, peak_snapshot_index. least : smallest correlation of matched features.

    Returns
    -------
    matched_share; for matched features: peaks_within_two (share whose peak snapshots are at most
    two apart), emergent_both (how many are emergent in both models), and for those onset_spearman
    with its bootstrap interval onset_spearman_low, onset_spearman_high (NaN below ten).
    """
    matched = matches[matches["correlation"] >= least]
    apart = (matched["peak_snapshot_index"] - matched["partner_peak_snapshot_index"]).abs()
    both = matched[~matched["initialisation"] & ~matched["partner_initialisation"].astype(bool)]
    values = {
        "matched_share": len(matched) / len(matches),
        "peaks_within_two": float((apart <= 2).mean()) if len(matched) else np.nan,
        "emergent_both": float(len(both)),
    }
    onsets = both[["onset_step", "partner_onset_step"]].to_numpy()
    rho = [np.nan] * 3
    if len(onsets) >= 10:
        rng = np.random.default_rng(seed)
        draws = [
            stats.spearmanr(*onsets[rng.integers(0, len(onsets), len(onsets))].T)[0]
            for _ in range(samples)
        ]
        rho = [stats.spearmanr(*onsets.T)[0], *np.nanquantile(draws, [0.025, 0.975])]
    names = ("onset_spearman", "onset_spearman_low", "onset_spearman_high")
    return values | dict(zip(names, map(float, rho), strict=True))


def _curves(files: Files) -> pd.DataFrame:
    """The data behind the findings, tidy: panel, group, step, value.

    loss; dimensionality (share of d, first seed); strength by kind (mean normalised strength);
    contrast: mean cosine within minus between the blocks of each split of the direction matrix.
    """
    loss = read_table(files["phases"])
    parts = [loss.assign(panel="loss", group="model", value=loss["loss"])]
    if files["dimensionality"].exists():
        size = read_table(files["dimensionality"])
        size = size[(size["group"] == "all") & (size["seed"] == size["seed"].iloc[0])]
        parts.append(size.assign(panel="dimensionality", group="features", value=size["share"]))
    if files["kinds"].exists():
        kinds = read_table(files["kinds"])[["feature", "kind"]]
        strengths = read_table(files["strengths"]).merge(kinds, on="feature")
        mean = strengths.groupby(["kind", "step"])["normalised_strength"].mean()
        table = mean.rename_axis(["group", "step"]).rename("value").reset_index()
        parts.append(table.assign(panel="strength"))
    cosines = read_table(files["directions"])
    cosines = cosines[cosines["group"] == "all"]
    matrix = cosines.pivot(index="step", columns="other_step", values="cosine")
    by_split = contrasts(matrix.to_numpy())
    at = [split_step(matrix.index.to_numpy(), split) for split in by_split]
    split = pd.DataFrame({"step": at, "value": list(by_split.values())})
    parts.append(split.assign(panel="contrast", group="directions"))
    return pd.concat([part[["panel", "group", "step", "value"]] for part in parts])


def onsets(results: dict[str, Files], only_seed: list[str]) -> pd.DataFrame:
    """When heads, copying and kinds of feature form in each model, and their range over seeds.

    The best head of a score differs between models, so its name is not given here.

    Parameters
    ----------
    results : as for `compare`. only_seed : models that differ only in their seed.

    Returns
    -------
    event, detail, group, the onset step in each model (NaN if none), models (number of those in
        only_seed that have one), earliest, latest; in the order of the first model. There are no
        rows unless induction has been measured for every model.
    """
    names = ["event", "detail", "group"]
    if not all(files["induction"].exists() for files in results.values()):
        return pd.DataFrame(columns=[*names, *results, "models", "earliest", "latest"])
    columns = {}
    for model, files in results.items():
        table = read_table(files["induction"], dtype={"detail": str, "group": str})
        table = table.fillna({"detail": "", "group": ""})
        of_head = table["event"].str.contains("_head")
        table["detail"] = table["detail"].mask(of_head, "")
        columns[model] = table.set_index(names)["onset_step"]
    every = pd.DataFrame(columns).reindex(next(iter(columns.values())).index)
    alike = every[only_seed]
    every["models"] = alike.notna().sum(axis=1)
    every["earliest"], every["latest"] = alike.min(axis=1), alike.max(axis=1)
    return every.reset_index()


def _numbers(path: Path, pretrain: Pretrain | None, itself: Pretrain | None) -> dict[str, Any]:
    """The numbers of a model to compare, by name; `itself` is the experiment's own."""
    assert pretrain is not None  # only models that are trained here have replicates
    assert itself is not None
    peak = itself.learning_rate
    values = {
        key: value
        for key, value in read_json(path).items()
        if not isinstance(value, (str, dict, list)) and not key.startswith(LEFT_OUT)
    }
    clocked = [key for key in CLOCKED if values.get(key) is not None]
    return values | {f"{key}_rate_sum": rate_sum(pretrain, values[key], peak) for key in clocked}


def numbers_of(settings: Settings, results: dict[str, Files]) -> dict[str, dict[str, Any]]:
    """The numbers of each model to compare, by model and name; the experiment is first."""
    itself, *others = results
    models = {itself: settings} | {name: settings.replicate(name) for name in others}
    peak_of = settings.snapshots.pretrain
    return {
        name: _numbers(results[name]["numbers"], own.snapshots.pretrain, peak_of)
        for name, own in models.items()
    }


def compare(
    settings: Settings,
    results: dict[str, Files],
    numbers: Path,
    curves: Path,
    matches: Path,
    onsets_by_event: Path,
) -> None:
    """Write the comparison of the experiment and its replicates.

    Parameters
    ----------
    results : by model, the experiment itself first, paths of its products: numbers, trained (first
        seed), activations, phases, features, strengths, directions, and if they have been made
        kinds, dimensionality and induction.
    numbers : CSV; quantity, one column per model, then models, mean, low, high over those that
        differ only in the seed.
    curves : CSV; model, only_seed, panel, group, step, value.
    matches : Parquet; other, feature, partner, correlation, and the histories of both: features of
        the experiment itself, compared with every other model.
    onsets_by_event : CSV of `onsets`.
    """
    itself, *others = results
    only_seed = [itself] + [n for n in others if set(settings.replicates[n]) == {MODEL_SEED}]
    values = numbers_of(settings, results)
    shared = [key for key in values[itself] if all(key in each for each in values.values())]
    table = pd.DataFrame({name: {k: each[k] for k in shared} for name, each in values.items()})
    device = devices.choose(settings.device)
    ours, analysis = _features(results[itself]), settings.analysis
    matched, agreed = [], {}
    for name in others:
        pairs = match_models(results[itself], results[name], device)
        theirs = _features(results[name]).add_prefix("partner_")
        theirs = theirs.rename(columns={"partner_feature": "partner"})
        pairs = pairs.merge(ours, on="feature").merge(theirs, on="partner", how="left")
        known = pairs[pairs["partner"] >= 0]
        agreed[name] = agreement(known, analysis.matched_cosine, analysis.bootstrap, analysis.seed)
        matched.append(pairs.assign(other=name))
    across = pd.DataFrame(agreed).rename("across_models_{}".format)
    spread = [interval(row) for row in table[only_seed].to_numpy(float)]
    table = pd.concat([table, pd.DataFrame(spread, index=table.index)], axis=1)
    # These have no interval: each value is for a pair, and all pairs share a model.
    table = pd.concat([table, across.reindex(columns=table.columns)])
    write_table(numbers, table.rename_axis("quantity").reset_index())
    drawn = [
        _curves(files).assign(model=name, only_seed=name in only_seed)
        for name, files in results.items()
    ]
    columns = ["model", "only_seed", "panel", "group", "step", "value"]
    write_table(curves, pd.concat(drawn)[columns])
    write_table(matches, pd.concat(matched, ignore_index=True))
    write_table(onsets_by_event, onsets(results, only_seed))
