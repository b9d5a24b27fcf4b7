"""Collect an experiment's results for its atlas: tables, decoders and contexts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch

from ontogeny.activations.sites import folder_name
from ontogeny.activations.store import open_checked
from ontogeny.analyses.dimensionality.measure import of_crosscoder
from ontogeny.atlas import passages
from ontogeny.atlas.start import trusted
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.experiment import Experiment
from ontogeny.features.contexts import LISTS, Store
from ontogeny.features.described import CLASSES, DOUBTS, KINDS, UNTESTED
from ontogeny.figures.style import COLOURS
from ontogeny.files import InputError
from ontogeny.settings import Hub
from ontogeny.snapshots import sources
from ontogeny.version import VERSION

FORMAT = "ontogeny-atlas-3"
CURVE_POINTS = 600  # points of the batches' losses that are drawn
# For each analysis, a product that it makes, and what the page lacks without it.
PARTS = {
    "kinds": ("kinds", "kinds of feature"),
    "contexts": ("contexts", "contexts and promoted tokens"),
    "complexity": ("span", "the context span, a feature's complexity"),
    "dimensionality": ("dimensionality", "dimensionality"),
    "circuits": ("attribution", "attribution to tasks"),
    "passages": ("passages", "passages that every snapshot has read"),
}


@dataclass(frozen=True)
class Contents:
    """Everything that an atlas is made from.

    Attributes
    ----------
    about : fields of `experiment` in the package's docstring that are not derived from the rest.
    table : one row per living feature, ascending: feature, peak_snapshot_index, onset_step,
        settled_step, lifetime, peak_strength, density, the classes, matched, matched_cosine,
        trusted; kind, name, span, and the columns of DOUBTS, where available.
    decoders : function that returns the decoders of some of the L features by place, (l, n, D).
    stacked : (L, R), which has the inner products of the stacked decoders (L, n·D) in as few
        dimensions as possible.
        as they need.
    others : strengths in the other seeds, (L, S − 1, n), NaN where a feature is not matched.
    partner : (L, S − 1) number of the matching feature there, or −1.
    dimensionality : (L, n), or None if it is not shown. store : contexts, or None.
    attribution : for each task, places (A,) and values (A, n), NaN where a snapshot has none, of
        features whose attribution differs from zero at some snapshot.
    passages : tables of the passages and their features, or None.
    """

    about: dict[str, Any]
    table: pd.DataFrame
    decoders: Callable[[slice], np.ndarray]
    stacked: torch.Tensor
    others: np.ndarray
    partner: np.ndarray
    direction_floor: float
    dimensionality: np.ndarray | None = None
    store: Store | None = None
    attribution: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    passages: tuple[pd.DataFrame, pd.DataFrame] | None = None


def gather(experiment: Experiment) -> Contents:
    """Read an experiment's results: only those of its `analyses`, whatever other files there are.

    Raises
    ------
    InputError : there are no histories or no living feature, or files do not belong together.
    """
    has, settings = experiment.has, experiment.settings
    features = experiment.table("features")
    table = features[features["alive"]].reset_index(drop=True)
    if table.empty:
        folder = experiment.path("features").parent
        raise InputError(f"{folder}: no living feature to show; train the crosscoder for longer")
    living = table["feature"].to_numpy().copy()
    first = experiment.crosscoder()
    steps = [int(site[0]) for site in first.about.outputs]
    others, partner = _other_seeds(experiment, living, len(steps))
    about = _about(experiment, first, steps)
    if has("kinds"):
        table = table.merge(_kinds(experiment.table("kinds")), on="feature", how="left")
        table = table.fillna({"kind": UNTESTED})
    if has("names"):
        names = experiment.table("names")[["feature", "name", "strongest"]]
        table = table.merge(names, on="feature", how="left")
        about["names"] = list(table["name"].fillna(""))
    if has("span"):
        span = experiment.table("span")
        span = span.loc[span["run"] == "replaced", ["feature", "span"]]
        table = table.merge(span, on="feature", how="left")
    if has("trust"):
        trust = experiment.table("trust")[["feature", *DOUBTS]]
        table = table.merge(trust, on="feature", how="left")
        table = table.assign(doubtful=table[list(DOUBTS)].any(axis=1))
        about["classes"].append("doubtful")
    table = table.assign(trusted=trusted(table, about["held_out"]))
    store = experiment.contexts() if has("contexts") else None
    if store is not None:
        if not np.isin(living, store.features).all():
            raise InputError(
                f"{store.path}: contexts of another crosscoder than {experiment.trained()}; "
                "delete it to make it again"
            )
        about["contexts"] = {n: int(store.attributes[n]) for n in (*LISTS, "window")}
    attribution: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    if has("attribution"):
        attribution = _attribution(experiment.table("attribution"), living, steps)
        about["tasks"] = _tasks(experiment.table("behaviour"))
    return Contents(
        about=about,
        table=table,
        decoders=lambda part: first.decoders(living[part]).numpy(),
        stacked=first.weights.W_dec[living],
        others=others,
        partner=partner,
        direction_floor=settings.analysis.direction_floor,
        dimensionality=of_crosscoder(first, living) if has("dimensionality") else None,
        store=store,
        attribution=attribution,
        passages=passages.gather(experiment),
    )


def _other_seeds(
    experiment: Experiment, living: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Strengths (L, S − 1, n) of the matching features in the other seeds, and their numbers."""
    seeds = experiment.settings.crosscoders[experiment.primary].seeds[1:]
    strengths = np.full((len(living), len(seeds), n), np.nan)
    partner = np.full((len(living), len(seeds)), -1)
    matches = experiment.table("matches")
    matches = matches[matches["cosine"] >= experiment.settings.analysis.matched_cosine]
    matches = matches[matches["feature"].isin(living)]
    for i, seed in enumerate(seeds):
        own = matches[matches["other_seed"] == seed]
        at = np.searchsorted(living, own["feature"])
        partner[at, i] = own["partner"]
        strengths[at, i] = experiment.crosscoder(seed=seed).strength.numpy()[own["partner"]]
    return strengths, partner


