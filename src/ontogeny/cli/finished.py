"""Looking at what is finished."""

from __future__ import annotations

from pathlib import Path

import click

from ontogeny.cli.base import FOLDER, config, config_on_device, main, path, threads
from ontogeny.settings import Settings


@main.command()
@config
@path("folder", FOLDER)
@path("source", FOLDER)
def summary(s: Settings, folder: Path, source: Path) -> None:
    """Gather a finished experiment's numbers in summary.json."""
    from ontogeny import summary as stage

    stage.summarise(s, folder, source)


@main.command()
@config
@threads
@path("folder", FOLDER)
@path("output", FOLDER)
def atlas(s: Settings, folder: Path, output: Path) -> None:
    """Write the static site that shows every feature of a finished experiment."""
    from ontogeny.atlas import build as stage

    stage.build(s, folder, output)


@main.command()
@config_on_device
@threads
@path("folder", FOLDER)
@path("output", FOLDER)
def compare(s: Settings, folder: Path, output: Path) -> None:
    """Compare a finished experiment with its replicates; FOLDER is results/."""
    from ontogeny import replicates

    replicates.compare(s, folder, output)


@main.command()
@click.argument("feature", type=int)
@click.option("--results", type=FOLDER, default=Path("results/default"), help="The experiment.")
@click.option("--crosscoder", help="Its name; else the primary one.")
@click.option("--contexts", type=click.IntRange(0), default=5, help="Of the largest activations.")
def show(feature: int, results: Path, crosscoder: str | None, contexts: int) -> None:
    """Print what is known of FEATURE in a finished experiment."""
    import shutil

    from ontogeny import show as it

    width = max(it.LEAST_WIDTH, shutil.get_terminal_size().columns)
    it.write(it.show(results, feature, crosscoder, contexts, width), width)
