"""What features are: histories, kinds, contexts, presence, complexity."""

from __future__ import annotations

from pathlib import Path

import click

from ontogeny.cli.base import FILE, FOLDER, config, config_on_device, main, path, threads
from ontogeny.settings import Settings


@main.command()
@config
@threads
@click.option("--crosscoder", "folders", type=FOLDER, multiple=True, help="One a seed, in order.")
@click.option("--density", "densities", type=FILE, multiple=True, help="One a seed, in order.")
@path("output", FOLDER)
def features(
    s: Settings, folders: tuple[Path, ...], densities: tuple[Path, ...], output: Path
) -> None:
    """Write the features' histories, classes, directions and matches across seeds."""
    from ontogeny.features import evolution

    steps = s.snapshots.chosen
    evolution.describe(s.analysis, list(folders), list(densities), steps, output)


@main.command()
@config
@threads
@click.option("--crosscoder", "folders", type=FOLDER, multiple=True, help="One a seed, in order.")
@click.option("--density", "densities", type=FILE, multiple=True, help="One a seed, in order.")
@path("features")
@path("output")
def dimensionality(
    s: Settings,
    folders: tuple[Path, ...],
    densities: tuple[Path, ...],
    features: Path,
    output: Path,
) -> None:
    """Write how many dimensions the features take up, by snapshot and class."""
    from ontogeny.features import dimensionality as stage

    steps = s.snapshots.chosen
    stage.describe(s.analysis, list(folders), list(densities), features, steps, output)


@main.command()
@config_on_device
@threads
@path("crosscoder", FOLDER)
@path("activations", FOLDER)
@path("tokens")
@path("output")
@path("control")
def kinds(
    s: Settings, crosscoder: Path, activations: Path, tokens: Path, output: Path, control: Path
) -> None:
    """Tell features of the token, the token before, induction and context apart, by rule."""
    from ontogeny.features import kinds as stage

    stage.describe(s, crosscoder, activations, tokens, output, control)


@main.command()
@config_on_device
@threads
@path("crosscoder", FOLDER)
@path("activations", FOLDER)
@path("snapshots", FOLDER)
@path("tokens")
@path("tokenizer")
@path("output")
@path("table")
def contexts(
    s: Settings,
    crosscoder: Path,
    activations: Path,
    snapshots: Path,
    tokens: Path,
    tokenizer: Path,
    output: Path,
    table: Path,
) -> None:
    """Write the contexts that features are active in, all but active in, and their logit lens."""
    from ontogeny.features import contexts as stage

    stage.describe(s, crosscoder, activations, snapshots, tokens, tokenizer, output, table)


@main.command()
@config_on_device
@threads
@path("crosscoder", FOLDER)
@path("activations", FOLDER)
@path("tokens")
@path("features")
@path("output")
@path("verdicts")
def presence(
    s: Settings,
    crosscoder: Path,
    activations: Path,
    tokens: Path,
    features: Path,
    output: Path,
    verdicts: Path,
) -> None:
    """Test with latent scaling and linear probes whether decoder norms mean presence."""
    from ontogeny.features import presence as stage

    stage.describe(s, crosscoder, activations, tokens, features, output, verdicts)


@main.command()
@config_on_device
@threads
@path("crosscoder", FOLDER)
@path("activations", FOLDER)
@path("snapshots", FOLDER)
@path("tokens")
@path("output")
@path("contexts")
def span(
    s: Settings,
    crosscoder: Path,
    activations: Path,
    snapshots: Path,
    tokens: Path,
    output: Path,
    contexts: Path,
) -> None:
    """Measure how much context before it each feature needs."""
    from ontogeny.features import span as stage

    stage.measure(s, crosscoder, activations, snapshots, tokens, output, contexts)


@main.command()
@config_on_device
@threads
@path("crosscoder", FOLDER)
@path("activations", FOLDER)
@path("tokens")
@path("tokenizer")
@path("span")
@path("answers", FOLDER)
@path("output")
def grade(
    s: Settings,
    crosscoder: Path,
    activations: Path,
    tokens: Path,
    tokenizer: Path,
    span: Path,
    answers: Path,
    output: Path,
) -> None:
    """Have a language model grade the complexity of a sample of features."""
    from ontogeny.features import grader as stage

    stage.grade(s, crosscoder, activations, tokens, tokenizer, span, answers, output)


@main.command()
@config
@threads
@path("features")
@path("span")
@click.option("--grades", type=FILE, help="Table of a grader.")
@path("output")
def complexity(s: Settings, features: Path, span: Path, grades: Path | None, output: Path) -> None:
    """Correlate the features' complexity with their peaks and onsets."""
    from ontogeny.features import complexity as stage

    stage.describe(s.analysis, features, span, grades, output)
