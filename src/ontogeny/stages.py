"""The core of the workflow, declared: its products, the stages that follow training, its figures.

The steps up to training have their own rules and commands (rules/, ontogeny/cli.py), since each is
divided into jobs in a different way. The stages here run through the generic rule and command, as
every analysis does.
"""

from __future__ import annotations

from typing import Any

from ontogeny.activations.sites import STACK
from ontogeny.declarations import Cost, Figure, Optional, Product, Source, Stage

TRAINED = "crosscoders/{crosscoder}/seed{seed}"
TABLES = "features/{crosscoder}"

COMPARED = ["numbers", "trained", "activations", "phases", "features", "strengths", "directions"]
COMPARED += ["kinds", "dimensionality", "induction"]
"""Products of the experiment and its replicates that the stage `compare` reads."""

PRODUCTS = [
    Product("config", "config.yaml", "the resolved configuration"),
    Product("tokens", "corpus/tokens.h5", "blocks of tokens (blocks, context)"),
    Product("tokenizer", "corpus/tokenizer.json", "the tokenizer of the text"),
    Product("own_tokenizer", "corpus/own-tokenizer", "the tokenizer of a model from elsewhere"),
    Product(
        "trained_mark",
        "pretrain/trained-{leg}",
        "marks that the pre-training has reached this step",
    ),
    Product(
        "archive",
        "pretrain/archive-{digest}",
        "training states, under a digest of what they depend on",
    ),
    Product("log", "pretrain/log.csv", "losses and learning rate of the pre-training, by step"),
    Product("snapshots", "snapshots", "a folder for each snapshot"),
    Product("snapshot", "snapshots/step{step}", "config.json and model.safetensors"),
    Product("norms", "norms", "a file for each snapshot, where activations.leave_out_norm is set"),
    Product("norms_of", "norms/step{step}.h5", "positions whose norm is above the bound"),
    Product("activations", "activations", "a folder for each layer and stream"),
    Product("held_out", "activations/{site}/step{step}.h5", "held-out rows of a snapshot"),
    Product("rows", "activations/{site}/step{step}.rows{shard}.h5", "training rows of a snapshot"),
    Product(
        "held_out_loss",
        "losses/step{step}.json",
        "loss of a snapshot, measured when it was read, in nats",
    ),
    Product(
        "losses", "losses/losses.csv", "the losses of all snapshots, and which of them is unusual"
    ),
    Product("stack", f"activations/{{site}}/{STACK}", "all snapshots of a layer and stream"),
    Product("token_tables", "token_tables", "a file for each layer and stream"),
    Product("token_table", "token_tables/{site}.h5", "mean activation of every token, by snapshot"),
    Product("basis", "basis/{sites}.h5", "the principal subspace of some sites"),
    Product("projected", "basis/{sites}.rows{shard}.h5", "training rows in that subspace"),
    Product("state", "state/{crosscoder}-{seed}-{digest}", "state of an unfinished training"),
    Product("stream_state", "state/stream-{stream}", "states of trainings that share a stream"),
    Product("wanted", "state/wanted.json", "trainings of streamed rows that a run has to make"),
    Product("trained", TRAINED, "a trained crosscoder's folder"),
    Product("weights", f"{TRAINED}/crosscoder.safetensors", "its weights"),
    Product("about", f"{TRAINED}/config.json", "all that is needed to use them"),
    Product("metrics", f"{TRAINED}/metrics.csv", "its training, every 50 steps"),
    Product(
        "fidelity",
        f"{TRAINED}/fidelity.csv",
        "how well it reconstructs each site on held-out text",
    ),
    Product(
        "density",
        f"{TRAINED}/density.parquet",
        "how often each feature is active on held-out text",
    ),
    Product(
        "features",
        f"{TABLES}/features.parquet",
        "one row per feature",
    ),
    Product(
        "strengths",
        f"{TABLES}/strengths.parquet",
        "one row per feature and snapshot",
    ),
    Product(
        "comparison",
        f"{TABLES}/comparison.parquet",
        "what the first and the last snapshot share, by feature",
    ),
    Product("directions", f"{TABLES}/directions.csv", "mean cosine between snapshots' decoders"),
    Product("classes", f"{TABLES}/classes.csv", "features of each class, by threshold"),
    Product(
        "matches",
        f"{TABLES}/matches.csv",
        "each living feature's partner in every other seed",
    ),
    Product(
        "stability_baselines",
        f"{TABLES}/baselines.parquet",
        "how well features are matched without any training",
    ),
    Product("turning_point", f"{TABLES}/turning_point.json", "step, interval, cosines around it"),
    Product(
        "phases",
        "phases/phases.csv",
        "one row per snapshot",
    ),
    Product("levels", "phases/levels.json", "n-gram cross-entropies and the steps of crossing"),
    Product("replicate_numbers", "replicates/numbers.csv", "numbers of each model"),
    Product("replicate_curves", "replicates/curves.csv", "curves of each model"),
    Product("replicate_matches", "replicates/matches.parquet", "features matched across models"),
    Product(
        "replicate_onsets",
        "replicates/onsets.csv",
        "when heads, copying and kinds of feature form in each model",
    ),
    Product("controls", "replicates/controls.csv", "the effect of each change of the recipe"),
    Product("control_models", "replicates/models.csv", "the outcomes of each model"),
    Product("numbers", "numbers.json", "the findings, in one flat file"),
    Product("summary", "summary.json", "the findings and their cost"),
    Product("provenance", "provenance.json", "the inputs from which the results were made"),
    Product("manifest", "manifest.json", "size and digest of each of these files"),
    Product("atlas", "atlas", "the static site of all features"),
    Product("benchmarks", "benchmarks", "seconds and memory of each job, by Snakemake"),
    Product("figures", "figures", "PDF, PNG and CSV of each figure"),
]

