"""What runs and is doubtful all the same: a sentence each, with the setting that mends it.

`before` is known ahead of any job; `ontogeny check` and the workflow print it. `found` is what the
stages measured, and what the snapshots say once they are there. Both stand in summary.json under
`doubts`, and nothing is refused for them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from ontogeny.experiment import Experiment
from ontogeny.settings import Settings
from ontogeny.snapshots import losses, sources


def before(
    settings: Settings, results: str | Path = "results", all_steps: bool = False
) -> list[str]:
    """What is doubtful about an experiment before it runs.

    Parameters
    ----------
    settings : steps resolved. results : the folder that holds the experiments' folders.
    all_steps : whether `snapshots.steps: all` was asked for.
    """
    return sources.advice(settings, results, all_steps)


def found(experiment: Experiment) -> list[str]:
    """What a finished experiment's files say that is doubtful."""
    lines = sources.doubts(experiment.settings, experiment.results)
    if experiment.path("losses").exists():
        lines += losses.doubts(experiment.table("losses"))
    return lines


def every(experiment: Experiment) -> list[str]:
    """All that stands in summary.json, each sentence once."""
    return list(dict.fromkeys(found(experiment)))


def tell(lines: Iterable[str], to: TextIO | None = None) -> None:
    """Print each doubt as a line of advice, on stderr unless told otherwise."""
    for line in lines:
        print(f"advice: {line}", file=to or sys.stderr)
