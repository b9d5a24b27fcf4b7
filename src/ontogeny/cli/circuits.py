"""From features to abilities."""

from __future__ import annotations

from pathlib import Path

from ontogeny.cli.base import FOLDER, config, config_on_device, main, path, threads
from ontogeny.settings import Settings


@main.command()
@config
@path("tokens")
@path("tokenizer")
@path("output")
@path("table")
def tasks(s: Settings, tokens: Path, tokenizer: Path, output: Path, table: Path) -> None:
    """Make the tasks' clean and corrupted prompts with the tokenizer at hand."""
    from ontogeny.circuits import tasks as stage

    stage.build(s.circuits, tokens, tokenizer, output, table)


@main.command()
@config_on_device
@threads
@path("crosscoder", FOLDER)
@path("snapshots", FOLDER)
@path("tasks")
@path("output", FOLDER)
def attribution(s: Settings, crosscoder: Path, snapshots: Path, tasks: Path, output: Path) -> None:
    """Find the features that each task hangs on, snapshot by snapshot."""
    from ontogeny.circuits import attribution as stage

    stage.describe(s, crosscoder, snapshots, tasks, output)


@main.command()
@config_on_device
@threads
@path("crosscoder", FOLDER)
@path("snapshots", FOLDER)
@path("tasks")
@path("attribution", FOLDER)
@path("output")
@path("summary")
def ablation(
    s: Settings,
    crosscoder: Path,
    snapshots: Path,
    tasks: Path,
    attribution: Path,
    output: Path,
    summary: Path,
) -> None:
    """Hold each task's top features against others: are they needed, are they enough?"""
    from ontogeny.circuits import ablation as stage

    stage.describe(s, crosscoder, snapshots, tasks, attribution, output, summary)
