"""Adapting an imported crosscoder to the activations of an experiment, which have other constants.

Analyses read activations times the constants of their files. Let s and s' be the constants with
which a crosscoder was made and those of the files, and c = s/s' at a site. Then the same function
of raw activations is

    E'^θ = c^θ E^θ    b' = b    W'^θ = W^θ / c^θ    b'_dec^θ = b_dec^θ / c^θ

with decoder norms r^θ / c^θ. One gate per feature is preserved by t' = t·r'/r. One gate per feature
and snapshot would need a threshold for each snapshot: with t' = t over the geometric mean of c,
gates move by c^θ over that mean.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ontogeny.activations.sites import Site
from ontogeny.activations.store import Stacks
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.exchange.plain import LEAST_THRESHOLD
from ontogeny.files import InputError

MOST = 0.02  # most by which a gate may move


def for_activations(trained: Crosscoder, activations: str | Path) -> tuple[Crosscoder, float]:
    """The crosscoder for an experiment's activations, and the largest share by which gates moved.

    Raises
    ------
    InputError : the activations have other sites or another width, or gates would move too far.
    """
    stacks = Stacks(activations, [Site(*place) for place in trained.about.inputs])
    if stacks.width != trained.about.width:
        raise InputError(
            f"{activations}: width {stacks.width}, but the crosscoder has width "
            f"{trained.about.width}; name the activations of another experiment"
        )
    found, moved = rescaled(trained, torch.from_numpy(stacks.scales), stacks.tokens)
    if moved > MOST:
        raise InputError(
            f"{activations}: the scale differs from the crosscoder's by up to {moved:.0%} between "
            f"sites, which would move its gates as much (at most {MOST:.0%} is allowed); set "
            "activations.scale of that experiment to the scale that the crosscoder was trained "
            "with (mean_norm in llamascopium), or leave out --activations"
        )
    return found, moved


def rescaled(trained: Crosscoder, scales: torch.Tensor, tokens: str) -> tuple[Crosscoder, float]:
    """The same for other constants of its sites, (N,); neither may have a subspace or a centre.

    Returns
    -------
    The crosscoder, and the largest |c/c̄ − 1| for one gate per feature and snapshot, else 0.
    """
    about, W = trained.about, trained.weights
    both = (trained.scales_in > 0) & (scales > 0)  # nothing changes at a constant site
    c = torch.where(both, trained.scales_in.double() / scales.double(), 1.0)
    shape = (len(about.outputs), about.width)
    W_enc = W.W_enc.double().unflatten(1, shape) * c[:, None]
    W_dec = W.W_dec.double().unflatten(1, shape) / c[:, None]
    log_t, threshold, moved = W.log_threshold.double(), about.threshold, 0.0
    if about.activation != "relu" and about.gate == "snapshot":
        mean = c.log().mean().exp()
        log_t, threshold = log_t - mean.log(), threshold / float(mean)
        moved = float((c / mean - 1).abs().max())
    elif about.activation != "relu":
        r = W.W_dec.double().norm(dim=1).clamp(min=1e-30)
        shift = (W_dec.flatten(1).norm(dim=1).clamp(min=1e-30) / r).log()
        if about.activation == "batch_topk":  # one common threshold becomes one per feature
            log_t = torch.full_like(log_t, max(threshold, LEAST_THRESHOLD)).log()
            about, threshold = replace(about, activation="jumprelu"), 0.0
        log_t = log_t + shift
    tensors = trained._tensors | {
        "W_enc": W_enc.flatten(1).float(),
        "W_dec": W_dec.flatten(1).float(),
        "b_dec": (W.b_dec.double().unflatten(0, shape) / c[:, None]).flatten().float(),
        "log_threshold": log_t.float(),
        "scales_in": scales.float().clone(),
        "scales_out": scales.float().clone(),
    }
    return Crosscoder(replace(about, tokens=tokens, threshold=threshold), tensors), moved
