"""What the analysis `kinds` reads, makes, costs and draws."""

from ontogeny.analyses.kinds.settings import Kinds
from ontogeny.declarations import Analysis, Cost, Figure, Product, Stage
from ontogeny.stages import HISTORIES

CAUSES = Stage(
    "causes",
    run="ontogeny.analyses.kinds.causes:measure",
    about="Measure what each feature loses when tokens before it are replaced.",
    reads={name: name for name in ("crosscoder", "activations", "snapshots", "tokens")},
    makes={"causes": "causes"},
    settings=("kinds.positions", "kinds.active", "analysis.bootstrap", "analysis.seed"),
    cost=Cost(
        {"forward * snapshots * kinds.positions * corpus.context": 2.5e-11, "encoding": 1e-11},
        {
            "model": 1,
            "a snapshot as it loads": 1,
            "crosscoder in use": 1,
            "pieces read ahead": 1,
            "active features": 30,
            "forward pass": 4,
        },
        {"one": 6000, "features": 200},
    ),
)

KINDS = Stage(
    "kinds",
    run="ontogeny.analyses.kinds.measure:measure",
    about="Assign a kind to each feature, by cause and by rule.",
    reads={name: name for name in ("crosscoder", "activations", "tokens", "causes")},
    makes={"kinds": "kinds", "agree": "kinds_agreement", "control": "kinds_control"},
    settings=(
        "kinds.loss",
        "kinds.control",
        "kinds.active",
        "kinds.permutations",
        "kinds.quantile",
        "kinds.share",
        "analysis.seed",
    ),
    cost=Cost(
        {"active features * kinds.permutations": 6e-8, "encoding": 1e-11},
        {
            "crosscoder in use": 1,
            "pieces read ahead": 1,
            "active features": 30,
            "held-out rows * kinds.permutations": 50,
            "features * kinds.permutations": 120,
            "one": 0.2e9,
        },
        {"one": 9000, "features": 200},
    ),
)

ANALYSIS = Analysis(
    "kinds",
    about="Which features depend on the current token, the previous token, an earlier copy of "
    "both, wider context, or the position, and when each kind appears.",
    section=Kinds,
    stages=[CAUSES, KINDS],
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
            settings=("kinds.loss", "kinds.control"),
        )
    ],
    products=[
        Product(
            "causes",
            "features/{crosscoder}/causes.parquet",
            "one row per replacement and feature that is active on the held-out text",
        ),
        Product(
            "kinds",
            "features/{crosscoder}/kinds.parquet",
            "one row per feature that is active on the held-out text",
        ),
        Product(
            "kinds_agreement",
            "features/{crosscoder}/kinds_agreement.csv",
            "one row per kind by rule and kind by cause",
        ),
        Product(
            "kinds_control",
            "features/{crosscoder}/kinds_control.csv",
            "number of features per kind by rule, on real and on permuted activations",
        ),
    ],
    numbers="ontogeny.analyses.kinds.numbers:numbers",
)
