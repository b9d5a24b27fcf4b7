"""Adapters of PEFT: plain LoRA, merged into its base model (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from ontogeny.files import InputError, one_line
from ontogeny.snapshots.kinds import ADAPTER, ADAPTER_WEIGHTS

NAME = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.\w+)?\.weight")
# Keys of an adapter that change what it adds, and their values in plain LoRA.
PLAIN: dict[str, tuple[Any, ...]] = {
    "use_dora": (None, False),
    "bias": (None, "none"),
    "lora_bias": (None, False),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []),
}


def settings(folder: Path) -> dict[str, Any]:
    """The adapter's configuration; InputError if it is damaged, or not plain LoRA."""
    path = folder / ADAPTER
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        kind = str(given["peft_type"])
    except FileNotFoundError:
        raise InputError(f"{folder}: has no {ADAPTER}; save the adapter again") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({one_line(error, 160)}); get it again") from None
    unusual = [key for key, plain in PLAIN.items() if given.get(key) not in plain]
    if kind.upper() != "LORA" or unusual:
        also = f" with {unusual[0]}" if unusual else ""
        raise InputError(
            f"{folder}: a PEFT adapter ({kind}{also}), but only plain LoRA is merged here; merge "
            "it into its base model first (merge_and_unload of peft)"
        )
    return given


def base_of(folder: Path, given: str | None) -> Path | None:
    """The folder of an adapter's base model: the given one, or the one that the adapter names."""
    if given is not None:
        return Path(given)
    named = settings(folder).get("base_model_name_or_path")
    path = Path(str(named)).expanduser()
    return path if named and (path / "config.json").is_file() else None


def weights_of(folder: Path) -> Path:
    """The file of an adapter's weights; InputError if there is none."""
    for name in ADAPTER_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{folder}: has no {ADAPTER_WEIGHTS[0]}; save the adapter again")


class Lora:
    """What an adapter adds to the matrices of its base model: scale · B A."""

    def __init__(self, folder: Path) -> None:
        from safetensors.torch import load_file

        from ontogeny.snapshots import headers, pickles

        given, path = settings(folder), weights_of(folder)
        if path.suffix == ".safetensors":
            headers.names(path)
            tensors = load_file(path)
        else:
            tensors = pickles.load(path)
        self.folder = folder
        self._rank, self._alpha = int(given["r"]), float(given.get("lora_alpha") or given["r"])
        self._by_root = bool(given.get("use_rslora"))
        self._turned = bool(given.get("fan_in_fan_out"))
        self._parts: dict[str, dict[str, Any]] = {}
        for name, tensor in tensors.items():
            match = NAME.fullmatch(name)
            if match is None:
                raise InputError(
                    f"{path}: has {name}, which is not a LoRA matrix; merge the adapter into its "
                    "base model first (merge_and_unload of peft)"
                )
            self._parts.setdefault(match[1], {})[match[2]] = tensor
        self._left = set(self._parts)

    def added_to(self, name: str, tensor: Any) -> Any:
        """A tensor of the base model with what the adapter adds to it, if anything.

        Raises InputError if the shapes do not match.
        """

        module = name.removesuffix(".weight")
        fitting = [m for m in self._parts if m == module or m.endswith(f".{module}")]
        fitting += [m for m in self._parts if module.endswith(f".{m}")]
        if not fitting:
            return tensor
        part = self._parts[fitting[0]]
        self._left.discard(fitting[0])
        try:
            change = part["B"].float() @ part["A"].float()
        except (KeyError, RuntimeError):
            raise InputError(
                f"{self.folder}: one of the two matrices of {fitting[0]} is missing, or they do "
                "not fit"
            ) from None
        root = math.sqrt(self._rank) if self._by_root else self._rank
        # GPT-2's Conv1D stores its matrix as (in, out).
        if change.T.shape == tensor.shape and (self._turned or change.shape != tensor.shape):
            change = change.T
        if change.shape != tensor.shape:
            raise InputError(
                f"{self.folder}: {fitting[0]} has the shape {tuple(change.shape)}, but its base "
                f"model has {tuple(tensor.shape)}; name the right one in snapshots.local.base"
            )
        return (tensor.float() + self._alpha / root * change).to(tensor.dtype).contiguous()

    def finish(self) -> None:
        """Raise InputError if the base model lacked a matrix that the adapter adds to."""
        if self._left:
            raise InputError(
                f"{self.folder}: its base model has no {min(self._left)}; name the right one in "
                "snapshots.local.base"
            )
