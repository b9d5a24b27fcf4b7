"""What runs and is doubtful all the same: a sentence each, with the setting that mends it.

`before` is known ahead of any job; `ontogeny check` and the workflow print it. `found` is what the
stages measured. Both stand in summary.json under `doubts`, and nothing is refused for them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TextIO

from ontogeny.activations import doubts as rows
from ontogeny.experiment import Experiment
from ontogeny.settings import Settings


def before(settings: Settings) -> list[str]:
    """What is doubtful about an experiment before it runs."""
    return rows.before(settings)


def found(experiment: Experiment) -> list[str]:
    """What a finished experiment's files say that is doubtful."""
    return rows.found(experiment)


def every(experiment: Experiment) -> list[str]:
    """All that stands in summary.json, each sentence once."""
    return list(dict.fromkeys([*before(experiment.settings), *found(experiment)]))


def tell(lines: Iterable[str], to: TextIO | None = None) -> None:
    """Print each doubt as a line of advice, on stderr unless told otherwise."""
    for line in lines:
        print(f"advice: {line}", file=to or sys.stderr)
