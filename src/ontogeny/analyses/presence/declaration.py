"""What the analysis `presence` reads, makes, costs and draws."""

from ontogeny.analyses.presence.settings import Presence
from ontogeny.declarations import Analysis, Cost, Figure, Product, Stage
from ontogeny.stages import HISTORIES

# The scale: features × snapshots, whose rank correlations every bootstrap sample takes anew.
PRESENCE = Stage(
    "presence",
    run="ontogeny.analyses.presence.measure:measure",
    about="Test whether decoder norms mean presence: latent scaling and linear probes.",
    reads={name: name for name in ("crosscoder", "activations", "tokens", "features")},
    makes={"tests": "presence", "verdicts": "presence_verdicts"},
    settings=("presence", "analysis.seed", "analysis.bootstrap"),
    cost=Cost(),
)

ANALYSIS = Analysis(
    "presence",
    about="Whether a decoder norm of nothing means that the feature is absent: latent scaling and "
    "linear probes.",
    section=Presence,
    stages=[PRESENCE],
    figures=[
        Figure(
            "presence",
            "ontogeny.analyses.presence.figure:draw",
            HISTORIES,
            "Does the norm mean presence?",
            {"features": "features", "tests": "presence", "verdicts": "presence_verdicts"},
            scope="compared",
        )
    ],
    products=[
        Product(
            "presence",
            "features/{crosscoder}/presence.parquet",
            "one row per tested feature and snapshot",
            {
                "feature": "number, from 0",
                "snapshot_index": "counted from 1",
                "matched": "whether the feature is matched across seeds",
                "active": "held-out positions at which it is active",
                "peak": "whether its decoder norm is largest here",
                "normalised_strength": "decoder norm over its largest over snapshots",
                "beta": "scaling along the peak's decoder, which itself is 1",
                "scaling": "beta over that at the peak; NaN where the peak is unfounded",
                "free": "norm of the best direction over that at the peak; NaN alike",
                "scaling_permuted": "scaling with permuted activations; `free_permuted` alike",
                "current_token": "share of the activation that the token explains",
                "probe": "area under the ROC curve of a linear probe; NaN if not drawn",
                "control": "the same for the control task: other tokens of like frequency",
                "shuffled": "the same for permuted labels",
            },
        ),
        Product(
            "presence_verdicts",
            "features/{crosscoder}/presence.csv",
            "where norm and tests disagree, and their correlations",
            {
                "measure": "'contradicted', 'converse', 'spearman' and others",
                "test": "'scaling', 'free', 'probe' and others",
                "group": "'all', 'matched', 'token' or 'beyond_token'",
                "threshold": "from which the test says present",
                "value": "a share or a correlation",
                "low": "95% interval over features; `high` alike",
                "features": "that count",
                "pairs": "of a feature and a snapshot",
            },
        ),
    ],
    numbers="ontogeny.analyses.presence.numbers:numbers",
)
