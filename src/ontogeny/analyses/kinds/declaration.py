"""What the analysis `kinds` reads, makes, costs and draws."""

from ontogeny.analyses.kinds.settings import Kinds
from ontogeny.declarations import Analysis, Cost, Figure, Product, Stage
from ontogeny.stages import HISTORIES

KINDS = Stage(
    "kinds",
    run="ontogeny.analyses.kinds.measure:measure",
    about="Tell features of the token, the token before, induction and context apart, by rule.",
    reads={"crosscoder": "crosscoder", "activations": "activations", "tokens": "tokens"},
    makes={"kinds": "kinds", "control": "kinds_control"},
    settings=("kinds", "analysis.seed"),
    cost=Cost(
        {"active features * kinds.permutations": 3.1e-7, "encoding": 1e-11},
        {
            "crosscoder in use": 1,
            "pieces read ahead": 1,
            "active features": 600,
            "features * kinds.permutations": 120,
        },
        {"one": 9000, "features": 100},
    ),
)

ANALYSIS = Analysis(
    "kinds",
    about="Which features respond to the current token, the previous token, an earlier copy of "
    "both, or wider context, and when each kind appears.",
    section=Kinds,
    stages=[KINDS],
    figures=[
        Figure(
            "kinds",
            "ontogeny.analyses.kinds.figure:draw",
            HISTORIES,
            "Kinds of feature",
            {
                "features": "features",
                "strengths": "strengths",
                "kinds": "kinds",
                "control": "kinds_control",
            },
        )
    ],
    products=[
        Product(
            "kinds",
            "features/{crosscoder}/kinds.parquet",
            "one row per feature that is active on the held-out text",
        ),
        Product(
            "kinds_control", "features/{crosscoder}/kinds_control.csv", "of permuted activations"
        ),
    ],
    numbers="ontogeny.analyses.kinds.numbers:numbers",
)
