"""llamascopium's Crosscoder folder: config.json and sae_weights.safetensors (its release 2.0.0b34).

    W_E (N, D, F)   b_E (N, F), summed over heads   W_D (N, F, D)   b_D (N, D)
    activation_function.log_jumprelu_threshold (F,), for act_fn jumprelu
    dataset_average_activation_norm.HOOK () per head, with norm_activation dataset-wise

Its function, for a head θ and activations scaled by √d_model / dataset_average_activation_norm:

    h = Σ_θ (ã^θ W_E^θ + b_E^θ)    f^θ = φ(h·r^θ) / r^θ,  r^θ = ‖W_D^θ‖    â^θ = f^θ W_D^θ + b_D^θ

That norm is written as √d_model over the site's scale, whichever norm the scale was computed from.
φ(z) = z·1[z > t] for jumprelu, where t belongs to a feature and is the same for all heads. This is
our gate per feature and snapshot, and no other. BatchTopK's threshold at inference becomes the t of
every feature.

With one gate per feature, the gate depends on the norm over all snapshots, which none of their
thresholds on the heads' own norms can express. `padded` expresses it nevertheless: each decoder
gets one more dimension, which brings its norm to the feature's largest, so that the gates of all
heads are the same. Their `prepare_input` pads activations to d_model with zeros; the last dimension
of a reconstruction has no meaning. `heads` leaves the decoders unchanged and gates each head by its
own norm, which is a different function, but close if a feature's norms are similar.

References
----------
OpenMOSS, Language-Model-SAEs (llamascopium): models/crosscoder.py, models/sparse_dictionary.py,
activation_functions.py.
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ontogeny.crosscoder.model import Crosscoder, Description
from ontogeny.exchange.plain import (
    LEAST_THRESHOLD,
    Place,
    about_of,
    free,
    name_of,
    place_of,
    plain,
    read_config,
    read_tensors,
    write_folder,
)
from ontogeny.files import InputError
from ontogeny.version import VERSION

WEIGHTS = "sae_weights.safetensors"
LOG_THRESHOLD = "activation_function.log_jumprelu_threshold"
NORM = "dataset_average_activation_norm."
GATES = ("padded", "heads")
LEAST_NORM = 1e-12  # of a decoder: the library divides by the norm, and zero rows would give NaN
KNOWN = {"relu": "relu", "jumprelu": "jumprelu", "batchtopk": "batch_topk"}
KEYS = ["sae_type", "d_model", "expansion_factor", "act_fn", "norm_activation", "hook_points"]


def write(trained: Crosscoder, output: Path, gate: str = "padded") -> None:
    """Write a crosscoder as llamascopium's folder.

    Parameters
    ----------
    gate : one of GATES, for a crosscoder with one gate per feature; otherwise ignored.

    Raises
    ------
    InputError : its input sites are not its output sites, or `output` exists.
    """
    about = trained.about
    free(output)
    if about.inputs != about.outputs:
        raise InputError(
            "llamascopium's crosscoders read and write the same sites; this one does not, and "
            "can only be exported as a hub folder, or one site at a time to SAELens"
        )
    function = plain(trained)
    E, W = function.E, function.W_dec.transpose(0, 1).clone()  # (N, D, F), (N, F, D)
    t, b_dec = function.t, function.b_dec
    padded = about.gate == "feature" and gate == "padded" and len(E) > 1
    if padded and t is not None:
        norm = W.double().norm(dim=2)  # (N, F)
        largest = norm.amax(0).clamp(min=LEAST_NORM)
        beside = (largest.square() - norm.square()).clamp(min=0).sqrt().float()
        W = torch.cat([W, beside[:, :, None]], 2)
        E = torch.cat([E, torch.zeros(len(E), 1, about.features)], 1)
        b_dec = torch.cat([b_dec, torch.zeros(len(b_dec), 1)], 1)
        t = (t.double() * largest / function.r[:, 0].double().clamp(min=LEAST_NORM)).float()
    none = W.norm(dim=2) < LEAST_NORM
    W[none] = 0.0
    W[..., 0][none] = LEAST_NORM
    N, D = b_dec.shape
    b = torch.zeros(N, about.features)
    b[0] = function.b
    tensors = {"W_E": E, "b_E": b, "W_D": W, "b_D": b_dec}
    if t is not None:
        tensors[LOG_THRESHOLD] = t.clamp(min=LEAST_THRESHOLD).log()
    names = [name_of(place) for place in about.outputs]
    for name, scale in zip(names, trained.scales_in.tolist(), strict=True):
        # The scale of a constant site is 0.
        tensors[NORM + name] = torch.tensor(math.sqrt(D) / scale if scale else math.inf)
    config = {
        "sae_type": "crosscoder",
        "d_model": D,
        "expansion_factor": expansion(about.features, D),
        "use_decoder_bias": True,
        "act_fn": "relu" if t is None else "jumprelu",
        "norm_activation": "dataset-wise",
        "sparsity_include_decoder_norm": True,
        "top_k": 50,
        "use_triton_kernel": False,
        "sparsity_threshold_for_triton_spmm_kernel": 0.996,
        "jumprelu_threshold_window": 2.0,
        "hook_points": names,
        "ontogeny": asdict(about) | {"dead": trained.dead.nonzero()[:, 0].tolist()},
    }
    write_folder(output, WEIGHTS, tensors, "config.json", config, {"version": "2.0.0b34"})


def expansion(features: int, width: int) -> float:
    """A factor for which int(width · factor), as the library computes F, is F."""
    factor = features / width
    return factor if int(width * factor) == features else math.nextafter(factor, math.inf)


def read(
    folder: Path,
    steps: list[int] | None = None,
    layer: int | None = None,
    stream: str | None = None,
    threshold: float | None = None,
) -> Crosscoder:
    """A crosscoder from llamascopium's folder.

    Parameters
    ----------
    steps, layer, stream : of the heads, in order, if the hook points' names do not give them.
    threshold : at inference, for batchtopk; the library instead takes the largest of each batch.

    Raises
    ------
    InputError : not such a folder, something that cannot be represented here, or a missing option.
    """
    path = folder / "config.json"
    config = read_config(path, KEYS)
    _check(config, path)
    names = [str(name) for name in config["hook_points"]]
    act, D = str(config["act_fn"]), int(config["d_model"])
    F, N = int(D * float(config["expansion_factor"])), len(names)
    if act == "batchtopk" and threshold is None:
        raise InputError(
            f"{path}: act_fn batchtopk has no threshold for single tokens; give --threshold, the "
            "least h·‖W_D‖ that it keeps, averaged over batches"
        )
    if threshold is not None and act != "batchtopk":
        raise InputError(f"--threshold: act_fn {act} has its own; leave it out")
    exported: Any = config.get("ontogeny")
    ours = isinstance(exported, dict)
    places = [] if ours else _places(names, steps, layer, stream)
    shapes: dict[str, tuple[int, ...]]
    shapes = {"W_E": (N, D, F), "b_E": (N, F), "W_D": (N, F, D), "b_D": (N, D)}
    if act == "jumprelu":
        shapes[LOG_THRESHOLD] = (F,)
    dataset_wise = config["norm_activation"] == "dataset-wise"
    if dataset_wise:
        shapes |= {NORM + name: () for name in names}
    tensors = read_tensors(_weights(folder), shapes)
    scales = torch.ones(N)
    if dataset_wise:
        norms = torch.stack([tensors[NORM + name] for name in names])
        if not (norms > 0).all():
            raise InputError(f"{folder}: a {NORM}* is not positive; export it after training")
        scales = (math.sqrt(D) / norms.double()).float()
    E, W = tensors["W_E"], tensors["W_D"].transpose(0, 1)  # (N, D, F), (F, N, D)
    b_dec, log_t = tensors["b_D"], tensors.get(LOG_THRESHOLD, torch.zeros(F))
    padded = act == "jumprelu" and is_padded(E, W, b_dec)
    if padded:
        log_t, E, W, b_dec = _without_padding(log_t, E, W, b_dec)
        D -= 1
    silent = torch.zeros(F, dtype=torch.long)
    if ours:
        dead = exported.pop("dead", [])
        about = about_of(exported, path)
        sizes = (about.features, len(about.outputs), about.width)
        if sizes != (F, N, D) or not set(dead) <= set(range(F)):
            raise InputError(
                f"{path}: the entry 'ontogeny' belongs to another crosscoder; remove it"
            )
        about = _as_it_is(about, KNOWN[act], padded, log_t)
        silent[dead] = int(about.settings["dead_after_rows"])
    else:
        about = Description(
            activation=KNOWN[act],
            gate="feature" if padded or act == "relu" else "snapshot",
            features=F,
            width=D,
            inputs=places,
            outputs=places,
            basis="full",
            threshold=threshold or 0.0,
            seed=0,
            settings={"dead_after_rows": 1},  # no silent rows, so none is known to be dead
            tokens="",  # not known
            ontogeny=VERSION,
            torch=torch.__version__.split("+")[0],
        )
    made = {
        "W_enc": E.permute(2, 0, 1).flatten(1),
        "b_enc": tensors["b_E"].double().sum(0).float(),
        "W_dec": W.flatten(1),
        "b_dec": b_dec.flatten(),
        "log_threshold": log_t,
        "silent_rows": silent,
        "scales_in": scales,
        "scales_out": scales.clone(),
        "mean_in": torch.zeros(N * about.width),
        "mean_out": torch.zeros(N * about.width),
    }
    return Crosscoder(about, {name: tensor.contiguous() for name, tensor in made.items()})


def _as_it_is(
    about: Description, activation: str, padded: bool, log_t: torch.Tensor
) -> Description:
    """The description from an export, changed if the weights contradict it.

    An export of BatchTopK has a threshold for every feature; if they are still equal, the result
    is BatchTopK again.
    """
    threshold = 0.0
    if activation == "jumprelu" and about.activation == "batch_topk":
        t = log_t.double().exp()
        if torch.allclose(t, torch.full_like(t, max(about.threshold, LEAST_THRESHOLD)), rtol=1e-4):
            activation, threshold = "batch_topk", about.threshold
    gate = "feature" if padded or activation == "relu" else "snapshot"
    if len(about.outputs) == 1:  # with one site, its norm is also the feature's
        gate = about.gate
    return replace(about, activation=activation, gate=gate, basis="full", threshold=threshold)


def _check(config: dict[str, Any], path: Path) -> None:
    """Raise InputError for what is not such a config, or is not supported here."""
    names, norm, act = config["hook_points"], config["norm_activation"], config["act_fn"]
    faults = [
        f"{key} is {config[key]!r}, not a positive number"
        for key in ("d_model", "expansion_factor")
        if not isinstance(config[key], int | float) or config[key] <= 0
    ]
    if config["sae_type"] != "crosscoder":
        faults.insert(0, f"sae_type is {config['sae_type']!r}, not crosscoder")
    if not isinstance(names, list) or not names or len(set(map(str, names))) < len(names):
        faults.append("hook_points must be a list of different names")
    if act not in KNOWN:
        faults.append(f"act_fn {act!r} is not supported; supported are {', '.join(KNOWN)}")
    if norm not in ("dataset-wise", "inference"):
        faults.append(
            f"norm_activation {norm!r} scales each token or batch separately; only dataset-wise "
            "and inference are supported"
        )
    if not config.get("sparsity_include_decoder_norm", True):
        faults.append("sparsity_include_decoder_norm must be true for a crosscoder")
    if faults:
        raise InputError(f"{path}: {faults[0]}")


def _weights(folder: Path) -> Path:
    """The weights where the library looks for them, only safetensors: nothing is unpickled."""
    names = [WEIGHTS, "checkpoints/pruned.safetensors", "checkpoints/final.safetensors"]
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise InputError(f"{folder}: has none of {', '.join(names)}; save it as safetensors")


def _places(
    names: list[str], steps: list[int] | None, layer: int | None, stream: str | None
) -> list[Place]:
    if steps is not None and layer is not None and stream is not None:
        if len(steps) != len(names):
            raise InputError(f"--steps: {len(steps)} for {len(names)} hook points; give one each")
        return [(step, layer, stream) for step in steps]
    places = [place for name in names if (place := place_of(name)) is not None]
    if len(places) < len(names):
        raise InputError(
            f"hook points {names[0]!r}, ... do not say which sites they are; give --steps (one "
            f"per head, {len(names)} in order), --layer and --stream"
        )
    return places


def is_padded(E: torch.Tensor, W: torch.Tensor, b_dec: torch.Tensor) -> bool:
    """Whether the last dimension comes from `write`: no head reads it, and norms are equal."""
    norm = W.double().norm(dim=2)  # (F, N)
    alike = torch.allclose(norm, norm[:, :1].expand_as(norm), rtol=1e-5)
    return len(E) > 1 and alike and not E[:, -1].any() and not b_dec[:, -1].any()


def _without_padding(
    log_t: torch.Tensor, E: torch.Tensor, W: torch.Tensor, b_dec: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Undo the padding of `write`: log thresholds for the feature's own norm, E, W, b_dec."""
    largest = W.double().norm(dim=2).amax(1)  # the same for every head
    W, E, b_dec = W[:, :, :-1], E[:, :-1], b_dec[:, :-1]
    rms = W.double().square().sum((1, 2)).div(W.shape[1]).sqrt()
    t = log_t.double().exp() * rms.clamp(min=LEAST_NORM) / largest
    return t.clamp(min=LEAST_THRESHOLD).log().float(), E, W, b_dec
