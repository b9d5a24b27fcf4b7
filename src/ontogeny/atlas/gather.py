"""What an experiment has for its atlas: its tables, decoders and contexts, of what was analysed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch

from ontogeny import __version__
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.features.contexts import LISTS, Store
from ontogeny.features.kinds import KINDS
from ontogeny.figures.style import COLOURS
from ontogeny.files import InputError
from ontogeny.settings import Settings
from ontogeny.summary import fidelity_numbers

FORMAT = "ontogeny-atlas-1"
CURVE_POINTS = 600  # of the batches' losses, drawn
# What each part of the page is without; the analysis, and what it would show.
PARTS = {
    "kinds": "kinds of feature",
    "contexts": "contexts and promoted tokens",
    "complexity": "the context span, a feature's complexity",
    "dimensionality": "dimensionality",
    "circuits": "attribution to tasks",
}


@dataclass(frozen=True)
class Contents:
    """All that an atlas is made of.

    Attributes
    ----------
    about : of `experiment` in the package's docstring, what is not counted from the rest.
    table : a row a living feature, ascending: feature, peak_snapshot_index, onset_step, lifetime,
        peak_strength, density, initialisation, emergent, transient, matched_cosine; kind and span
        where there are.
    decoders : (L, n, D). stacked : (L, R) with the inner products of the stacked decoders (L, n·D),
        in as few dimensions as they need.
    others : strengths in the other seeds, (L, S − 1, n), NaN where a feature is not matched.
    partner : (L, S − 1) number of the matching feature there, or −1.
    dimensionality : whether it is shown. store : contexts, or None.
    attribution : by task, places (A,) and values (A, n), NaN where a snapshot has none.
    """

    about: dict[str, Any]
    table: pd.DataFrame
    decoders: np.ndarray
    stacked: torch.Tensor
    others: np.ndarray
    partner: np.ndarray
    direction_floor: float
    dimensionality: bool = False
    store: Store | None = None
    attribution: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)


def gather(s: Settings, folder: str | Path) -> Contents:
    """Read what an experiment has.

    Parameters
    ----------
    folder : results/NAME. Only what `analyses` names is looked at, whatever else lies there.

    Raises
    ------
    InputError : no histories, no living feature, or files that do not belong together.
    """
    folder = Path(folder)
    chosen = s.crosscoders[s.primary]
    seeds = [folder / "crosscoders" / s.primary / f"seed{seed}" for seed in chosen.seeds]
    tables = folder / "features" / s.primary
    features = pd.read_parquet(tables / "features.parquet")
    table = features[features["alive"]].reset_index(drop=True)
    if table.empty:
        raise InputError(f"{tables}: no living feature to show; train the crosscoder for longer")
    living = table["feature"].to_numpy().copy()
    first = Crosscoder.load(seeds[0])
    steps = [int(site[0]) for site in first.about.outputs]
    places = torch.from_numpy(living)
    decoders = first.W_dec[places].numpy()
    raw = first.weights.W_dec[places].flatten(1)
    others, partner = _other_seeds(s, seeds, tables / "matches.csv", living, len(steps))
    missing = {
        name: f"This experiment does not have {what}: {name} is not among its analyses."
        for name, what in PARTS.items()
        if name not in s.analyses
    }
    if "kinds" in s.analyses:
        kinds = pd.read_parquet(tables / "kinds.parquet")[["feature", "kind"]]
        table = table.merge(kinds, on="feature", how="left").fillna({"kind": "none"})
    if "complexity" in s.analyses:
        span = pd.read_parquet(tables / "span.parquet")
        span = span.loc[span["run"] == "replaced", ["feature", "span"]]
        table = table.merge(span, on="feature", how="left")
    about = _about(s, folder, first, steps) | {"missing": missing}
    attribution: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    if "circuits" in s.analyses:
        own = folder / "circuits" / s.primary
        attribution = _attribution(own / "attribution.parquet", living, steps)
        about["tasks"] = _tasks(own / "behaviour.csv")
    store = None
    if "contexts" in s.analyses:
        store = Store(tables / "contexts.h5")
        if not np.isin(living, store.features).all():
            raise InputError(
                f"{store.path}: contexts of another crosscoder than {seeds[0]}; delete it to make "
                "it again"
            )
    return Contents(
        about=about,
        table=table,
        decoders=decoders,
        stacked=raw if raw.shape[1] < decoders[0].size else torch.from_numpy(decoders).flatten(1),
        others=others,
        partner=partner,
        direction_floor=s.analysis.direction_floor,
        dimensionality="dimensionality" in s.analyses,
        store=store,
        attribution=attribution,
    )


def _other_seeds(
    s: Settings, seeds: list[Path], matches: Path, living: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Strengths (L, S − 1, n) of the matching features in the other seeds, and their numbers."""
    strengths = np.full((len(living), len(seeds) - 1, n), np.nan)
    partner = np.full((len(living), len(seeds) - 1), -1)
    found = pd.read_csv(matches)
    for i, path in enumerate(seeds[1:]):
        other = Crosscoder.load(path)
        own = found[found["other_seed"] == other.about.seed]
        own = own[(own["cosine"] >= s.analysis.matched_cosine) & own["feature"].isin(living)]
        at = np.searchsorted(living, own["feature"])
        partner[at, i] = own["partner"]
        strengths[at, i] = other.strength.numpy()[own["partner"]]
    return strengths, partner


