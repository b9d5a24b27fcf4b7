"""What the analysis `tokens` reads, makes, costs and draws."""

from ontogeny.declarations import Analysis, Cost, Figure, Product, Source, Stage
from ontogeny.stages import HISTORIES

TOKENS = Stage(
    "token_means",
    run="ontogeny.analyses.tokens.measure:measure",
    about="Measure how the mean activations of tokens grow, turn and become distinct, by snapshot.",
    reads={"tables": lambda experiment: Source(*[experiment.tables(experiment.primary)] * 2)},
    makes={"token_means": "token_means"},
    scope="experiment",
    gpu=False,
    cost=Cost(
        {"compared tokens * compared tokens * width * snapshots": 1e-10},
        {"token table of a snapshot": 8, "compared tokens * compared tokens": 8},
        {"one": 5000, "snapshots": 200},
        torch=False,
    ),
)

ANALYSIS = Analysis(
    "tokens",
    about="What the current token alone explains, and when the tokens' means settle and become "
    "distinct.",
    stages=[TOKENS],
    figures=[
        Figure(
            "tokens",
            "ontogeny.analyses.tokens.figure:draw",
            HISTORIES,
            "Token means",
            {"token_means": "token_means"},
            settings=("primary",),
        )
    ],
    products=[
        Product(
            "token_means",
            "tokens/token_means.csv",
            "one row per layer, stream and snapshot",
        )
    ],
    numbers="ontogeny.analyses.tokens.numbers:numbers",
)
