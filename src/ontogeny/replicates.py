"""The same experiment with other models: what comes again (METHOD.md 8).

Every number of summary.json by model, its mean and 95% t interval over those that differ in the
seed alone; the curves that findings are read from; and single features across models. Decoders of
two models lie in different spaces, so that features are matched by what they do: the correlation
of their activations f and g (N, F) on the same N held-out positions,

    c_ij = Σ_t (f_ti − f̄_i)(g_tj − ḡ_j) / (N σ_i σ_j),

one to one, with the largest possible sum.

When something happens is told twice: as the training step, and as what the learning rate has added
up to by then, Σ_{t < step} lr_t / max lr, in steps at the peak rate. Models with different warm-ups
that reach a point at the same sum were moved as far by then.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse, stats

from ontogeny import devices
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.features import evolution, kinds
from ontogeny.features.matching import assign
from ontogeny.files import InputError, write_table
from ontogeny.settings import Pretrain, Settings
from ontogeny.snapshots.pretrain import learning_rate

ITSELF = "itself"
# Numbers of summary.json that tell of the machine, or of what all models share.
LEFT_OUT = ("wall_seconds", "peak_memory", "disk_bytes", "snapshots", "features", "pretrain_tokens")
# Steps at which something happens, told by what the learning rate has added up to as well.
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
    """Number of finite values, mean, 95% t interval of the mean; NaN bounds of fewer than two."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    count = len(values)
    mean = float(values.mean()) if count else np.nan
    half = np.nan
    if count > 1:
        half = float(stats.t.ppf(0.975, count - 1) * values.std(ddof=1) / np.sqrt(count))
    return {"models": count, "mean": mean, "low": mean - half, "high": mean + half}


def rate_sum(p: Pretrain, step: float) -> float:
    """Σ_{t < step} lr_t over the peak rate, a part of a step counting in proportion."""
    whole = int(step)
    total = sum(learning_rate(t, p) for t in range(whole))
    return (total + (step - whole) * learning_rate(whole, p)) / p.learning_rate


def match_models(
    crosscoders: tuple[Path, Path], activations: tuple[Path, Path], device: Any
) -> pd.DataFrame:
    """Living features of one model, each with its partner in another and their correlation.

    Raises
    ------
    InputError : the models read other text, so that their positions are not the same.
    """
    found = []
    for folder, where in zip(crosscoders, activations, strict=True):
        trained = Crosscoder.load(folder, device)
        f, position = kinds.held_out(trained, where)
        active = np.flatnonzero(np.asarray((f > 0).sum(0)).ravel())
        found.append((trained.about.tokens, f[:, active].astype(np.float64), position, active))
    (text, f, position, own), (other_text, g, other_position, others) = found
    if text != other_text or not np.array_equal(position, other_position):
        raise InputError(
            f"{crosscoders[1]}: trained on other text than {crosscoders[0]}; run both again"
        )
    partner, correlation = assign(correlations(f, g))
    named = np.where(partner >= 0, others[partner], -1)
    return pd.DataFrame({"feature": own, "partner": named, "correlation": correlation})


def _features(folder: Path, primary: str) -> pd.DataFrame:
    """Histories of a model's features, with their kinds where they are known."""
    tables = folder / "features" / primary
    columns = ["feature", "onset_step", "peak_snapshot_index", "initialisation"]
    table = pd.read_parquet(tables / "features.parquet")[columns]
    if (tables / "kinds.parquet").exists():
        known = pd.read_parquet(tables / "kinds.parquet")[["feature", "kind"]]
        table = table.merge(known, on="feature", how="left")
        table["kind"] = table["kind"].fillna("none")
    return table


