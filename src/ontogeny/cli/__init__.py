"""`ontogeny STAGE ...`: a thin command around each stage's function; the rules call these.

Every command reads one configuration file and explicit paths, so that any step of the workflow
can be repeated by hand from the command that Snakemake prints with `-p`.
"""

from __future__ import annotations

import os

from ontogeny.cli import (  # noqa: F401 each adds its commands to `main` as it is imported
    activations,
    circuits,
    corpus,
    crosscoder,
    exchange,
    features,
    figures,
    finished,
    phases,
    plan,
    snapshots,
)
from ontogeny.cli.base import main

# Read by the threads' library as torch loads it. Threads that wait for each other by spinning long
# starve where anything else runs; those that never spin are a tenth slower where nothing does.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ.update(OMP_WAIT_POLICY="passive", GOMP_SPINCOUNT="3000")

__all__ = ["main"]
