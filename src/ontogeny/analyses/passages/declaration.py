"""What the analysis `passages` reads, makes and costs."""

from ontogeny.analyses.passages.settings import Passages
from ontogeny.declarations import Analysis, Cost, Figure, Optional, Product, Stage
from ontogeny.stages import MODEL

READ = Stage(
    "passages",
    run="ontogeny.analyses.passages.measure:measure",
    about="Have every snapshot read passages of held-out text and the tasks' prompts.",
    reads={
        "crosscoder": "crosscoder",
        "snapshots": "snapshots",
        "tokens": "tokens",
        "tokenizer": "tokenizer",
        "tasks": Optional("tasks"),
    },
    makes={"passages": "passages", "features": "passage_features"},
    settings=("passages", "device", "activations", "snapshots.remote_code"),
    cost=Cost(
        {
            "one": 4,
            "snapshots": 0.2,
            "forward * snapshots * passages.held_out * corpus.context": 2.4e-10,
        },
        {
            "model": 1,
            "a snapshot as it loads": 1,
            "crosscoder in use": 1,
            "forward pass": 1,
            "logits": 1,
            "one": 0.3e9,
        },
        {"snapshots * passages.held_out * passages.length": 400},
    ),
)

ANALYSIS = Analysis(
    "passages",
    about="Passages of held-out text and the tasks' prompts as every snapshot reads them, for the "
    "atlas: loss of each token, likeliest next tokens, features that are active there.",
    section=Passages,
    stages=[READ],
    figures=[
        Figure(
            "passages",
            "ontogeny.analyses.passages.figure:draw",
            MODEL,
            "Passages through training",
            {"passages": "passages"},
        )
    ],
    products=[
        Product(
            "passages",
            "features/{crosscoder}/passages.parquet",
            "one row per passage, token and snapshot",
        ),
        Product(
            "passage_features",
            "features/{crosscoder}/passage_features.parquet",
            "one row per passage, token, snapshot and feature that contributes most there",
        ),
    ],
    in_replicates=None,
)