def _model(experiment: Experiment) -> str:
    """The language model in words."""
    settings, snapshots = experiment.settings, experiment.settings.snapshots
    if snapshots.pretrain is None:
        source = snapshots.hub or snapshots.local
        assert source is not None
        where = source.repository if isinstance(source, Hub) else source.where
        try:
            kind = sources.architecture(settings, experiment.results)["model_type"]
            shape = sources.shape_of(settings, experiment.results)
        except (InputError, KeyError):
            return where  # only the model's own code knows its architecture
        return f"{where}: {kind}, {shape.layers} layers, width {shape.width}"
    tokens = int(experiment.table("log")["tokens"].max())
    count = f"{tokens / 1e6:.3g}M" if tokens >= 1e6 else f"{tokens:,}"
    own = snapshots.pretrain
    return f"GPT-NeoX, {own.layers} layers, width {own.width}, of {count} tokens"


def _about(experiment: Experiment, first: Crosscoder, steps: list[int]) -> dict[str, Any]:
    """The experiment in short."""
    settings, primary = experiment.settings, experiment.primary
    chosen = settings.crosscoders[primary]
    _, layer, stream = first.about.outputs[0]
    fidelity, density = (
        pd.concat([experiment.table(name, seed=seed) for seed in chosen.seeds])
        for name in ("fidelity", "density")
    )
    log = None
    if experiment.has("log"):
        log = _thinned(experiment.table("log")[["step", "loss"]].dropna()).to_dict("list")
    with open_checked(experiment.path("stack", site=folder_name(layer, stream))) as file:
        held_out = int(file["held_out/position"].shape[0])
        rows = int(sum(file.attrs["shard_rows"]))
    drawn = (*KINDS, "unigram", "bigram", "batch", *CLASSES, "doubtful")
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": experiment.name,
        "model": _model(experiment),
        "layer": layer,
        "stream": stream,
        "crosscoder": primary,
        "activation": chosen.activation,
        "seeds": chosen.seeds,
        "steps": steps,
        "numbers": [experiment.settings.snapshots.number(step) for step in steps],
        "tokens": rows,
        "held_out": held_out,
        "features": first.about.features,
        "explained_variance": float(fidelity["explained_variance"].mean()),
        "l0": float(fidelity["l0"].mean()),
        "dead": float(density["dead"].mean()),
        "matched_cosine": settings.analysis.matched_cosine,
        "presence": settings.analysis.presence,
        "settled_cosine": settings.analysis.settled_cosine,
        **{
            f"kinds_{key}": experiment.value(f"kinds.{key}")
            for key in ("loss", "active")
            if experiment.has("kinds")
        },
        "curve": experiment.table("phases")[["step", "loss"]].to_dict("list"),
        "out_of_place": _out_of_place(experiment),
        "log": log,
        "levels": experiment.json("levels"),
        "turning": experiment.json("turning_point").get("all"),
        "kinds": [*KINDS, "none", UNTESTED],
        "classes": [*CLASSES],
        "doubts": list(DOUBTS.values()),
        "colours": {
            **{name: COLOURS[name] for name in drawn},
            "none": COLOURS["unsure"],
            UNTESTED: COLOURS["unmatched"],
        },
        "contexts": None,
        "tasks": [],
        "command": "snakemake --cores 1 atlas --configfile "
        f"results/{experiment.name}/{experiment.path('config').name}",
        "missing": {
            name: f"This experiment does not have {what}: {name} is not among its analyses."
            for name, (product, what) in PARTS.items()
            if not experiment.has(product)
        },
    }


