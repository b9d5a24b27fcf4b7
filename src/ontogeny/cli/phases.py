"""Phases of the language model's own training."""

from __future__ import annotations

from pathlib import Path

import click

from ontogeny.cli.base import FILE, FOLDER, config, config_on_device, main, path, threads
from ontogeny.settings import Settings


@main.command()
@config_on_device
@threads
@path("snapshots", FOLDER)
@path("tokens")
@path("table")
@path("levels")
def phases(s: Settings, snapshots: Path, tokens: Path, table: Path, levels: Path) -> None:
    """Hold every snapshot's loss against the n-gram levels."""
    from ontogeny.phases import levels as stage

    stage.measure(s, snapshots, tokens, table, levels)


@main.command()
@config_on_device
@threads
@path("snapshots", FOLDER)
@path("tokens")
@path("sums")
@path("table")
def heads(s: Settings, snapshots: Path, tokens: Path, sums: Path, table: Path) -> None:
    """Measure what every attention head attends to, and what a copy gains."""
    from ontogeny.phases import heads as stage

    stage.measure(s, snapshots, tokens, sums, table)


@main.command()
@config
@path("sums")
@click.option("--features", type=FILE, help="The features' histories; with --kinds.")
@click.option("--kinds", type=FILE, help="The features' kinds; with --features.")
@path("table")
@path("curves")
def induction(
    s: Settings, sums: Path, features: Path | None, kinds: Path | None, table: Path, curves: Path
) -> None:
    """Put the onsets of heads, copying and kinds of feature in order."""
    from ontogeny.phases import induction as stage

    stage.describe(s, sums, features, kinds, table, curves)
