"""Snapshots: trained here, downloaded or linked."""

from __future__ import annotations

from pathlib import Path

import click

from ontogeny.cli.base import FILE, FOLDER, config, config_on_device, main, path, threads
from ontogeny.settings import Settings


@main.command()
@config_on_device
@threads
@path("tokens")
@path("archive", FOLDER)
@click.option("--log", type=FILE, help="Table of the whole training to write.")
def pretrain(s: Settings, tokens: Path, archive: Path, log: Path | None) -> None:
    """Train the language model and keep its snapshots."""
    from ontogeny.snapshots import shared

    shared.pretrain(s, tokens, archive, log)


@main.command()
@config
@click.option("--step", type=int, required=True)
@path("output", FOLDER)
@click.option("--archive", type=FOLDER, help="Training states, of a model that is trained here.")
@click.option("--slots", type=FOLDER, help="Where downloads of all processes are counted.")
def snapshot(
    s: Settings, step: int, output: Path, archive: Path | None, slots: Path | None
) -> None:
    """Bring one snapshot into the experiment: from training, a hub or a folder."""
    from ontogeny.snapshots import sources

    sources.publish(s, step, output, archive, slots)
