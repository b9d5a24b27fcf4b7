"""Crosscoders: training and fidelity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ontogeny.cli.base import (
    FOLDER,
    config,
    config_on_device,
    main,
    path,
    places,
    take_gpus,
    threads,
)
from ontogeny.settings import Settings


@main.command()
@config
@threads
@places
@click.option("--crosscoder", "name", required=True)
@click.option("--seed", type=int, required=True)
@path("output", FOLDER)
@path("state", FOLDER)
def train(s: Settings, name: str, seed: int, places: Any, output: Path, state: Path) -> None:
    """Train one crosscoder, resuming from STATE if it was interrupted.

    On several devices where its settings ask for them, which then share the threads.
    """
    count = s.all_crosscoders[name].devices
    take_gpus(s, count)
    if count > 1:
        import torch

        from ontogeny.crosscoder import launch

        launch.train(s, name, seed, places, output, state, torch.get_num_threads())
        return
    from ontogeny.crosscoder import train as stage

    stage.train(s, name, seed, places, output, state)


@main.command()
@config_on_device
@threads
@places
@path("crosscoder", FOLDER)
@path("sites")
@path("features")
def fidelity(s: Settings, crosscoder: Path, places: Any, sites: Path, features: Path) -> None:
    """Measure a crosscoder on held-out text, by site and by feature."""
    from ontogeny.crosscoder import fidelity as stage

    stage.measure(s, crosscoder, places, sites, features)


@main.command()
@config
@path("crosscoders", FOLDER)
@path("table")
@path("comparison")
def frontier(s: Settings, crosscoders: Path, table: Path, comparison: Path) -> None:
    """Gather what the frontier's dictionaries reach, crosscoders beside SAEs."""
    from ontogeny.crosscoder import frontier as stage

    stage.gather(s, crosscoders, table, comparison)
