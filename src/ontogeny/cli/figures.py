"""Figures, one command each."""

from __future__ import annotations

from pathlib import Path

import click

from ontogeny.cli.base import FILE, config, main, path
from ontogeny.settings import Settings


@main.group()
def figure() -> None:
    """Draw one figure: OUTPUT.pdf, OUTPUT.png, and OUTPUT.csv with the numbers drawn."""


@figure.command()
@click.option("--log", type=FILE, help="Log of a model that was trained here.")
@path("phases")
@path("levels")
@path("output")
def training(log: Path | None, phases: Path, levels: Path, output: Path) -> None:
    """Overview of the pre-training against the n-gram levels."""
    from ontogeny.figures import training as it

    it.draw(log, phases, levels, output)


@figure.command("fidelity")
@click.option("--fidelity", "tables", type=FILE, multiple=True, required=True)
@click.option("--seed", "seeds", type=int, multiple=True, required=True, help="In that order.")
@click.option("--random", type=FILE, multiple=True, help="Tables of random dictionaries.")
@path("output")
def figure_fidelity(
    tables: tuple[Path, ...], seeds: tuple[int, ...], random: tuple[Path, ...], output: Path
) -> None:
    """Explained variance, L0 and loss recovered by snapshot."""
    from ontogeny.figures import fidelity as it

    it.draw(tables, seeds, random, output)


@figure.command("frontier")
@path("table")
@path("output")
def figure_frontier(table: Path, output: Path) -> None:
    """Explained variance and loss recovered against L0, crosscoders beside SAEs."""
    from ontogeny.figures import frontier as it

    it.draw(table, output)


@figure.command()
@path("features")
@path("strengths")
@path("output")
def histories(features: Path, strengths: Path, output: Path) -> None:
    """Decoder norms of all features through training."""
    from ontogeny.figures import histories as it

    it.draw(features, strengths, output)


@figure.command()
@path("features")
@path("strengths")
@path("output")
def peaks(features: Path, strengths: Path, output: Path) -> None:
    """Histogram of peak snapshot indices."""
    from ontogeny.figures import peaks as it

    it.draw(features, strengths, output)


@figure.command()
@path("features")
@path("classes")
@path("output")
def lifetimes(features: Path, classes: Path, output: Path) -> None:
    """Lifetimes, onsets and the classes' threshold sweep."""
    from ontogeny.figures import lifetimes as it

    it.draw(features, classes, output)


@figure.command()
@path("features")
@path("directions")
@path("turning-point")
@path("output")
def directions(features: Path, directions: Path, turning_point: Path, output: Path) -> None:
    """Cosines between snapshots' decoder directions, and the turning point."""
    from ontogeny.figures import directions as it

    it.draw(features, directions, turning_point, output)


@figure.command("dimensionality")
@path("features")
@path("dimensionality")
@path("output")
def figure_dimensionality(features: Path, dimensionality: Path, output: Path) -> None:
    """How much of the residual stream features take up."""
    from ontogeny.figures import dimensionality as it

    it.draw(features, dimensionality, output)


@figure.command("kinds")
@path("features")
@path("strengths")
@path("kinds")
@path("control")
@path("output")
def figure_kinds(features: Path, strengths: Path, kinds: Path, control: Path, output: Path) -> None:
    """Strength through training and onset by kind of feature."""
    from ontogeny.figures import kinds as it

    it.draw(features, strengths, kinds, control, output)


@figure.command("presence")
@click.option("--crosscoder", "names", multiple=True, required=True)
@click.option("--features", type=FILE, multiple=True, required=True, help="In that order.")
@click.option("--tests", type=FILE, multiple=True, required=True, help="In that order.")
@click.option("--verdicts", type=FILE, multiple=True, required=True, help="In that order.")
@path("output")
def figure_presence(
    names: tuple[str, ...],
    features: tuple[Path, ...],
    tests: tuple[Path, ...],
    verdicts: tuple[Path, ...],
    output: Path,
) -> None:
    """Latent scaling and probes against decoder norms, crosscoder by crosscoder."""
    from ontogeny.figures import presence as it

    it.draw(names, features, tests, verdicts, output)


@figure.command("induction")
@path("table")
@path("curves")
@click.option("--features", type=FILE, help="The features' histories.")
@click.option("--strengths", type=FILE, help="Their strengths; with --features and --kinds.")
@click.option("--kinds", type=FILE, help="The features' kinds.")
@path("output")
def figure_induction(
    table: Path,
    curves: Path,
    features: Path | None,
    strengths: Path | None,
    kinds: Path | None,
    output: Path,
) -> None:
    """Heads, copying gain and kinds of feature through training, and their onsets."""
    from ontogeny.figures import induction as it

    it.draw(table, curves, output, features, strengths, kinds)


@figure.command("complexity")
@path("features")
@path("strengths")
@path("span")
@path("correlations")
@click.option("--grades", type=FILE, help="Table of a grader.")
@path("output")
def figure_complexity(
    features: Path,
    strengths: Path,
    span: Path,
    correlations: Path,
    grades: Path | None,
    output: Path,
) -> None:
    """Complexity of features against peak and onset."""
    from ontogeny.figures import complexity as it

    it.draw(features, strengths, span, correlations, grades, output)


@figure.command()
@path("features")
@path("strengths")
@path("contexts")
@click.option("--kinds", type=FILE, help="Kinds of feature, where they are known.")
@path("output")
def examples(
    features: Path, strengths: Path, contexts: Path, kinds: Path | None, output: Path
) -> None:
    """Single features' histories, with the text that they are active in."""
    from ontogeny.figures import examples as it

    it.draw(features, strengths, contexts, kinds, output)


@figure.command()
@config
@path("matches")
@path("strengths")
@path("output")
def stability(s: Settings, matches: Path, strengths: Path, output: Path) -> None:
    """Which features come again in another seed."""
    from ontogeny.figures import stability as it

    it.draw(matches, strengths, output, s.analysis.matched_cosine)


@figure.command()
@path("phases")
@path("levels")
@path("output")
def divergence(phases: Path, levels: Path, output: Path) -> None:
    """KL from the n-gram models to the snapshots."""
    from ontogeny.figures import divergence as it

    it.draw(phases, levels, output)


@figure.command()
@path("features")
@path("strengths")
@path("behaviour")
@path("attribution")
@path("output")
def abilities(
    features: Path, strengths: Path, behaviour: Path, attribution: Path, output: Path
) -> None:
    """Each task's accuracy beside the strength of its key features."""
    from ontogeny.figures import abilities as it

    it.draw(features, strengths, behaviour, attribution, output)


@figure.command()
@path("features")
@path("behaviour")
@path("attribution")
@path("curves")
@path("output")
def ablations(
    features: Path, behaviour: Path, attribution: Path, curves: Path, output: Path
) -> None:
    """Necessity and sufficiency of each task's features against their number."""
    from ontogeny.figures import ablations as it

    it.draw(features, behaviour, attribution, curves, output)


@figure.command("replicates")
@config
@path("curves")
@path("matches")
@path("numbers")
@path("levels")
@path("output")
def figure_replicates(
    s: Settings, curves: Path, matches: Path, numbers: Path, levels: Path, output: Path
) -> None:
    """What comes again in other models."""
    from ontogeny.figures import replicates as it

    it.draw(curves, matches, numbers, levels, output, s.analysis.matched_cosine)
