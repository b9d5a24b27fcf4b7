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
    # The scale: tokens of all suffixes, each run by every snapshot.
    cost=Cost(),
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
    # Not declared as made: a grading that was cut short goes on from the answers that it has.
    scratch={"answers": "features/{crosscoder}/grader"},
    files=("grader_prompt.md",),
    # The scale: features that are graded, a parallel request's share each; an answer takes 20 s.
    cost=Cost(),
)

COMPLEXITY = Stage(
    "complexity",
    run="ontogeny.analyses.complexity.correlations:measure",
    about="Correlate the features' complexity with their peaks and onsets.",
    reads={"features": "features", "span": "span", "grades": Optional("grades")},
    makes={"correlations": "complexity"},
    settings=("analysis.bootstrap", "analysis.seed"),
    gpu=False,
    # The scale: features × (permutations + 2 × bootstrap samples).
    cost=Cost(),
)

ANALYSIS = Analysis(
    "complexity",
    about="How much context each feature needs, by context span and by a language model that "
    "grades it where one is set, and whether complex features appear late.",
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
            "one row per feature that is active on held-out text, and run",
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
