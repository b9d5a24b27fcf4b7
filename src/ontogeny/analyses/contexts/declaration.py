"""What the analysis `contexts` reads, makes, costs and draws."""

from ontogeny.analyses.contexts.settings import Contexts
from ontogeny.declarations import Analysis, Cost, Figure, Optional, Product, Stage
from ontogeny.stages import HISTORIES

CONTEXTS = Stage(
    "contexts",
    run="ontogeny.analyses.contexts.measure:measure",
    about="Write the contexts in which features are active or nearly so, and their logit lens.",
    reads={
        "crosscoder": "crosscoder",
        "activations": "activations",
        "snapshots": "snapshots",
        "tokens": "tokens",
        "tokenizer": "tokenizer",
    },
    makes={"contexts": "contexts", "table": "contexts_table"},
    settings=("contexts", "analysis.seed"),
    cost=Cost(
        {
            "encoding": 1e-11,
            "held-out rows * features": 1e-7,
            "forward * snapshots * corpus.context": 2.4e-10,
        },
        {
            "model": 1,
            "a snapshot as it loads": 1,
            "crosscoder in use": 1,
            "pieces read ahead": 1,
            "forward pass": 1,
            "logits": 1,
            "active features": 24,
            "one": 0.2e9,
            "features * contexts.quantiles * contexts.window": 400,
        },
        {
            "one": 40000,
            "vocabulary": 12,
            "features": 1440,
            "features * contexts.top * contexts.window": 12,
            "features * contexts.quantiles * contexts.window": 12,
        },
    ),
)

ANALYSIS = Analysis(
    "contexts",
    about="What each feature looks like: text in which it is active or nearly active, how often "
    "it is active, and which tokens it promotes.",
    section=Contexts,
    stages=[CONTEXTS],
    figures=[
        Figure(
            "examples",
            "ontogeny.analyses.contexts.figure:draw",
            HISTORIES,
            "Examples, with contexts",
            {
                "features": "features",
                "strengths": "strengths",
                "contexts": "contexts_table",
                "kinds": Optional("kinds"),
                "named": Optional("names"),
            },
        )
    ],
    products=[
        Product(
            "contexts",
            "features/{crosscoder}/contexts.h5",
            "one record per living feature, for `Experiment.contexts`",
        ),
        Product(
            "contexts_table",
            "features/{crosscoder}/contexts.parquet",
            "one row per feature and context, for the contexts of its largest activations",
        ),
    ],
)
