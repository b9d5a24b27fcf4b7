"""Activations and their principal subspace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ontogeny.cli.base import FILE, FOLDER, config, config_on_device, main, path, places, threads
from ontogeny.settings import Settings


@main.command()
@config_on_device
@threads
@path("snapshot", FOLDER)
@click.option("--step", type=int, required=True)
@path("tokens")
@path("output", FOLDER)
@click.option(
    "--shard", type=click.IntRange(0), default=0, help="A later shard of the training rows."
)
def extract(s: Settings, snapshot: Path, step: int, tokens: Path, output: Path, shard: int) -> None:
    """Write one snapshot's activations, all layers and streams in one pass."""
    from ontogeny.activations import extract as stage

    stage.extract(s, snapshot, step, tokens, output, shard)


@main.command()
@config
@click.argument("files", nargs=-1, required=True, type=FILE)
@path("output")
def stack(s: Settings, files: tuple[Path, ...], output: Path) -> None:
    """Show the snapshots' FILES of one layer and stream as one dataset."""
    from ontogeny.activations import store

    store.stack(list(files), s.snapshots.chosen, output, s.activations.mode == "cached")


@main.command()
@config_on_device
@threads
@places
@click.option("--crosscoder", "name", required=True, help="Any crosscoder with these inputs.")
@path("output")
def basis(s: Settings, name: str, places: Any, output: Path) -> None:
    """Find the principal subspace of a crosscoder's sites."""
    from ontogeny import devices
    from ontogeny.activations import basis as stage
    from ontogeny.activations import feed
    from ontogeny.activations.sites import expand

    device = devices.choose(s.device)
    sites = expand(s.all_crosscoders[name].inputs, s.snapshots.chosen)
    stage.build(s.basis, feed.site_rows(s, sites, places, device), output, device)


@main.command()
@config_on_device
@threads
@click.option("--crosscoder", "name", required=True, help="Any crosscoder with these inputs.")
@click.option("--shard", type=click.IntRange(0), required=True)
@path("activations", FOLDER)
@path("basis")
@path("output")
def project(
    s: Settings, name: str, shard: int, activations: Path, basis: Path, output: Path
) -> None:
    """Write a shard of the training rows in their principal subspace."""
    from ontogeny import devices
    from ontogeny.activations import subspace
    from ontogeny.activations.rows import Cached
    from ontogeny.activations.sites import expand

    rows = Cached(activations, expand(s.all_crosscoders[name].inputs, s.snapshots.chosen))
    subspace.project(basis, rows, shard, output, devices.choose(s.device))
