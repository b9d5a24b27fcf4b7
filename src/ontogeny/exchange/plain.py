"""A crosscoder as other libraries define one: no subspace, no centre, one threshold per feature.

With the letters of crosscoder/model.py, for normalised activations ã = s·a of raw ones a:

    h = Σ_θ ã^θ E^θ + b       E^θ = U_θ W_encᵀ,  b = b_enc − μ U W_encᵀ
    f = h · 1[h·r > t]        r the gate's decoder norm, t its threshold (BatchTopK: one for all)
    â = Σ_i f_i W_dec,i + b_dec

The sums are computed in float64 and rounded once.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ontogeny import registry
from ontogeny.crosscoder.model import Crosscoder, Description
from ontogeny.files import InputError, whole, write_json

LEAST_THRESHOLD = 1.2e-38  # smallest normal float32: a gate at 0 with a finite logarithm
Place = tuple[int, int, str]  # snapshot, layer, stream


@dataclass(frozen=True)
class Plain:
    """A crosscoder's function in all dimensions.

    Attributes
    ----------
    E : (N_in, D, F). b : (F,). W_dec : (F, N, D). b_dec : (N, D). All are for normalised
        activations.
    r : (F, N) decoder norms that the gate sees, (F, 1) for one gate per feature.
    t : (F,) thresholds of h·r; None for ReLU, whose gate is h > 0.
    """

    E: torch.Tensor
    b: torch.Tensor
    W_dec: torch.Tensor
    b_dec: torch.Tensor
    r: torch.Tensor
    t: torch.Tensor | None


def plain(trained: Crosscoder) -> Plain:
    """The function of a crosscoder, with its subspace and centre folded into its weights.

    Raises
    ------
    InputError : it has a token table, which weights cannot represent.
    """
    if trained.about.token_table:
        raise InputError(
            "this crosscoder has a token table, for which the format has no place; export it as a "
            "hub folder"
        )
    about, W = trained.about, trained.weights
    shape = (len(about.inputs), about.width)
    W_enc, mean = W.W_enc.double(), trained._mean.double()
    if trained._basis is None:
        E = W_enc.T.unflatten(0, shape).float()
        b = W.b_enc.double() - W_enc @ mean
    else:
        U = trained._basis.double()
        E = torch.stack([(U_site @ W_enc.T).float() for U_site in U.unflatten(0, shape)])
        b = W.b_enc.double() - W_enc @ (mean @ U)
    t = None
    if about.activation == "jumprelu":
        t = W.log_threshold.exp()
    elif about.activation == "batch_topk":
        t = torch.full_like(W.b_enc, about.threshold)
    r = trained._gate_norms()
    return Plain(E, b.float(), trained.W_dec, trained.b_dec, r, t)


def about_of(exported: dict[str, Any], path: Path) -> Description:
    """The description in the config of an export.

    Raises
    ------
    InputError : it was not written by this version.
    """
    try:
        about = Description(**exported)
        inputs, outputs = (
            [(int(step), int(layer), str(stream)) for step, layer, stream in sites]
            for sites in (about.inputs, about.outputs)
        )
        int(about.settings["dead_after_rows"])
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(
            f"{path}: the entry 'ontogeny' is of another version; remove it to import without it "
            f"({str(error)!r})"
        ) from None
    return replace(about, inputs=inputs, outputs=outputs)


def name_of(place: Place) -> str:
    """A site's name in other formats: STREAM.LAYER.stepS."""
    step, layer, stream = place
    return f"{stream}.{layer}.step{step}"


def place_of(name: str) -> Place | None:
    """The site with a name from `name_of`; None for any other name."""
    parts = re.fullmatch(r"(\w+)\.(\d+)\.step(\d+)", name)
    return (int(parts[3]), int(parts[2]), parts[1]) if parts else None


def part(folder: Path, product: str) -> Path:
    """A file in a crosscoder's folder, with its name from an experiment."""
    return folder / Path(registry.products()[product].path).name


def read_config(path: Path, keys: list[str]) -> dict[str, Any]:
    """A JSON object with at least these keys.

    Raises
    ------
    InputError : the file does not exist, is not a JSON object, or lacks a key.
    """
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: missing; name a folder of this format") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    missing = [key for key in keys if not isinstance(config, dict) or key not in config]
    if missing:
        raise InputError(f"{path}: lacks {', '.join(missing)}; not a config of this format")
    return config


def read_tensors(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """A safetensors file's tensors; those in `shapes` are checked and converted to float32.

    Raises
    ------
    InputError : the file is missing or damaged, or a tensor is missing, not finite, or has another
        shape.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: missing or damaged ({error})") from None
    for name, shape in shapes.items():
        if name not in tensors:
            raise InputError(f"{path}: lacks the tensor {name}; it has {sorted(tensors)}")
        if tuple(tensors[name].shape) != shape:
            raise InputError(f"{path}: {name} is {tuple(tensors[name].shape)}, not {shape}")
        if not torch.isfinite(tensors[name]).all():
            raise InputError(f"{path}: {name} has values that are not finite")
        tensors[name] = tensors[name].float()
    return tensors


def write_folder(
    output: Path,
    weights: str,
    tensors: dict[str, torch.Tensor],
    name: str,
    config: dict[str, Any],
    metadata: dict[str, str] | None = None,
) -> None:
    """Write a folder atomically: tensors in the file `weights`, and a config named `name`."""
    with whole(output) as draft:
        draft.mkdir()
        kept = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        save_file(kept, draft / weights, metadata)
        write_json(draft / name, config)


def free(output: Path) -> None:
    """Raise InputError if the output exists and is not an empty folder."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output}: exists already; name another folder")
