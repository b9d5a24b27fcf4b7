"""What the analysis `dimensionality` reads, makes, costs and draws."""

from ontogeny.declarations import Analysis, Cost, Figure, Product, Stage
from ontogeny.stages import HISTORIES

DIMENSIONALITY = Stage(
    "dimensionality",
    run="ontogeny.analyses.dimensionality.measure:measure",
    about="Measure how many dimensions the features take up, by snapshot and class.",
    reads={"crosscoders": "crosscoders", "densities": "densities", "features": "features"},
    makes={"dimensionality": "dimensionality"},
    settings=("analysis.presence", "analysis.absence"),
    gpu=False,
    # Every decoder entry of all seeds is multiplied with as many others as the model's width.
    cost=Cost(
        {"features * sites * seeds * width * width": 6e-11},
        {"full decoders at a time": 2, "crosscoder": 1, "features * width": 40},
        {"one": 5000, "sites * seeds": 400},
    ),
)

ANALYSIS = Analysis(
    "dimensionality",
    about="How many of the model's dimensions the features take up, all together and each of them.",
    stages=[DIMENSIONALITY],
    figures=[
        Figure(
            "dimensionality",
            "ontogeny.analyses.dimensionality.figure:draw",
            HISTORIES,
            "Dimensionality",
            {"features": "features", "dimensionality": "dimensionality"},
        )
    ],
    products=[
        Product(
            "dimensionality",
            "features/{crosscoder}/dimensionality.csv",
            "one row per seed, group of living features and snapshot",
        )
    ],
    numbers="ontogeny.analyses.dimensionality.numbers:numbers",
)
