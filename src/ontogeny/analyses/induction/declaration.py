"""What the analysis `induction` reads, makes, costs and draws."""

from ontogeny.analyses.induction.settings import Induction
from ontogeny.declarations import Analysis, Cost, Figure, Optional, Product, Stage
from ontogeny.stages import MODEL

TABLES = {"table": "induction", "curves": "induction_curves"}
MARGINS = ("induction.least_attention", "induction.least_gain")
# Heads are measured once per model. The order of onsets is computed from these results, so changing
# features, margins or bootstraps runs no model again. Kinds are used if there are any.
KINDS = {"features": Optional("features", when="kinds"), "kinds": Optional("kinds")}

HEADS = Stage(
    "heads",
    run="ontogeny.analyses.induction.heads:measure",
    about="Measure what every attention head attends to, and how much the loss gains from a copy.",
    reads={"snapshots": "snapshots", "tokens": "tokens"},
    makes={"sums": "head_sums", "table": "heads"},
    settings=("induction.blocks", "analysis.seed", "activations.precision"),
    scope="experiment",
    cost=Cost(
        {"forward * snapshots * corpus.context * induction.blocks": 1.5e-10},
        {"model": 1, "a snapshot as it loads": 1, "forward pass": 2, "logits": 3, "attention": 1},
        {"one": 30000, "snapshots * heads * induction.blocks": 210},
    ),
)
INDUCTION = Stage(
    "induction",
    run="ontogeny.analyses.induction.onsets:measure",
    about="Put the onsets of heads, copying and kinds of feature in order.",
    reads={"sums": "head_sums", "levels": "levels", **KINDS},
    makes=TABLES,
    settings=(*MARGINS, "analysis.bootstrap", "analysis.seed"),
    scope="experiment",
    gpu=False,
    cost=Cost(
        {"heads * snapshots * analysis.bootstrap": 5e-6},
        {"one": 0.1e9, "heads * snapshots * induction.blocks": 600},
        {"one": 20000},
    ),
)

ANALYSIS = Analysis(
    "induction",
    about="When attention heads and copying form, and in which order with the kinds of feature.",
    section=Induction,
    histories=False,
    stages=[HEADS, INDUCTION],
    figures=[
        Figure(
            "induction",
            "ontogeny.analyses.induction.figure:draw",
            MODEL,
            "Loss, heads, copying and features",
            {
                **TABLES,
                "phases": "phases",
                "levels": "levels",
                "strengths": Optional("strengths", when="kinds"),
                **KINDS,
            },
            scope="experiment",
        )
    ],
    products=[
        Product("head_sums", "phases/heads.h5", "sums of the scores by block of held-out text"),
        Product(
            "heads",
            "phases/heads.csv",
            "one row per snapshot, head and score; empty if the model gives no attention weights",
        ),
        Product(
            "induction",
            "phases/induction.csv",
            "one row per event; events that form come first, by onset",
        ),
        Product(
            "induction_curves",
            "phases/induction_curves.csv",
            "one row per event and snapshot",
        ),
    ],
    numbers="ontogeny.analyses.induction.numbers:numbers",
)
