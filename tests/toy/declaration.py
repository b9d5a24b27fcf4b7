"""What the toy analysis reads, makes, costs and draws."""

from toy_package.settings import Toy

from ontogeny.declarations import Analysis, Cost, Figure, Product, Stage

ANALYSIS = Analysis(
    "toy",
    about="How many features peak in each part of the training.",
    section=Toy,
    stages=[
        Stage(
            "toy",
            run="toy_package.measure:measure",
            about="Count the features by the bin of their peak.",
            reads={"features": "features"},
            makes={"bins": "toy_bins"},
            settings=("toy",),
            gpu=False,
            cost=Cost({"one": 7200.0}, {"one": 0.5e9}),
        )
    ],
    figures=[
        Figure("toy", "toy_package.measure:draw", "Toys", "Peaks in bins", {"bins": "toy_bins"})
    ],
    products=[Product("toy_bins", "features/{crosscoder}/toy.csv", "counts")],
    numbers="toy_package.numbers:numbers",
)
