"""Ontogeny: watch concepts grow inside a language model while it trains.

    import ontogeny
    experiment = ontogeny.open("results/default")

`open` returns the map of an experiment (ontogeny.experiment), which is the Python interface. Each
stage of the workflow is a plain function that takes paths and typed settings; docs/design.md has a
diagram of how data flows through them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ontogeny.version import VERSION as __version__

if TYPE_CHECKING:
    from ontogeny.experiment import Experiment

# HDF5 reads this when it is loaded. Its locks fail on file systems that have none, and they are not
# needed here: a file is written under a temporary name and renamed when it is complete.
os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")

__all__ = ["__version__", "open"]


def open(folder: str | Path) -> Experiment:
    """The experiment in a folder, such as results/default.

    Raises
    ------
    InputError : there is none, or its configuration is damaged.
    """
    from ontogeny.experiment import Experiment

    return Experiment.open(folder)
