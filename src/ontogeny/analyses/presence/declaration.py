"""What the analysis `presence` reads, makes, costs and draws."""

from ontogeny.analyses.presence.settings import Presence
from ontogeny.declarations import Analysis, Cost, Figure, Product, Stage
from ontogeny.stages import HISTORIES

PRESENCE = Stage(
    "presence",
    run="ontogeny.analyses.presence.measure:measure",
    about="Test whether decoder norms mean presence: latent scaling and linear probes.",
    reads={name: name for name in ("crosscoder", "activations", "tokens", "features")},
    makes={"tests": "presence", "verdicts": "presence_verdicts"},
    settings=("presence", "analysis.seed", "analysis.bootstrap"),
    cost=Cost(
        {
            "features * snapshots * analysis.bootstrap": 3e-7,
            "active features * width * snapshots": 3e-10,
            "held-out rows * width * width * snapshots": 1.2e-10,
        },
        {
            "crosscoder in use": 1,
            "pieces read ahead": 1,
            "active features": 70,
            "held-out rows * width": 40,
            "features * analysis.bootstrap": 12,
            "features * snapshots": 500,
            "features * width": 170,
        },
        {"one": 20000, "features * snapshots": 60},
    ),
)

ANALYSIS = Analysis(
    "presence",
    about="Whether a small decoder norm means that the feature is absent: latent scaling and "
    "linear probes.",
    section=Presence,
    stages=[PRESENCE],
    figures=[
        Figure(
            "presence",
            "ontogeny.analyses.presence.figure:draw",
            HISTORIES,
            "Does the norm mean presence?",
            {"features": "features", "tests": "presence", "verdicts": "presence_verdicts"},
            scope="compared",
        )
    ],
    products=[
        Product(
            "presence",
            "features/{crosscoder}/presence.parquet",
            "one row per tested feature and snapshot",
        ),
        Product(
            "presence_verdicts",
            "features/{crosscoder}/presence.csv",
            "where norm and tests disagree, and their correlations",
        ),
    ],
    numbers="ontogeny.analyses.presence.numbers:numbers",
)
