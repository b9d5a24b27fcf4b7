"""What is doubtful about an experiment though it runs: sentences, never a reason to stop.

`before` is what can be known before any work: `ontogeny check` lists it, and a run begins with it.
`after` is that and what was measured: the summary has it as `doubts`, and a run ends with it.
"""

from __future__ import annotations

from pathlib import Path

from ontogeny.experiment import Experiment
from ontogeny.settings import Settings
from ontogeny.snapshots import losses, sources


def before(settings: Settings, results: str | Path, every: bool = False) -> list[str]:
    """Advice on an experiment that can run.

    Parameters
    ----------
    settings : steps resolved. results : the folder that holds the experiments' folders.
    every : whether `snapshots.steps: all` was asked for.
    """
    return sources.advice(settings, results, every)


def after(experiment: Experiment) -> list[str]:
    """What is doubtful about what a finished experiment found, each sentence once."""
    lines = sources.doubts(experiment.settings, experiment.results)
    if experiment.path("losses").exists():
        lines += losses.doubts(experiment.table("losses"))
    return list(dict.fromkeys(lines))
