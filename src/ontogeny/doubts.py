"""Settings and results that work but are doubtful: one sentence each, with a correction.

`before` is known before any job; `ontogeny check` and the workflow print it. `found` is what the
stages measured, and what the snapshots show when they exist. Both are in summary.json under
`doubts`, and neither stops a run.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from ontogeny import registry
from ontogeny.activations import doubts as rows
from ontogeny.experiment import Experiment
from ontogeny.settings import Settings
from ontogeny.snapshots import losses, sources


def before(
    settings: Settings, results: str | Path = "results", all_steps: bool = False
) -> list[str]:
    """Doubts about an experiment before it runs.

    Parameters
    ----------
    settings : steps resolved. results : the folder that holds the experiments' folders.
    all_steps : whether the settings have `snapshots.steps: all`.
    """
    lines = [*sources.advice(settings, results, all_steps), *rows.before(settings)]
    experiment = Experiment(Path(results) / settings.name, settings)
    return [*lines, *missing(experiment), *registry.ahead(experiment)[1]]


def missing(experiment: Experiment) -> list[str]:
    """What a run will lack because its primary crosscoder has too few snapshots."""
    name, few = experiment.primary, experiment.compared(experiment.primary)
    if not experiment.has_histories(name):
        return [
            f"primary: the features of {name} have no histories, which need a trained decoder "
            "over two or more snapshots of one layer and stream; so there are no kinds, no "
            "figures of features and no atlas"
        ]
    if few == 2:
        return [
            "snapshots.steps: two snapshots can only be compared: the figure comparison takes "
            "the place of histories, peaks and lifetimes; a turning point needs four"
        ]
    if few == 3:
        return [
            "snapshots.steps: three snapshots give short histories and no turning point, which "
            "needs four; the figure comparison compares the first with the last"
        ]
    return []


def found(experiment: Experiment) -> list[str]:
    """Doubts that follow from a finished experiment's files."""
    lines = sources.doubts(experiment.settings, experiment.results)
    if experiment.path("losses").exists():
        lines += losses.doubts(experiment.table("losses"))
    return [*lines, *rows.found(experiment)]


def every(experiment: Experiment) -> list[str]:
    """All doubts for summary.json, each sentence once."""
    settings = experiment.settings
    files = registry.ahead(experiment)[1]
    lines = [*rows.before(settings), *missing(experiment), *files, *found(experiment)]
    return list(dict.fromkeys(lines))


def tell(lines: Iterable[str], to: TextIO | None = None) -> None:
    """Print each doubt as a line of advice, on stderr by default."""
    for line in lines:
        print(f"advice: {line}", file=to or sys.stderr)
