"""One snapshot's dictionary as SAELens reads it: cfg.json and sae_weights.safetensors (6.54.12).

A crosscoder of one site is an SAE: architecture `standard` (ReLU) or `jumprelu`, from raw
activations of the site to raw activations of the site.

A crosscoder of more sites is none for any one of them: its pre-activation is a sum over all. What a
single snapshot gives of that sum, alone, opens other features than the crosscoder's and is not
exported. Exact is SAELens's transcoder (`transcoder`, `jumprelu_transcoder`), from the raw
activations of all input sites, one after another in a row of N_in·D, to those of the one snapshot;
this is what `write` makes. `alone` makes an SAE of the snapshot by itself, whose pre-activations
are the linear least-squares estimate of the crosscoder's from that snapshot: another function, and
its config says how far it is from the crosscoder's on held-out rows.

Scales, centres and principal subspaces are in the weights, BatchTopK's threshold at inference and
JumpReLU's in `threshold`: h·r > t is h > t/r. Feature activations are ours, unit for unit; decoder
norms are not 1 (SAELens's `fold_W_dec_norm` makes them so).

References
----------
SAELens: saes/standard_sae.py, saes/jumprelu_sae.py, saes/transcoder.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ontogeny import __version__
from ontogeny.activations.rows import Cached, HeldOut
from ontogeny.activations.sites import Site
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.exchange.plain import Plain, free, name_of, plain, write_folder
from ontogeny.files import InputError

WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"
VERSION = "6.54.12"
FIT_ROWS, TEST_ROWS = 65_536, 16_384
PIECE = 4096
HOOKS = {  # TransformerLens's names of our streams
    "residual": "hook_resid_post",
    "attention_out": "hook_attn_out",
    "mlp_in": "ln2.hook_normalized",
    "mlp_out": "hook_mlp_out",
}


def write(
    trained: Crosscoder,
    output: str | Path,
    step: int | None = None,
    layer: int | None = None,
    stream: str | None = None,
    model: str = "",
    alone: Path | None = None,
) -> dict[str, Any]:
    """Write the dictionary of one output site.

    Parameters
    ----------
    step, layer, stream : the site; what only one site has may be left out.
    model : the language model's name, for the config.
    alone : folder of the experiment's activations, for an SAE of the site by itself.

    Returns
    -------
    The config that was written.

    Raises
    ------
    InputError : no such site, or several; something stands at `output`; no activations.
    """
    output, about = Path(output), trained.about
    free(output)
    site = _site(trained, step, layer, stream)
    place = about.outputs[site]
    p = plain(trained)
    D, N = about.width, len(about.inputs)
    one = about.inputs == about.outputs and N == 1
    told: dict[str, Any] = {}
    if alone is None or one:
        s = trained.scales_in[:, None, None]
        E, b = (p.E * s).flatten(0, 1), p.b  # (N_in·D, F)
    else:
        E, b, told = fitted(trained, site, p, Path(alone))
        one = True
    scale = trained.scales_out[site]
    tensors = {"W_enc": E, "b_enc": b, "W_dec": p.W_dec[:, site] / scale}
    tensors["b_dec"] = p.b_dec[site] / scale
    if p.t is not None:
        tensors["threshold"] = threshold(p, site)
    kind = ("standard" if one else "transcoder", "jumprelu" if one else "jumprelu_transcoder")
    config = {
        "architecture": kind[p.t is not None],
        "d_in": len(E),
        "d_sae": about.features,
        **({} if one else {"d_out": D}),
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
            "inputs": [name_of(place)] if one else [name_of(given) for given in about.inputs],
            "output": name_of(place),
            "ontogeny": __version__,
            **told,
        },
    }
    texts = {CONFIG: json.dumps(config, indent=2) + "\n"}
    write_folder(output, (WEIGHTS, tensors), texts)
    return config


def _site(trained: Crosscoder, step: int | None, layer: int | None, stream: str | None) -> int:
    places = trained.about.outputs
    found = [
        i
        for i, place in enumerate(places)
        if all(
            given in (None, own) for given, own in zip((step, layer, stream), place, strict=True)
        )
    ]
    if len(found) == 1:
        return found[0]
    steps = ", ".join(str(n) for n in sorted({place[0] for place in places}))
    others = ", ".join(sorted({f"{place[2]}.{place[1]}" for place in places}))
    raise InputError(
        f"{'several sites' if found else 'no site'} of that --step, --layer and --stream: there "
        f"are steps {steps} of {others}"
    )


def threshold(p: Plain, site: int) -> torch.Tensor:
    """t/r of the gate that a site has, (F,); infinite where no activation opens it."""
    assert p.t is not None
    r = p.r[:, site if p.r.shape[1] > 1 else 0].double()
    return torch.where(r > 0, p.t.double() / r.clamp(min=1e-300), torch.inf).float()


def fitted(
    trained: Crosscoder, site: int, p: Plain, activations: Path
) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Weights that give the pre-activations that one snapshot alone lets one expect.

    Least squares over training rows, [E; b] = argmin Σ ‖h − (a E + b)‖², of at most FIT_ROWS rows.

    Returns
    -------
    E : (D, F), for raw activations. b : (F,). What the config says of it: rows, and explained
    variance and L0 at the site on held-out rows, of this and of the crosscoder.
    """
    about = trained.about
    inputs = [tuple(place) for place in about.inputs]
    if tuple(about.outputs[site]) not in inputs:
        raise InputError(f"{name_of(about.outputs[site])}: not an input; --alone cannot be had")
    own = inputs.index(tuple(about.outputs[site]))
    sites = [Site(*place) for place in about.inputs]
    train, held_out = Cached(activations, sites), HeldOut(activations, sites)
    if about.tokens and train.tokens != about.tokens:
        raise InputError(f"{activations}: of other tokens than the crosscoder was trained on")
    rows = min(FIT_ROWS, train.rows)
    D = about.width
    gram, cross = torch.zeros(D + 1, D + 1).double(), torch.zeros(D + 1, about.features).double()
    for start in range(0, rows, PIECE):
        x = torch.from_numpy(train.read(start, min(start + PIECE, rows)))
        h = trained.pre_activations(x).double()
        a = torch.cat([x[:, own].double(), torch.ones(len(x), 1).double()], 1)
        gram += a.T @ a
        cross += a.T @ h
    gram.diagonal()[:D] += 1e-6 * gram.diagonal()[:D].mean()  # where a dimension is silent
    found = torch.linalg.solve(gram, cross)
    E, b = found[:D].float(), found[D].float()
    t = threshold(p, site) if p.t is not None else torch.zeros(about.features)
    test = min(TEST_ROWS, held_out.rows)
    x = torch.from_numpy(held_out.read(0, test))
    target = x[:, own]
    h = target @ E + b
    f = h * ((h > t) & (h > 0))
    theirs = trained.encode(x)
    if theirs.ndim == 3:
        theirs = theirs[:, :, site]
    there = (target - target.mean(0)).square().sum()

    def told(active: torch.Tensor) -> dict[str, float]:
        again = active @ p.W_dec[:, site] + p.b_dec[site]
        explained = 1 - float((target - again).square().sum() / there)
        return {"explained_variance": explained, "l0": float((active > 0).sum(1).float().mean())}

    said = {
        "fitted_rows": rows,
        "held_out_rows": test,
        "alone": told(f),
        "crosscoder": told(theirs),
    }
    return E * float(trained.scales_in[own]), b, said