def _kinds(table: pd.DataFrame) -> pd.DataFrame:
    """Features and their kinds; a feature that could not be tested is not counted as 'none'."""
    silent = (table["kind"] == "none") & (table["cause"] == UNTESTED)
    return table[["feature"]].assign(kind=table["kind"].mask(silent, UNTESTED))


def _out_of_place(experiment: Experiment) -> list[int]:
    """Steps whose held-out loss is far from that of their neighbours."""
    losses = experiment.table("losses")
    return [int(step) for step in losses.loc[losses["out_of_place"], "step"]]


def _thinned(curve: pd.DataFrame) -> pd.DataFrame:
    """At most CURVE_POINTS rows, evenly spaced on an axis of log(step + 1)."""
    if len(curve) <= CURVE_POINTS:
        return curve
    place = np.log1p(curve["step"].to_numpy(float))
    wanted = np.linspace(place[0], place[-1], CURVE_POINTS)
    return curve.iloc[np.unique(np.searchsorted(place, wanted).clip(0, len(curve) - 1))]


def _attribution(
    table: pd.DataFrame, living: np.ndarray, steps: list[int]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each task, places of features whose attribution differs from zero, and it (A, n)."""
    by_task = {}
    told = table.groupby(["task", "feature"])["told"].transform("any")
    for task, rows in table[told & table["feature"].isin(living)].groupby("task", sort=False):
        wide = rows.pivot(index="feature", columns="step", values="attribution")
        values = wide.reindex(columns=steps).to_numpy()
        by_task[str(task)] = (np.searchsorted(living, wide.index), values)
    return by_task


def _tasks(behaviour: pd.DataFrame) -> list[dict[str, Any]]:
    """What the model does with each task at the last snapshot."""
    last = behaviour[behaviour["step"] == behaviour["step"].max()]
    names = {"task": "name", "accuracy": "accuracy", "logit_difference": "difference"}
    return last[list(names)].rename(columns=names).to_dict("records")
