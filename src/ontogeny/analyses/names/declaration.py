"""What the analysis `names` reads, makes, costs and draws."""

from ontogeny.analyses.names.settings import Names
from ontogeny.declarations import Analysis, Cost, Figure, Optional, Product, Stage
from ontogeny.stages import HISTORIES

NAMES = Stage(
    "names",
    run="ontogeny.analyses.names.measure:measure",
    about="Name features after what their contexts share.",
    reads={"contexts": "contexts", "tokens": "tokens", "kinds": Optional("kinds")},
    makes={"named": "names"},
    settings=("names",),
    gpu=False,
    local=True,
    cost=Cost(
        {"one": 2, "features": 3e-3},
        {"one": 0.2e9, "features": 2000},
        {"one": 10000, "features": 60},
        torch=False,
    ),
)

ANALYSIS = Analysis(
    "names",
    about="A name for each feature whose contexts share something rare, and the range chart: the "
    "lives of selected features beside the model's loss.",
    section=Names,
    stages=[NAMES],
    figures=[
        Figure(
            "ranges",
            "ontogeny.analyses.names.figure:draw",
            HISTORIES,
            "Range chart",
            {
                "features": "features",
                "strengths": "strengths",
                "named": "names",
                "kinds": Optional("kinds"),
                "phases": "phases",
                "levels": "levels",
                "turning_point": "turning_point",
                "log": Optional("log"),
            },
            settings=("names",),
        )
    ],
    products=[
        Product("names", "features/{crosscoder}/names.parquet", "one row per feature with contexts")
    ],
    numbers="ontogeny.analyses.names.numbers:numbers",
)
