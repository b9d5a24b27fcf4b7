"""What the analysis `trust` reads, makes, costs and draws."""

from ontogeny.analyses.trust.settings import Trust
from ontogeny.declarations import Analysis, Cost, Figure, Product, Stage
from ontogeny.stages import HISTORIES

TRUST = Stage(
    "trust",
    run="ontogeny.analyses.trust.measure:measure",
    about="Measure how far births and deaths can be trusted: relays, silent births and deaths.",
    reads={name: name for name in ("crosscoder", "activations", "features")},
    makes={
        "trust": "trust",
        "events": "trust_events",
        "relays": "relays",
        "by_snapshot": "trust_snapshots",
        "verdicts": "trust_verdicts",
    },
    settings=("trust", "analysis.presence", "analysis.absence"),
    cost=Cost(
        {
            "encoding": 6e-11,
            "active features * width * snapshots": 3e-9,
            "held-out rows * width * width * snapshots": 1e-10,
        },
        {
            "crosscoder in use": 1,
            "pieces read ahead": 1,
            "active features": 60,
            "held-out rows * width": 40,
            "full decoders": 3,
            "features * snapshots": 100,
            "features * width": 40,
        },
        {"one": 40000, "features * snapshots": 60},
    ),
)

ANALYSIS = Analysis(
    "trust",
    about="How far births and deaths can be trusted: features that carry one concept in turn, and "
    "births and deaths that the activations do not show.",
    section=Trust,
    stages=[TRUST],
    figures=[
        Figure(
            "trust",
            "ontogeny.analyses.trust.figure:draw",
            HISTORIES,
            "How far births and deaths can be trusted",
            {
                "strengths": "strengths",
                "events": "trust_events",
                "relays": "relays",
                "by_snapshot": "trust_snapshots",
                "verdicts": "trust_verdicts",
            },
            scope="compared",
        )
    ],
    products=[
        Product("trust", "features/{crosscoder}/trust.parquet", "one row per living feature"),
        Product("trust_events", "features/{crosscoder}/events.csv", "every birth and death"),
        Product(
            "relays", "features/{crosscoder}/relays.csv", "features that take over from others"
        ),
        Product("trust_snapshots", "features/{crosscoder}/signs.csv", "one row per snapshot"),
        Product(
            "trust_verdicts",
            "features/{crosscoder}/trust.csv",
            "shares of relays and of silent births and deaths, by group",
        ),
    ],
    numbers="ontogeny.analyses.trust.numbers:numbers",
)
