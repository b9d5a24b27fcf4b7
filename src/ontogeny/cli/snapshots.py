"""Snapshots: trained here, downloaded or placed."""

from __future__ import annotations

from pathlib import Path

import click

from ontogeny.cli.base import FILE, FOLDER, config, config_on_device, main, path, threads
from ontogeny.files import InputError
from ontogeny.settings import Settings


@main.command()
@config_on_device
@threads
@path("tokens")
@path("archive", FOLDER)
@click.option("--log", type=FILE, help="Table of the whole training to write.")
def pretrain(s: Settings, tokens: Path, archive: Path, log: Path | None) -> None:
    """Train the language model and keep its snapshots."""
    from ontogeny.snapshots import pretrain as stage

    if s.snapshots.pretrain is None:
        raise InputError("snapshots.pretrain: not given; these snapshots are not trained here")
    from ontogeny import cache, scratch
    from ontogeny.corpus.build import Tokens

    p, steps = s.snapshots.pretrain, s.snapshots.chosen
    states = [archive / f"step{step}" for step in sorted({0, *steps, p.steps})]
    shared = scratch.expanded(s.storage.cache) if s.storage.cache else None
    digest = Tokens(tokens).digest
    key = cache.pretrain_key(p, s.analysis, digest) if shared else ""
    if shared:
        with stage.claimed(archive, digest):
            cache.take(shared, key, states)
    stage.train(p, steps, s.analysis, tokens, archive, log, s.device)
    if shared:
        cache.give(shared, key, states)


@main.command()
@path("archive", FOLDER)
@click.option("--step", type=int, required=True)
@path("output", FOLDER)
def snapshot(archive: Path, step: int, output: Path) -> None:
    """Give a snapshot of the archive its place."""
    from ontogeny.snapshots import archive as stage

    stage.publish(archive, step, output)


@main.command()
@config
@click.option("--step", type=int, required=True)
@path("output", FOLDER)
@path("slots", FOLDER)
def download(s: Settings, step: int, output: Path, slots: Path) -> None:
    """Fetch one snapshot from the Hugging Face hub."""
    from ontogeny.snapshots import hub

    if s.snapshots.hub is None:
        raise InputError("snapshots.hub: not given; these snapshots are not on a hub")
    hub.fetch(s.snapshots.hub, step, output, s.snapshots.remote_code, slots)


@main.command()
@config
@click.option("--step", type=int, required=True)
@path("output", FOLDER)
def place(s: Settings, step: int, output: Path) -> None:
    """Bring one of the local snapshots into the experiment."""
    from ontogeny.snapshots import local

    if s.snapshots.local is None:
        raise InputError("snapshots.local: not given; these snapshots are not in local folders")
    local.publish(s.snapshots.local, step, output)