def agreement(matches: pd.DataFrame, least: float, samples: int, seed: int) -> dict[str, float]:
    """How far a model's features, matched with another's, have the same history.

    Parameters
    ----------
    matches : a row a living feature; correlation, and of feature and partner initialisation,
        onset_step, peak_snapshot_index. least : correlation from which two features match.

    Returns
    -------
    matched_share; of the matched: peaks_within_two (share whose peak snapshots are at most two
    apart), emergent_both (how many are emergent in both models), and of those onset_spearman with
    its bootstrap interval onset_spearman_low, onset_spearman_high (NaN below ten).
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
    found = [np.nan] * 3
    if len(onsets) >= 10:
        rng = np.random.default_rng(seed)
        draws = [
            stats.spearmanr(*onsets[rng.integers(0, len(onsets), len(onsets))].T)[0]
            for _ in range(samples)
        ]
        found = [float(stats.spearmanr(*onsets.T)[0]), *np.nanquantile(draws, [0.025, 0.975])]
    names = ("onset_spearman", "onset_spearman_low", "onset_spearman_high")
    return values | dict(zip(names, map(float, found), strict=True))


def _curves(folder: Path, primary: str) -> pd.DataFrame:
    """What findings are read from, tidy: panel, group, step, value.

    loss; dimensionality (share of d, first seed); strength by kind (mean normalised strength);
    contrast: mean cosine within less between the blocks of each split of the direction matrix.
    """
    tables = folder / "features" / primary
    parts = [pd.read_csv(folder / "phases" / "phases.csv")[["step", "loss"]]]
    parts[0] = parts[0].rename(columns={"loss": "value"}).assign(panel="loss", group="model")
    if (tables / "dimensionality.csv").exists():
        size = pd.read_csv(tables / "dimensionality.csv")
        size = size[(size["group"] == "all") & (size["seed"] == size["seed"].iloc[0])]
        size = size[["step", "share"]].rename(columns={"share": "value"})
        parts.append(size.assign(panel="dimensionality", group="features"))
    if (tables / "kinds.parquet").exists():
        strengths = pd.read_parquet(tables / "strengths.parquet")
        known = pd.read_parquet(tables / "kinds.parquet")[["feature", "kind"]]
        mean = strengths.merge(known, on="feature").groupby(["kind", "step"])["normalised_strength"]
        table = mean.mean().reset_index().rename(columns={"kind": "group"})
        table = table.rename(columns={"normalised_strength": "value"})
        parts.append(table.assign(panel="strength"))
    cosines = pd.read_csv(tables / "directions.csv")
    cosines = cosines[cosines["group"] == "all"]
    matrix = cosines.pivot(index="step", columns="other_step", values="cosine")
    steps = matrix.index.to_numpy()
    splits = range(2, len(steps) - 1)
    contrast = [np.subtract(*evolution.split_contrast(matrix.to_numpy(), s)) for s in splits]
    places = [evolution.split_step(steps, s) for s in splits]
    split = pd.DataFrame({"step": places, "value": contrast})
    parts.append(split.assign(panel="contrast", group="directions"))
    return pd.concat(parts)[["panel", "group", "step", "value"]]


def compare(s: Settings, folder: str | Path, output: str | Path) -> None:
    """Write what the experiment and its replicates have in common.

    Parameters
    ----------
    folder : results/, with all of them finished. output : folder; numbers.csv (quantity, a column
    a model, then models, mean, low, high over those that differ in the seed alone), curves.csv
    (model, only_seed, panel, group, step, value), matches.parquet (other, feature, partner,
    correlation, and both's histories: features of the experiment itself, against every other).
    """
    output = Path(output)
    places = {ITSELF: Path(folder) / s.name}
    places |= {name: Path(folder) / s.replicate(name).name for name in s.replicates}
    only_seed = [ITSELF] + [n for n, changed in s.replicates.items() if set(changed) == {"seed"}]
    values = {
        name: {
            key: value
            for key, value in json.loads((place / "summary.json").read_text()).items()
            if not isinstance(value, (str, dict, list)) and not key.startswith(LEFT_OUT)
        }
        for name, place in places.items()
    }
    for name, each in values.items():
        p = (s if name == ITSELF else s.replicate(name)).snapshots.pretrain
        assert p is not None  # there are no replicates of other models
        each |= {f"{k}_rate_sum": rate_sum(p, each[k]) for k in CLOCKED if each.get(k) is not None}
    shared = [key for key in values[ITSELF] if all(key in each for each in values.values())]
    table = pd.DataFrame({name: {k: each[k] for k in shared} for name, each in values.items()})
    device = devices.choose(s.device)
    first = s.crosscoders[s.primary].seeds[0]
    own = _features(places[ITSELF], s.primary)
    matches, agreed = [], {}
    for name, place in places.items():
        if name == ITSELF:
            continue
        both = (places[ITSELF], place)
        trained = [place / "crosscoders" / s.primary / f"seed{first}" for place in both]
        rows = [place / "activations" for place in both]
        found = match_models((trained[0], trained[1]), (rows[0], rows[1]), device)
        theirs = _features(place, s.primary).add_prefix("partner_")
        theirs = theirs.rename(columns={"partner_feature": "partner"})
        found = found.merge(own, on="feature").merge(theirs, on="partner", how="left")
        a = s.analysis
        agreed[name] = agreement(
            found[found["partner"] >= 0], a.matched_cosine, a.bootstrap, a.seed
        )
        matches.append(found.assign(other=name))
    across = pd.DataFrame(agreed)
    across.index = [f"across_models_{key}" for key in across.index]
    spread = [interval(row) for row in table[only_seed].to_numpy(float)]
    table = pd.concat([table, pd.DataFrame(spread, index=table.index)], axis=1)
    # No interval: each is of a pair, and all pairs share a model.
    table = pd.concat([table, across.reindex(columns=table.columns)])
    write_table(output / "numbers.csv", table.rename_axis("quantity").reset_index())

    curves = [
        _curves(place, s.primary).assign(model=name, only_seed=name in only_seed)
        for name, place in places.items()
    ]
    columns = ["model", "only_seed", "panel", "group", "step", "value"]
    write_table(output / "curves.csv", pd.concat(curves)[columns])
    write_table(output / "matches.parquet", pd.concat(matches, ignore_index=True))
