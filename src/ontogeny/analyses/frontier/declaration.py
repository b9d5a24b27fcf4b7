"""What the analysis `frontier` reads, makes, costs and draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ontogeny.analyses.frontier.dictionaries import crosscoders
from ontogeny.analyses.frontier.settings import Frontier
from ontogeny.declarations import Analysis, Cost, Figure, Product, Source, Stage
from ontogeny.stages import FIDELITY


def _of_dictionaries(product: str) -> Callable[[Any], Source]:
    """A product of all seeds of the frontier's dictionaries: lists in a dictionary, by name."""

    def source(experiment: Any) -> Source:
        names = crosscoders(experiment.settings)
        paths = {name: experiment.seeds_of(product, name) for name in names}
        return Source([path for seeds in paths.values() for path in seeds], paths)

    return source


FRONTIER = Stage(
    "frontier",
    run="ontogeny.analyses.frontier.measure:measure",
    about="Gather what the frontier's dictionaries reach, and compare crosscoders with SAEs.",
    reads={
        "fidelities": _of_dictionaries("fidelity"),
        "densities": _of_dictionaries("density"),
    },
    makes={"frontier": "frontier", "comparison": "frontier_comparison"},
    scope="experiment",
    gpu=False,
    when="frontier",
    cost=Cost(),
)
# No settings: what the dictionaries are is in their names, and so in the names of the files read.

ANALYSIS = Analysis(
    "frontier",
    about="Explained variance and loss recovered against L0, for crosscoders of several sizes and "
    "sparsities beside SAEs of single snapshots.",
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
            {
                "dictionary": "its name",
                "kind": "'crosscoder', of all snapshots, or 'sae', of one alone",
                "features": "its width, F",
                "sparsity": "k, or the weight of the penalty, λ",
                "seed": "of its training",
                "snapshot_index": "counted from 1",
                "step": "training step of the snapshot",
                "explained_variance": "1 − Σ‖a−â‖² / Σ‖a−mean a‖², held out",
                "loss_recovered": "of the cross-entropy that mean-ablation of the site costs",
                "pca_explained_variance": "of as many principal components as l0",
                "l0": "active features per token",
                "l0_present": "those of them that are present at the snapshot",
                "loss": "held-out cross-entropy, nats per token",
                "loss_ablated": "the same with the site's mean in its place",
                "dead": "share of the features",
            },
        ),
        Product(
            "frontier_comparison",
            "frontier/comparison.csv",
            "one row per crosscoder, snapshot with SAEs, measure and way of counting L0",
            {
                "measure": "explained_variance or loss_recovered",
                "counted": "l0 or l0_present, at which the two are compared",
                "crosscoder": "the crosscoder's measure",
                "sae": "that of SAEs of the same size and seed at its L0; empty beyond their ends",
                "difference": "crosscoder − sae",
            },
        ),
    ],
    crosscoders="ontogeny.analyses.frontier.dictionaries:crosscoders",
    faults="ontogeny.analyses.frontier.dictionaries:faults",
)
