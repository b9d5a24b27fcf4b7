"""One snapshot's dictionary for SAELens: cfg.json and sae_weights.safetensors (6.54.12).

A crosscoder of one site is an SAE: architecture `standard` (ReLU) or `jumprelu`, from raw
activations of the site to raw activations of the site.

A crosscoder of several sites is not an SAE for any of them, since its pre-activation is a sum over
all. A single snapshot's part of the sum opens other features than the whole, and is not exported.
SAELens's transcoder (`transcoder`, `jumprelu_transcoder`) is exact: it maps the raw activations of
all input sites, concatenated to N_in·D, to those of one snapshot. This is what `write` makes.
`alone` makes an SAE of the snapshot alone, whose pre-activations are the linear least-squares
estimate of the crosscoder's from that snapshot. It is a different function, and its config says how
far it is from the crosscoder's on held-out rows.

Scales, centres and principal subspaces are folded into the weights, and the thresholds of BatchTopK
at inference and of JumpReLU into `threshold`: h·r > t is h > t/r. Feature activations have our
units; decoder norms are not 1 (SAELens's `fold_W_dec_norm` makes them 1).

References
----------
SAELens: saes/standard_sae.py, saes/jumprelu_sae.py, saes/transcoder.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ontogeny import version
from ontogeny.activations.rows import Cached, HeldOut
from ontogeny.activations.sites import Site
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.exchange.plain import Plain, free, name_of, plain, write_folder
from ontogeny.files import InputError

WEIGHTS = "sae_weights.safetensors"
VERSION = "6.54.12"
FIT_ROWS, TEST_ROWS = 65_536, 16_384
PIECE = 4096
HOOKS = {  # TransformerLens's names for our streams
    "residual": "hook_resid_post",
    "attention_out": "hook_attn_out",
    "mlp_in": "ln2.hook_normalized",
    "mlp_out": "hook_mlp_out",
}


def write(
    trained: Crosscoder,
    output: Path,
    step: int | None = None,
    layer: int | None = None,
    stream: str | None = None,
    model: str = "",
    alone: Path | None = None,
) -> dict[str, Any]:
    """Write the dictionary of one output site.

    Parameters
    ----------
    step, layer, stream : the site; may be left out where there is only one choice.
    model : the language model's name, for the config.
    alone : folder of the experiment's activations, for an SAE of the site alone.

    Returns
    -------
    The config that was written.

    Raises
    ------
    InputError : no such site, or several; `output` exists; no activations.
    """
    about = trained.about
    free(output)
    site = _site(trained, step, layer, stream)
    place = about.outputs[site]
    function = plain(trained)
    E, b = (function.E * trained.scales_in[:, None, None]).flatten(0, 1), function.b  # (N_in·D, F)
    one = about.inputs == about.outputs and len(about.inputs) == 1
    quality: dict[str, Any] = {}
    if alone is not None and not one:
        E, b, quality = fitted(trained, site, function, alone)
        one = True
    scale = trained.divisors[site]
    tensors = {
        "W_enc": E,
        "b_enc": b,
        "W_dec": function.W_dec[:, site] / scale,
        "b_dec": function.b_dec[site] / scale,
    }
    if function.t is not None:
        tensors["threshold"] = threshold(function, site)
    kind = ("standard" if one else "transcoder", "jumprelu" if one else "jumprelu_transcoder")
    config = {
        "architecture": kind[function.t is not None],
        "d_in": len(E),
        "d_sae": about.features,
        **({} if one else {"d_out": about.width}),
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": VERSION,
            "sae_lens_training_version": None,
            "model_name": model,
            "hook_name": f"blocks.{place[1]}.{HOOKS.get(place[2], place[2])}",
            "snapshot": place[0],
            "inputs": [name_of(each) for each in ([place] if one else about.inputs)],
            "output": name_of(place),
            "ontogeny": version.VERSION,
            **quality,
        },
    }
    write_folder(output, WEIGHTS, tensors, "cfg.json", config)
    return config


def _site(trained: Crosscoder, step: int | None, layer: int | None, stream: str | None) -> int:
    places, wanted = trained.about.outputs, (step, layer, stream)
    sites = [
        site
        for site, place in enumerate(places)
        if all(given in (None, own) for given, own in zip(wanted, place, strict=True))
    ]
    if len(sites) == 1:
        return sites[0]
    steps = ", ".join(str(n) for n in sorted({place[0] for place in places}))
    others = ", ".join(sorted({f"{place[2]}.{place[1]}" for place in places}))
    raise InputError(
        f"{'several sites' if sites else 'no site'} of that --step, --layer and --stream: there "
        f"are steps {steps} of {others}"
    )


def threshold(function: Plain, site: int) -> torch.Tensor:
    """t/r of the gate of a site, (F,); infinite if no activation opens it."""
    assert function.t is not None
    r = function.r[:, site if function.r.shape[1] > 1 else 0].double()
    return torch.where(r > 0, function.t.double() / r.clamp(min=1e-300), torch.inf).float()


def fitted(
    trained: Crosscoder, site: int, function: Plain, activations: Path
) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Weights that estimate the pre-activations from one snapshot alone.

    They are fitted by least squares, [E; b] = argmin Σ ‖h − (a E + b)‖², to at most FIT_ROWS
    training rows.

    Returns
    -------
    E : (D, F), for raw activations. b : (F,). Entries for the config: rows, and explained variance
    and L0 at the site on held-out rows, of the estimate and of the crosscoder.
    """
    about, place = trained.about, Site(*trained.about.outputs[site])
    inputs = [Site(*each) for each in about.inputs]
    if place not in inputs:
        raise InputError(f"{name_of(about.outputs[site])}: not an input; --alone is not possible")
    own = inputs.index(place)
    train, held_out = Cached(activations, inputs), HeldOut(activations, inputs)
    if about.tokens and train.tokens != about.tokens:
        raise InputError(
            f"{activations}: made from other tokens than the crosscoder's; name the experiment "
            "that it was trained in"
        )
    rows = min(FIT_ROWS, train.rows)
    D = about.width
    gram, cross = torch.zeros(D + 1, D + 1).double(), torch.zeros(D + 1, about.features).double()
    for start in range(0, rows, PIECE):
        x = torch.from_numpy(train.read(start, min(start + PIECE, rows)))
        a = torch.cat([x[:, own].double(), torch.ones(len(x), 1).double()], 1)
        gram += a.T @ a
        cross += a.T @ trained.pre_activations(x).double()
    # Regularise, since a dimension, or the whole site, may be zero.
    gram.diagonal()[:D] += (1e-6 * gram.diagonal()[:D].mean()).clamp_min(1e-30)
    solved = torch.linalg.solve(gram, cross).float()
    E, b = solved[:D], solved[D]
    t = threshold(function, site) if function.t is not None else torch.zeros(about.features)
    test = min(TEST_ROWS, held_out.rows)
    x = torch.from_numpy(held_out.read(0, test))
    target = x[:, own]
    h = target @ E + b
    theirs = trained.encode(x)

    def quality(f: torch.Tensor) -> dict[str, float]:
        left = target - (f @ function.W_dec[:, site] + function.b_dec[site])
        there = (target - target.mean(0)).square().sum()
        explained = 1 - float(left.square().sum() / there)
        return {"explained_variance": explained, "l0": float((f > 0).sum(1).float().mean())}

    told = {
        "fitted_rows": rows,
        "held_out_rows": test,
        "alone": quality(h * ((h > t) & (h > 0))),
        "crosscoder": quality(theirs[:, :, site] if theirs.ndim == 3 else theirs),
    }
    return E * float(trained.scales_in[own]), b, told