def _model(s: Settings, folder: Path) -> str:
    """The language model in words."""
    if s.snapshots.hub is not None:
        return s.snapshots.hub.repository
    if s.snapshots.local is not None:
        return s.snapshots.local.folders
    assert s.snapshots.pretrain is not None
    p = s.snapshots.pretrain
    log = pd.read_csv(folder / "pretrain" / "log.csv")
    tokens = int(log["tokens"].max())
    about = f"{tokens / 1e6:.3g}M" if tokens >= 1e6 else f"{tokens:,}"
    return f"GPT-NeoX, {p.layers} layers, width {p.width}, of {about} tokens"


def _about(s: Settings, folder: Path, first: Crosscoder, steps: list[int]) -> dict[str, Any]:
    """The experiment in short."""
    chosen = s.crosscoders[s.primary]
    _, layer, stream = first.about.outputs[0]
    numbers = fidelity_numbers(folder / "crosscoders" / s.primary, chosen.seeds)
    phases = pd.read_csv(folder / "phases" / "phases.csv")
    turning = json.loads(
        (folder / "features" / s.primary / "turning_point.json").read_text(encoding="utf-8")
    )
    log = None
    if s.snapshots.pretrain is not None:
        every = pd.read_csv(folder / "pretrain" / "log.csv")[["step", "loss"]].dropna()
        log = _thinned(every).to_dict("list")
    with h5py.File(folder / "activations" / f"{stream}.{layer}" / "stack.h5") as file:
        held_out = int(file["held_out/position"].shape[0])
        rows = int(sum(file.attrs["shard_rows"]))
    return {
        "format": FORMAT,
        "version": __version__,
        "name": s.name,
        "model": _model(s, folder),
        "layer": layer,
        "stream": stream,
        "crosscoder": s.primary,
        "activation": chosen.activation,
        "seeds": chosen.seeds,
        "steps": steps,
        "numbers": [s.snapshots.chosen.index(step) + 1 for step in steps],
        "tokens": rows,
        "held_out": held_out,
        "features": first.about.features,
        "explained_variance": numbers["explained_variance_mean"],
        "l0": numbers["l0_mean"],
        "dead": numbers["dead_fraction"],
        "matched_cosine": s.analysis.matched_cosine,
        "presence": s.analysis.presence,
        "curve": phases[["step", "loss"]].to_dict("list"),
        "log": log,
        "levels": json.loads((folder / "phases" / "levels.json").read_text(encoding="utf-8")),
        "turning": turning.get("all"),
        "kinds": [*KINDS, "none"],
        "colours": {
            **{name: COLOURS[name] for name in (*KINDS, "unigram", "bigram", "batch")},
            **{name: COLOURS[name] for name in ("initialisation", "emergent", "transient")},
            "none": COLOURS["unsure"],
        },
        "contexts": {name: getattr(s.contexts, name) for name in (*LISTS, "window")}
        if "contexts" in s.analyses
        else None,
        "tasks": [],
        "command": f"snakemake --cores 1 atlas --configfile results/{s.name}/config.yaml",
    }


def _thinned(curve: pd.DataFrame) -> pd.DataFrame:
    """At most CURVE_POINTS rows, evenly apart on an axis of log(step + 1)."""
    if len(curve) <= CURVE_POINTS:
        return curve
    place = np.log1p(curve["step"].to_numpy(float))
    wanted = np.linspace(place[0], place[-1], CURVE_POINTS)
    return curve.iloc[np.unique(np.searchsorted(place, wanted).clip(0, len(curve) - 1))]


def _attribution(
    path: Path, living: np.ndarray, steps: list[int]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By task, places of the features that it has and their attribution (A, n)."""
    every = pd.read_parquet(path, columns=["task", "feature", "step", "attribution"])
    every = every[every["feature"].isin(living)]
    found = {}
    for task, rows in every.groupby("task", sort=False):
        wide = rows.pivot(index="feature", columns="step", values="attribution").reindex(
            columns=steps
        )
        found[str(task)] = (np.searchsorted(living, wide.index), wide.to_numpy())
    return found


def _tasks(path: Path) -> list[dict[str, Any]]:
    """What the model does with each task at the last snapshot."""
    table = pd.read_csv(path)
    last = table[table["step"] == table["step"].max()]
    names = {"task": "name", "accuracy": "accuracy", "logit_difference": "difference"}
    return last[list(names)].rename(columns=names).to_dict("records")
