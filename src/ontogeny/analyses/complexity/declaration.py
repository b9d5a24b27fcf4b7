"""What the analysis `complexity` reads, makes, costs and draws."""

from ontogeny.analyses.complexity.settings import Complexity
from ontogeny.declarations import Analysis, Cost, Figure, Optional, Product, Stage
from ontogeny.stages import HISTORIES

SPAN = Stage(
    "span",
    run="ontogeny.analyses.complexity.span:measure",
    about="Measure how much context before it each feature needs.",
    reads={name: name for name in ("crosscoder", "activations", "snapshots", "tokens")},
    makes={"span": "span", "contexts": "span_contexts"},
    settings=(
        "complexity.contexts",
        "complexity.keep",
        "complexity.longest",
        "complexity.features",
        "analysis.seed",
    ),
    cost=Cost(
        {
            "forward * snapshots * complexity.features * complexity.contexts"
            " * complexity.longest": 1.9e-11,
            "encoding": 1e-11,
        },
        {
            "model": 1,
            "a snapshot as it loads": 1,
            "crosscoder in use": 1,
            "pieces read ahead": 1,
            "active features": 60,
            "forward pass": 4,
            "keys and values": 24,
        },
        {"one": 10000, "complexity.features": 250},
    ),
)

GRADE = Stage(
    "grade",
    run="ontogeny.analyses.complexity.grader:grade",
    about="Have a language model grade the complexity of a sample of features.",
    reads={name: name for name in ("crosscoder", "activations", "tokens", "tokenizer", "span")},
    makes={"grades": "grades"},
    settings=(
        "complexity.grader.url",
        "complexity.grader.model",
        "complexity.grader.features",
        "complexity.grader.examples",
        "analysis.seed",
    ),
    when="complexity.grader",
    # Not a declared product, so that an interrupted grading continues from the answers it has.
    scratch={"answers": "features/{crosscoder}/grader"},
    files=("grader_prompt.md",),
    cost=Cost(
        {"encoding": 1e-11, "complexity.grader.features": 6.0},
        {"crosscoder in use": 1, "pieces read ahead": 1, "active features": 60},
        {"one": 5000, "complexity.grader.features": 200},
    ),
)

COMPLEXITY = Stage(
    "complexity",
    run="ontogeny.analyses.complexity.correlations:measure",
    about="Correlate the features' complexity with their peaks and onsets.",
    reads={"features": "features", "span": "span", "grades": Optional("grades")},
    makes={"correlations": "complexity"},
    settings=("analysis.bootstrap", "analysis.seed"),
    gpu=False,
    cost=Cost(
        {"complexity.features": 2e-3, "complexity.features * analysis.bootstrap": 5e-7},
        {"one": 0.2e9, "complexity.features * analysis.bootstrap": 112},
        {"one": 10000},
        torch=False,
    ),
)

ANALYSIS = Analysis(
    "complexity",
    about="How much context each feature needs, by context span and, if one is set, by a grading "
    "language model, and whether complex features appear late.",
    section=Complexity,
    stages=[SPAN, GRADE, COMPLEXITY],
    figures=[
        Figure(
            "complexity",
            "ontogeny.analyses.complexity.figure:draw",
            HISTORIES,
            "Complexity",
            {
                "features": "features",
                "strengths": "strengths",
                "span": "span",
                "correlations": "complexity",
                "grades": Optional("grades"),
            },
        )
    ],
    products=[
        Product(
            "span",
            "features/{crosscoder}/span.parquet",
            "one row per run and feature that is active on held-out text",
        ),
        Product(
            "span_contexts",
            "features/{crosscoder}/span_contexts.parquet",
            "one row per context and run",
        ),
        Product(
            "grades",
            "features/{crosscoder}/grades.parquet",
            "one row per graded feature",
        ),
        Product(
            "complexity",
            "features/{crosscoder}/complexity.csv",
            "one row per correlation",
        ),
    ],
    numbers="ontogeny.analyses.complexity.numbers:numbers",
    in_replicates={"grader": None},
)
