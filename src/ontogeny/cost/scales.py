"""The quantities that declared costs (declarations.Cost) scale with, and how a cost becomes a job.

A scale is a name of SCALES, a dotted key of the settings, or a product of these, as in
"active features * kinds.permutations". If a key's value is a list, its length counts. A key that
ends in blocks, features or snapshots counts at most as many as exist.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import reduce
from typing import Any, cast

from ontogeny.activations.sizes import COMPARED_TOKENS
from ontogeny.cost import machines
from ontogeny.cost.sizes import Dictionary, Sizes
from ontogeny.cost.terms import Job, Work, base
from ontogeny.crosscoder.sizes import DECODERS_AT_A_TIME, PCA_ROWS, PIECE_ENTRIES, PIECE_ROWS
from ontogeny.declarations import Cost
from ontogeny.features.sizes import (
    ALL_PAIRS,
    BASELINE_FEATURES,
    BASELINE_TOKENS,
    MATCHED_AT_A_TIME,
    NEAREST,
)

MOST_POSITIONS = 1 << 16  # most positions of the held-out text that analyses look at
NGRAM_TOKENS = 50_000_000  # most tokens that n-gram models are estimated from
ENTRIES = 1 << 26  # entries of attention, or of half the logits, in memory at a time
PROMPT_TOKENS = 32  # assumed length of a task's prompts
HELD_OUT_ACTIVE = 1.5  # assumed bound: active features on held-out text over those in training


def _active(z: Sizes, d: Dictionary) -> float:
    """(position, feature) pairs of the first held-out positions that are active."""
    each = min(float(d.F), HELD_OUT_ACTIVE * d.active * d.gates)
    return min(z.held_out_rows, MOST_POSITIONS) * each


def _changed(z: Sizes, d: Dictionary) -> float:
    """Bytes of the features that differ between the two prompts of a pair, while they are found."""
    each = min(float(d.F), 2 * HELD_OUT_ACTIVE * d.active)
    return PROMPT_TOKENS * each * (120.0 + 12.0 * d.gates)


def _piece(d: Dictionary) -> float:
    """Bytes of the held-out rows encoded at a time."""
    return 4.0 * max(1, min(PIECE_ROWS, PIECE_ENTRIES // (d.F * d.gates))) * d.n_in


def _in_use(z: Sizes, d: Dictionary) -> float:
    """Bytes of a loaded crosscoder, with full decoders for its norms, and of what it encodes."""
    activations = _piece(d) / d.n_in * d.F * (2.0 + 3.0 * d.gates)
    decoders = d.full * (d.principal * min(1.0, DECODERS_AT_A_TIME / d.F) + (d.gates > 1))
    return d.tensors + decoders + 2 * _piece(d) + activations


def _attention(z: Sizes, d: Dictionary) -> float:
    """Bytes of all heads' attention in some whole blocks, and of what one layer needs."""
    heads, square = z.model.layers * z.model.heads, min(z.context, 1024) ** 2
    blocks = max(1, min(8, ENTRIES // (heads * square)))
    return blocks * square * (4.5 * heads + 52.0 * z.model.heads + 60)


def _distributions(z: Sizes, d: Dictionary) -> float:
    """Bytes of a forward pass's distributions; with a large vocabulary the pass is shorter."""
    tokens = min(z.batch, max(z.context, 2 * ENTRIES // z.model.vocabulary))
    return 4.0 * tokens * z.model.vocabulary


def _gradients(z: Sizes, d: Dictionary) -> float:
    """Bytes of the later blocks that a backward pass to the site keeps."""
    later = z.model.layers - min(z.settings.activations.layers)
    return z.forward_memory(16384 if z.gpu else 2048, 4) * later


SCALES: dict[str, Callable[[Sizes, Dictionary], float]] = {
    "one": lambda z, d: 1.0,
    # Numbers
    "snapshots": lambda z, d: z.snapshots,
    "sites": lambda z, d: d.outputs,
    "width": lambda z, d: d.width,
    "features": lambda z, d: d.F,
    "seeds": lambda z, d: len(d.crosscoder.seeds),
    "further seeds": lambda z, d: len(d.crosscoder.seeds) - 1,
    "heads": lambda z, d: z.model.layers * z.model.heads,
    "vocabulary": lambda z, d: z.model.vocabulary,
    "text": lambda z, d: z.text_blocks * z.context,
    "n-grams": lambda z, d: min(NGRAM_TOKENS, z.text_blocks * z.context),
    "held-out rows": lambda z, d: z.held_out_rows,
    "table rows": lambda z, d: z.table_rows,
    "compared tokens": lambda z, d: min(COMPARED_TOKENS, z.model.vocabulary),
    "streamed table rows": lambda z, d: z.table_rows * z.streamed,
    "baseline features": lambda z, d: min(BASELINE_FEATURES, d.F),
    "baseline tokens": lambda z, d: min(BASELINE_TOKENS, z.model.vocabulary),
    # Pairs of features of two seeds: all of them, or only the nearest
    "all pairs": lambda z, d: min(d.F, ALL_PAIRS) ** 2.0,
    "near pairs": lambda z, d: float(d.F * NEAREST * (d.F > ALL_PAIRS)),
    "pairs at a time": lambda z, d: float(d.F * MATCHED_AT_A_TIME * (d.F > ALL_PAIRS)),
    "pairs beyond": lambda z, d: float(d.F**2 * (d.F > ALL_PAIRS)),
    "active features": _active,
    # Operations of a token's forward pass; of encoding and of decoding the held-out rows
    "forward": lambda z, d: z.model.flops_per_token(z.context),
    "encoding": lambda z, d: 2.0 * z.held_out_rows * (d.I * d.F + d.n_in * (d.dimensions or 0)),
    "decoding": lambda z, d: 2.0 * z.held_out_rows * d.F * d.n_out,
    "similarities": lambda z, d: 2.0 * d.F**2 * d.O,
    # Bytes
    "model": lambda z, d: 4.0 * z.model.parameters,
    "a snapshot as it loads": lambda z, d: z.model.parameters * (z.file_bytes + 4.0 * z.gpu),
    "forward pass": lambda z, d: z.forward_memory(z.batch, 4),
    "logits": lambda z, d: 4.0 * z.batch * z.model.vocabulary,
    "distributions": _distributions,
    "gradients": _gradients,
    "attention": _attention,
    "keys and values": lambda z, d: 4.0 * z.batch * z.model.key_value_width * (z.last + 1),
    "token table": lambda z, d: z.table,
    "token table of a snapshot": lambda z, d: z.table / z.snapshots,
    "pair table of a snapshot": lambda z, d: 4.0 * min(z.held_out_rows, MOST_POSITIONS) * d.width,
    "changed features of a pair": _changed,
    "crosscoder": lambda z, d: d.tensors,
    "full decoders": lambda z, d: d.full,
    "full decoders at a time": lambda z, d: d.full * min(1.0, DECODERS_AT_A_TIME / d.F),
    "trained decoders": lambda z, d: 4.0 * d.F * d.O,
    "crosscoder in use": _in_use,
    "rows of a piece": lambda z, d: _piece(d),
    "pieces read ahead": lambda z, d: 4 * _piece(d) + d.tensors * z.gpu,
    "rows of PCA": lambda z, d: 12.0 * PCA_ROWS * d.n_out * (d.dimensions is None),
}
FORWARD = {"forward"}  # operations of the language model, in float32
PRODUCTS = {"encoding", "decoding", "similarities"}
ON_DEVICE = {
    "model", "forward pass", "logits", "distributions", "gradients", "attention",
    "keys and values", "crosscoder in use", "rows of a piece", "held-out rows * width",
    "features * width",
}  # fmt: skip


def number(scale: str, sizes: Sizes, dictionary: Dictionary) -> float:
    """The value of a scale for an experiment and a crosscoder."""
    return math.prod(_factor(name, sizes, dictionary) for name in scale.split(" * "))


def _factor(name: str, sizes: Sizes, dictionary: Dictionary) -> float:
    if name in SCALES:
        return SCALES[name](sizes, dictionary)
    settings, value = sizes.settings, reduce(getattr, name.split("."), cast(Any, sizes.settings))
    most = {
        "blocks": settings.corpus.held_out_blocks,
        "features": dictionary.F,
        "snapshots": sizes.snapshots,
    }
    count = float(len(value) if isinstance(value, list | dict) else value)
    return min(count, most.get(name.rpartition(".")[2].rpartition("_")[2], math.inf))


def amount(share: Mapping[str, float], sizes: Sizes, dictionary: Dictionary) -> float:
    """The sum of scales, each multiplied by its coefficient."""
    return sum(each * number(scale, sizes, dictionary) for scale, each in share.items())


def job(cost: Cost, sizes: Sizes, dictionary: Dictionary, gpu: bool) -> Job:
    """The job of a declared stage.

    Seconds are converted into work at the rates of the machine on which they were measured
    (devices.yaml), so that other machines need more or less time.

    Parameters
    ----------
    gpu : whether the stage uses the device of the configuration.
    """
    reference = machines.data()["measured"]
    work: dict[str, Any] = dict.fromkeys(("forward32", "products32", "host_moved"), 0.0)
    for scale, each in cost.seconds.items():
        first = scale.split(" * ")[0]
        kind = "forward32" if first in FORWARD else "host_moved"
        kind = "products32" if first in PRODUCTS else kind
        work[kind] += each * number(scale, sizes, dictionary) * reference[kind]
    terms = {name: each * number(name, sizes, dictionary) for name, each in cost.memory.items()}
    there = sizes.gpu and gpu
    host, device = base(there) if cost.torch else ({"Python": 0.3e9}, {})
    for name, size in terms.items():
        (device if there and name in ON_DEVICE else host)[name] = size
    return Job(replace(Work(starts=1.0 if cost.torch else 0.5), **work), host, device)
