"""What the analysis `makers` reads, makes, costs and draws."""

from ontogeny.analyses.makers.settings import Makers
from ontogeny.declarations import Analysis, Cost, Figure, Optional, Product, Stage
from ontogeny.stages import MODEL

TABLES = {"makers": "makers", "shares": "maker_shares"}
BY_KIND = {"by_kind": "makers_by_kind", "curves": "maker_curves"}
# Heads are ablated once per dictionary; changes of kinds or of the bootstrap run no model again.

MAKERS = Stage(
    "makers",
    run="ontogeny.analyses.makers.measure:measure",
    about="Ablate every attention head at every snapshot: how much of each feature is lost?",
    reads={
        "crosscoder": "crosscoder",
        "activations": "activations",
        "snapshots": "snapshots",
        "tokens": "tokens",
    },
    makes=TABLES,
    settings=("makers.blocks", "makers.active", "activations.precision"),
    cost=Cost(
        {
            "encoding": 1e-11,
            "forward * snapshots * heads * corpus.context * makers.blocks": 2.5e-11,
        },
        {
            "model": 1,
            "a snapshot as it loads": 1,
            "forward pass": 2,
            "crosscoder in use": 1,
            "pieces read ahead": 1,
            "active features": 30,
            "features * heads * snapshots": 16,
        },
        {"one": 20000, "features * heads": 40, "features * heads * snapshots": 4},
    ),
)

SUMMARY = Stage(
    "makers_by_kind",
    run="ontogeny.analyses.makers.by_kind:measure",
    about="Summarise, by kind of feature, which heads make it and from which step on.",
    reads={**TABLES, "features": "features", "kinds": Optional("kinds")},
    makes=BY_KIND,
    settings=("analysis.bootstrap", "analysis.seed"),
    gpu=False,
    cost=Cost(
        {"features * heads * snapshots * analysis.bootstrap": 1e-9},
        {"features * heads * snapshots": 24, "heads * snapshots * analysis.bootstrap": 40},
        {"heads": 1000, "heads * snapshots": 700},
    ),
)

ANALYSIS = Analysis(
    "makers",
    about="Which attention heads make which features, snapshot by snapshot.",
    section=Makers,
    stages=[MAKERS, SUMMARY],
    figures=[
        Figure(
            "makers",
            "ontogeny.analyses.makers.figure:draw",
            MODEL,
            "Which heads make which features",
            {
                **BY_KIND,
                "heads": Optional("induction"),
                "attention": Optional("induction_curves"),
            },
        )
    ],
    products=[
        Product(
            "makers",
            "features/{crosscoder}/makers.parquet",
            "one row per feature and attention head; empty if heads cannot be separated",
        ),
        Product(
            "maker_shares",
            "features/{crosscoder}/maker_shares.h5",
            "the share of each head in each feature, through each snapshot",
        ),
        Product(
            "makers_by_kind",
            "features/{crosscoder}/makers_by_kind.csv",
            "one row per kind of feature and head",
        ),
        Product(
            "maker_curves",
            "features/{crosscoder}/maker_curves.csv",
            "one row per kind of feature, head and snapshot",
        ),
    ],
    numbers="ontogeny.analyses.makers.numbers:numbers",
)
