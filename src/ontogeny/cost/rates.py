"""Costs of the stages with hand-written rules and of figures, in the form of declared costs.

The numbers were measured on the default experiment; `python -m benchmarks.rates` checks them.
"""

from __future__ import annotations

from ontogeny.declarations import Cost

COSTS = {
    "fetch": Cost({"one": 1.0}, disk={"one": 0.1e9}, torch=False),
    "tokenizer": Cost({"one": 10.0}, {"one": 0.2e9}, {"one": 3e6, "vocabulary": 80}, torch=False),
    "corpus": Cost({"text": 5e-7}, {"one": 0.5e9}, {"vocabulary": 80}, torch=False),
    "stack": Cost({"one": 1.0}, torch=False),
    "token_table": Cost(
        {
            "table rows * width * snapshots": 1e-8,
            "forward * streamed table rows * snapshots": 1e-11,
        },
        {"token table of a snapshot": 8, "pair table of a snapshot": 8, "one": 0.07e9},
        {"token table": 1, "vocabulary": 12, "one": 20000},
    ),
    "fidelity": Cost(
        {
            "forward * sites * corpus.context * analysis.spliced_blocks": 7.3e-11,
            "encoding": 1e-11,
            "decoding": 1e-11,
        },
        {
            "model": 1,
            "a snapshot as it loads": 1,
            "forward pass": 1,
            "logits": 3,
            "crosscoder in use": 1,
            "rows of a piece": 4,
            "pieces read ahead": 2,
            "rows of PCA": 0.5,
        },
        {"one": 5000, "features": 16, "sites": 260},
    ),
    "figures": Cost({"one": 30.0}, disk={"one": 8e6}),
    "atlas": Cost(
        {"features": 2e-3},
        {
            "full decoders at a time": 2,
            "trained decoders": 1,
            "crosscoder": 2,
            "features": 2000,
            "one": 0.2e9,
        },
        {"one": 1e6, "features": 8e3},
    ),
    "numbers": Cost({"one": 1.0}, disk={"one": 10_000}, torch=False),
    "summary": Cost({"one": 1.0}, disk={"one": 10_000}, torch=False),
}