STAGES = [
    Stage(
        "losses",
        run="ontogeny.snapshots.losses:gather",
        about="Compare every snapshot's loss, measured when it was read, with its neighbours'.",
        reads={"files": "held_out_losses"},
        makes={"table": "losses"},
        scope="experiment",
        core=True,
        gpu=False,
        cost=Cost({"one": 1.0}, {"one": 0.2e9}, {"one": 1000, "snapshots": 50}, torch=False),
    ),
    Stage(
        "phases",
        run="ontogeny.phases.levels:measure",
        about="Compare every snapshot's loss with the n-gram levels.",
        reads={"snapshots": "snapshots", "tokens": "tokens"},
        makes={"phases": "phases", "levels": "levels"},
        settings=("analysis.phase_blocks",),
        scope="experiment",
        core=True,
        cost=Cost(
            {
                "forward * snapshots * corpus.context * analysis.phase_blocks": 9e-12,
                "vocabulary * snapshots * corpus.context * analysis.phase_blocks": 4e-9,
                "n-grams": 3e-7,
            },
            {
                "model": 1,
                "a snapshot as it loads": 1,
                "forward pass": 1,
                "distributions": 9,
                "n-grams": 40,
            },
            {"snapshots": 100, "one": 3000},
        ),
    ),
    Stage(
        "features",
        run="ontogeny.features.histories:describe",
        about="Write the features' histories, classes, directions and matches across seeds.",
        reads={"crosscoders": "crosscoders", "densities": "densities"},
        makes={
            "features": "features",
            "strengths": "strengths",
            "directions": "directions",
            "comparison": "comparison",
            "classes": "classes",
            "matches": "matches",
            "turning_point": "turning_point",
        },
        settings=(
            "analysis.presence",
            "analysis.absence",
            "analysis.settled_cosine",
            "analysis.direction_floor",
            "analysis.matched_cosine",
            "analysis.bootstrap",
            "analysis.seed",
        ),
        gpu=False,
        core=True,
        cost=Cost(
            {
                "features * snapshots * snapshots * analysis.bootstrap": 3e-9,
                "similarities * further seeds": 1e-11,
                "all pairs * further seeds": 4e-8,
                "pairs beyond * further seeds": 2.5e-8,
            },
            {
                "crosscoder * seeds": 1,
                "full decoders at a time": 4.5,
                "trained decoders": 2,
                "features * width": 32,
                "all pairs * further seeds": 20,
                "pairs at a time * further seeds": 28,
                "near pairs * further seeds": 60,
                "features * snapshots * snapshots": 29,
            },
            {
                "one": 20000,
                "features": 120,
                "features * further seeds": 70,
                "features * sites": 10,
                "sites * sites": 120,
            },
        ),
    ),
    Stage(
        "baselines",
        run="ontogeny.features.baselines:measure",
        about="Match features with tokens' means and with random rows, which need no training.",
        reads={
            "crosscoder": "crosscoder",
            "activations": "activations",
            "token_tables": "token_tables",
            "features": "features",
        },
        makes={"baselines": "stability_baselines"},
        settings=("analysis.seed",),
        gpu=False,
        core=True,
        cost=Cost(
            {
                "baseline features * baseline tokens * sites * width": 1e-10,
                "baseline features * baseline tokens": 1e-7,
            },
            {
                "full decoders": 1,
                "crosscoder": 1,
                "baseline features * sites * width": 12,
                "baseline tokens * sites * width": 12,
                "baseline features * baseline tokens": 20,
            },
            {"one": 10000, "baseline features": 40},
        ),
    ),
    Stage(
        "compare",
        run="ontogeny.replicates:compare",
        about="Compare a finished experiment with its replicates.",
        reads={"results": "replicates"},
        makes={
            "numbers": "replicate_numbers",
            "curves": "replicate_curves",
            "matches": "replicate_matches",
            "onsets_by_event": "replicate_onsets",
        },
        settings=(
            "replicates",
            "analysis.matched_cosine",
            "analysis.bootstrap",
            "analysis.seed",
        ),
        scope="experiment",
        core=True,
        cost=Cost(
            {
                "encoding * replicates": 4e-11,
                "similarities * replicates": 1e-11,
                "features * features * replicates": 1e-6,
            },
            {
                "crosscoder in use": 1,
                "pieces read ahead": 1,
                "active features": 60,
                "features * features": 48,
            },
            {"one": 100000, "features * replicates": 60},
        ),
    ),
    Stage(
        "control",
        run="ontogeny.controls:compare",
        about="Report which outcomes each change of the recipe moves, over the replicates.",
        reads={"results": "replicates"},
        makes={"controls": "controls", "models": "control_models"},
        settings=("replicates",),
        scope="experiment",
        core=True,
        gpu=False,
        cost=Cost({"replicates": 1e-3}, {"one": 0.1e9}, {"one": 20000}),
    ),
]


