"""Names of tensors as transformers uses them, without the prefixes that training wrappers add.

torch.compile puts `_orig_mod.` before every name, DistributedDataParallel `module.`, FSDP
`_fsdp_wrapped_module.` wherever it wraps, and Lightning the attribute that holds the model, such as
`model.` or `net.`. Weights saved like this are the model's own under other names.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
# First parts of the tensor names of most causal language models in transformers.
TOPS = {"model", "transformer", "gpt_neox", "backbone", "rwkv", "lm_head", "embed_out", "output"}


def unwrapped(names: Collection[str], config: dict[str, Any], code: bool = False) -> dict[str, str]:
    """The name that transformers uses for each tensor, by the name in the file.

    Parameters
    ----------
    names : of all tensors of a model. config : its config.json.
    code : whether the model's own code builds it, so that its names are not known.
    """
    inner = {name: inside(name) for name in names}
    shared = _shared(list(inner.values()))
    if not code and shared:
        cut = _cut([name.split(".") for name in inner.values()], len(shared), config)
        inner = {old: ".".join(new.split(".")[cut:]) for old, new in inner.items()}
    return inner if len(set(inner.values())) == len(inner) else {name: name for name in names}


def inside(name: str) -> str:
    """A name without the parts that wrappers insert."""
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    while parts[:1] == ["module"]:
        parts = parts[1:]
    return ".".join(parts)


def _shared(names: list[str]) -> list[str]:
    """The parts that all names begin with, excluding the last part of a name."""
    if not names:
        return []
    first, last = min(names).split(".")[:-1], max(names).split(".")[:-1]
    count = next(
        (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b),
        min(len(first), len(last)),
    )
    return first[:count]


def _cut(parts: list[list[str]], shared: int, config: dict[str, Any]) -> int:
    """Number of the shared first parts that belong to a wrapper."""
    for count in reversed(range(shared + 1)):
        if {name[count] for name in parts} <= TOPS:
            return count
    known = _names_of(config)
    fitting = [sum(".".join(name[i:]) in known for name in parts) for i in range(shared + 1)]
    return fitting.index(max(fitting))


def _names_of(config: dict[str, Any]) -> set[str]:
    """Names of the tensors of the model that a configuration describes, and of its base model.

    Empty if transformers does not know the architecture.
    """
    import torch
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

    if str(config.get("model_type")) not in CONFIG_MAPPING:
        return set()
    given = {key: value for key, value in config.items() if key != "quantization_config"}
    try:
        known = AutoConfig.for_model(**given)
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(known)
    except Exception:  # an invalid configuration is reported elsewhere
        return set()
    names = set(model.state_dict())
    return names | {name.removeprefix(f"{model.base_model_prefix}.") for name in names}
