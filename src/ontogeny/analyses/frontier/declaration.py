"""What the analysis `frontier` reads, makes, costs and draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ontogeny.analyses.frontier.dictionaries import crosscoders
from ontogeny.analyses.frontier.settings import Frontier
from ontogeny.declarations import Analysis, Cost, Figure, Product, Source, Stage
from ontogeny.stages import FIDELITY


def _of_dictionaries(product: str) -> Callable[[Any], Source]:
    """A product for all seeds of the frontier's dictionaries: lists of paths by dictionary."""

    def source(experiment: Any) -> Source:
        names = crosscoders(experiment.settings)
        paths = {name: experiment.seeds_of(product, name) for name in names}
        return Source([path for seeds in paths.values() for path in seeds], paths)

    return source


FRONTIER = Stage(
    "frontier",
    run="ontogeny.analyses.frontier.measure:measure",
    about="Collect the results of the frontier's dictionaries, and compare crosscoders with SAEs.",
    reads={
        "fidelities": _of_dictionaries("fidelity"),
        "densities": _of_dictionaries("density"),
    },
    makes={"frontier": "frontier", "comparison": "frontier_comparison"},
    scope="experiment",
    gpu=False,
    local=True,
    when="frontier",
    cost=Cost({"one": 2.0}, {"one": 0.2e9}, {"one": 50000}),
)
# It has no settings: the dictionaries' names, and so the names of the files, determine them.

ANALYSIS = Analysis(
    "frontier",
    about="Explained variance and loss recovered against L0, for crosscoders of several sizes and "
    "sparsities and for SAEs of single snapshots.",
    section=Frontier,
    optional=True,
    histories=False,
    in_replicates=None,
    stages=[FRONTIER],
    figures=[
        Figure(
            "frontier",
            "ontogeny.analyses.frontier.figure:draw",
            FIDELITY,
            "Fidelity frontier",
            {"frontier": "frontier"},
            scope="experiment",
        )
    ],
    products=[
        Product(
            "frontier",
            "frontier/frontier.csv",
            "one row per dictionary, seed and snapshot",
        ),
        Product(
            "frontier_comparison",
            "frontier/comparison.csv",
            "one row per crosscoder, snapshot with SAEs, measure and way of counting L0",
        ),
    ],
    crosscoders="ontogeny.analyses.frontier.dictionaries:crosscoders",
    faults="ontogeny.analyses.frontier.dictionaries:faults",
)