def _subspace(experiment: Any) -> Source:
    """The basis file of the primary crosscoder; None where it sees all dimensions."""
    sites = experiment.basis_of(experiment.primary)
    path = None if sites is None else experiment.path("basis", sites=sites)
    return Source([] if path is None else [path], path)


def _has_token_table(experiment: Any) -> Source:
    """Whether the primary crosscoder has a token table."""
    return Source([], experiment.settings.crosscoders[experiment.primary].token_table)


MODEL = "The model and its training"
FIDELITY = "How well the dictionary describes the model"
HISTORIES = "Features through training"

FIGURES = [
    Figure(
        "training",
        "ontogeny.figures.training:draw",
        MODEL,
        "Training overview",
        {"log": Optional("log"), "phases": "phases", "levels": "levels", "losses": "losses"},
        scope="experiment",
    ),
    Figure(
        "divergence",
        "ontogeny.figures.divergence:draw",
        MODEL,
        "Divergence from the n-gram models",
        {"phases": "phases", "levels": "levels"},
        scope="experiment",
    ),
    Figure(
        "fidelity",
        "ontogeny.figures.fidelity:draw",
        FIDELITY,
        "Explained variance, L0, loss recovered",
        {
            "fidelity": "fidelities",
            "seeds": "seeds",
            "random": "baselines",
            "basis": _subspace,
            "of_rest": _has_token_table,
        },
    ),
    Figure(
        "stability",
        "ontogeny.figures.stability:draw",
        FIDELITY,
        "Stability across seeds",
        {"matches": "matches", "strengths": "strengths", "baselines": "stability_baselines"},
        settings=("analysis.matched_cosine",),
    ),
    Figure(
        "histories",
        "ontogeny.figures.histories:draw",
        HISTORIES,
        "Decoder-norm histories",
        {"features": "features", "strengths": "strengths"},
    ),
    Figure(
        "peaks",
        "ontogeny.figures.peaks:draw",
        HISTORIES,
        "Peak snapshot index",
        {"features": "features", "strengths": "strengths"},
    ),
    Figure(
        "lifetimes",
        "ontogeny.figures.lifetimes:draw",
        HISTORIES,
        "Lifetimes and onsets",
        {"features": "features", "classes": "classes"},
    ),
    Figure(
        "directions",
        "ontogeny.figures.directions:draw",
        HISTORIES,
        "Directions and the turning point",
        {"features": "features", "directions": "directions", "turning_point": "turning_point"},
    ),
    Figure(
        "comparison",
        "ontogeny.figures.comparison:draw",
        HISTORIES,
        "Two snapshots compared",
        {"features": "features", "comparison": "comparison"},
    ),
    Figure(
        "replicates",
        "ontogeny.figures.replicates:draw",
        MODEL,
        "Other models",
        {
            "curves": "replicate_curves",
            "matches": "replicate_matches",
            "numbers": "replicate_numbers",
            "onsets_by_event": "replicate_onsets",
            "levels": "levels",
        },
        settings=("analysis.matched_cosine",),
        scope="experiment",
    ),
    Figure(
        "controls",
        "ontogeny.figures.controls:draw",
        MODEL,
        "Which change moves which outcome",
        {"controls": "controls", "models": "control_models"},
        scope="experiment",
    ),
]
ALWAYS = ("training", "divergence", "fidelity")
"""Figures that every experiment has."""


def of_histories(snapshots: int, seeds: int) -> tuple[str, ...]:
    """Figures of a primary crosscoder over this many snapshots; two do not yet make a history.

    Stability needs two seeds. A turning point needs two blocks of at least two snapshots each, so
    four or more snapshots.
    """
    lives = () if snapshots < 3 else ("histories", "peaks", "lifetimes")
    stability = () if seeds < 2 else ("stability",)
    return (*stability, *lives, "comparison" if snapshots < 4 else "directions")
