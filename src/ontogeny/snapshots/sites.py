"""Where a stream lives in a transformers model: found by structure, read and replaced by hooks.

A *site* is (snapshot, layer, stream). Within one model, (layer, stream) names a module and one of
its ends:

    residual       output of the block        attention_out  output of its attention
    mlp_in         input of its MLP           mlp_out        output of its MLP
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn

from ontogeny.files import InputError


class _Enough(Exception):
    """Raised by a hook when the last wanted value is there: the rest of the model is not run."""


def load_model(folder: str | Path, device: torch.device, dtype: torch.dtype) -> Any:
    """A causal language model in Hugging Face format, in evaluation mode; safetensors only."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    except (OSError, ValueError, SafetensorError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(f"{folder}: not a snapshot; delete it to make it again ({why})") from None
    return cast(nn.Module, model).to(device).eval()


def blocks(model: nn.Module) -> nn.ModuleList:
    """The model's transformer blocks: its one list of as many modules as the config has layers."""
    count = cast(Any, model).config.num_hidden_layers
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if len(lists) != 1:
        raise InputError(
            f"{type(model).__name__}: {len(lists)} lists of {count} blocks found, 1 expected"
        )
    return lists[0]


def _child(block: nn.Module, *names: str) -> nn.Module:
    """The block's child module whose name holds one of `names` and which is no norm or dropout."""
    found = [
        child
        for name, child in block.named_children()
        if any(n in name.lower() for n in names)
        and not any(n in name.lower() for n in ("norm", "ln", "drop"))
    ]
    if len(found) != 1:
        raise InputError(f"{type(block).__name__}: {len(found)} children called like {names}")
    return found[0]


def _place(model: nn.Module, layer: int, stream: str) -> tuple[nn.Module, bool]:
    """The module of a stream, and whether the stream is its input (else its output)."""
    block = blocks(model)[layer]
    if stream == "residual":
        return block, False
    if stream == "attention_out":
        return _child(block, "attn", "attention"), False
    return _child(block, "mlp", "ffn", "feed_forward"), stream == "mlp_in"


@torch.no_grad()
def read(
    model: nn.Module, ids: torch.Tensor, wanted: list[tuple[int, str]]
) -> dict[tuple[int, str], torch.Tensor]:
    """Values of the wanted (layer, stream), each (B, T, d), from one partial forward pass.

    The pass stops as soon as the last of them is known.
    """
    got: dict[tuple[int, str], torch.Tensor] = {}

    def keep(key: tuple[int, str], value: Any) -> None:
        got[key] = value[0] if isinstance(value, tuple) else value
        if len(got) == len(wanted):
            raise _Enough

    with ExitStack() as stack:
        for key in wanted:
            module, before = _place(model, *key)
            if before:
                handle = module.register_forward_pre_hook(lambda m, args, key=key: keep(key, args))
            else:
                handle = module.register_forward_hook(
                    lambda m, args, out, key=key: keep(key, out), prepend=True
                )
            stack.callback(handle.remove)
        try:
            model(input_ids=ids, use_cache=False)
        except _Enough:
            pass
    return got


@contextmanager
def replaced(model: nn.Module, layer: int, stream: str, value: torch.Tensor) -> Iterator[None]:
    """Inside the block, every forward pass has `value` (B, T, d) at the site, not its own."""
    module, before = _place(model, layer, stream)

    def swap(old: Any) -> Any:
        return (value, *old[1:]) if isinstance(old, tuple) else value

    if before:
        handle = module.register_forward_pre_hook(lambda m, args: swap(args))
    else:
        handle = module.register_forward_hook(lambda m, args, out: swap(out), prepend=True)
    try:
        yield
    finally:
        handle.remove()
