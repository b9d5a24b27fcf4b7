"""Where a stream is in a transformers model: found by structure, read and replaced by hooks.

A *site* is (snapshot, layer, stream). Within one model, (layer, stream) is the input or output of a
module, which structure.py finds:

    residual       output of the block        attention_out  output of what mixes positions
    mlp_in         input of its MLP           mlp_out        output of its MLP
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn
from torch.utils.hooks import RemovableHandle

from ontogeny.files import InputError, one_line
from ontogeny.snapshots import structure
from ontogeny.snapshots.structure import End, Enough, Key, blocks, width

__all__ = ["blocks", "continued", "load_model", "read", "replaced", "truncate", "unused", "width"]


def load_model(
    folder: str | Path,
    device: torch.device,
    dtype: torch.dtype,
    remote_code: bool = False,
    last_layer: int | None = None,
    look: Callable[[Any], None] | None = None,
) -> Any:
    """A causal language model in Hugging Face format, in evaluation mode; safetensors only.

    Parameters
    ----------
    remote_code : whether the snapshot's own Python code may run (snapshots.remote_code).
    last_layer : drop everything after this block, which saves memory on the device; `read` works
        up to it, but logits are no longer available. None keeps everything.
    look : called with the complete model on the device, before anything is dropped.

    Raises
    ------
    InputError : the snapshot is missing or damaged, transformers does not know its architecture,
        or the model does not have the layer.
    """
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    spoiled = f"{folder}: not a snapshot that transformers can load"
    try:
        kind = str(json.loads((Path(folder) / "config.json").read_text())["model_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{spoiled} (config.json: {one_line(error, 200)})") from None
    if kind not in CONFIG_MAPPING and not remote_code:
        raise InputError(
            f"{folder}: transformers does not know the architecture '{kind}'; set "
            "snapshots.remote_code: true to run the code in the model's repository"
        )
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=remote_code,
            ignore_mismatched_sizes=True,  # reported below, together with missing ones
            output_loading_info=True,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{spoiled} ({one_line(error, 200)})") from None
    model, info = loaded
    absent = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if absent:
        raise InputError(f"{spoiled} (no weights of the right shape for {absent[0]})")
    model.eval()
    if look is not None:
        look(model.to(device))
    if last_layer is not None:
        truncate(model, last_layer)
    return model.to(device)


@torch.no_grad()
def truncate(model: nn.Module, layer: int) -> None:
    """Drop, in place, the blocks after `layer` and all other modules not used up to it."""
    structure.block_of(model, layer)
    del blocks(model)[layer + 1 :]
    cast(Any, model).config.get_text_config().num_hidden_layers = layer + 1
    device = next(model.parameters()).device
    for name in unused(model, torch.zeros((1, 1), dtype=torch.long, device=device), layer):
        model.set_submodule(name, nn.Identity())


def unused(model: nn.Module, ids: torch.Tensor, layer: int) -> list[str]:
    """Names of the outermost modules outside the blocks that do not run before `layer` ends.

    Parameters
    ----------
    ids : (B, T) tokens to try. layer : −1 means the start of the first block.
    """
    list_of_blocks = blocks(model)
    inside = set(list_of_blocks.modules())
    outside = {name: m for name, m in model.named_modules() if m not in inside}
    used: set[str] = set()

    def stop(*_: Any) -> None:
        raise Enough

    hooks = [
        module.register_forward_pre_hook(lambda m, args, name=name: used.add(name))
        for name, module in outside.items()
    ]
    if layer < 0:
        hooks.append(list_of_blocks[0].register_forward_pre_hook(stop))
    else:
        hooks.append(structure.block_of(model, layer).register_forward_hook(stop))
    structure.run(model, ids, hooks)
    # A container never runs itself; it counts as used if anything in it is, including the blocks.
    used |= {name for name, module in model.named_modules() if module is list_of_blocks}
    for name in list(used):
        used |= {name[:i] for i, letter in enumerate(name) if letter == "."}
    used.add("")
    return [n for n in outside if n not in used and n.rpartition(".")[0] in used]


def _on(
    module: nn.Module, end: End, act: Callable[[torch.Tensor], torch.Tensor | None]
) -> RemovableHandle:
    """Hook a module so that `act` sees a stream's value and may return another one (or None).

    The value has the module's own shape, (B, T, d) or (B·T, d).
    """
    key = end.argument
    if key is not None:

        def before(m: nn.Module, args: Any, kwargs: Any) -> Any:
            given = structure.arguments(args, kwargs)
            new = act(given[key])
            return None if new is None else structure.as_call(given | {key: new})

        return module.register_forward_pre_hook(before, with_kwargs=True)

    def after(m: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
        value = structure.value_of(out)
        base = None if end.added is None else structure.arguments(args, kwargs)[end.added]
        new = act(value if base is None else value - base)
        if new is None:
            return None
        new = new if base is None else new + base
        return type(out)((new, *out[1:])) if isinstance(out, tuple | list) else new

    return module.register_forward_hook(after, prepend=True, with_kwargs=True)


@torch.no_grad()
def read(
    model: nn.Module, ids: torch.Tensor, wanted: list[tuple[int, str]]
) -> dict[tuple[int, str], torch.Tensor]:
    """Values of the wanted (layer, stream), each (B, T, d), from one partial forward pass.

    The pass stops as soon as the last of them is known, without waiting for the device.

    Parameters
    ----------
    model : in evaluation mode. ids : (B, T) token ids on the model's device.

    Raises
    ------
    InputError : the model lacks a layer or a stream; names the setting to change.
    """
    ends = {key: structure.end_of(model, *key) for key in wanted}
    got: dict[tuple[int, str], torch.Tensor] = {}
    if not ends:
        return got

    def keep(key: tuple[int, str], value: torch.Tensor) -> None:
        last = len(got) == len(ends) - 1
        # The model may write into a value later: Falcon adds its attention to its MLP's output.
        got[key] = (value if last else value.clone()).reshape(*ids.shape, -1)
        if last:
            raise Enough

    structure.run(
        model, ids, [_on(module, end, partial(keep, key)) for key, (module, end) in ends.items()]
    )
    return got


@contextmanager
def replaced(model: nn.Module, layer: int, stream: str, value: torch.Tensor) -> Iterator[None]:
    """Within the context, forward passes have `value` (B, T, d) at the site, not their own."""
    module, end = structure.end_of(model, layer, stream)
    handle = _on(module, end, lambda old: value.reshape(old.shape).to(old.dtype))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def continued(model: nn.Module, layer: int, stream: str, value: torch.Tensor) -> Iterator[None]:
    """As `replaced`, but without running blocks that this makes unnecessary.

    For the residual stream, these are the blocks up to `layer`, whose output the value replaces.
    For other streams, and if blocks return more than one tensor, there are none.
    """
    needless = structure.passing(model, layer) if stream == "residual" else []
    with ExitStack() as stack:
        stack.enter_context(replaced(model, layer, stream, value))
        for block, key in needless:
            block.forward = partial(_hand_on, key)
            stack.callback(delattr, block, "forward")
        yield


def _hand_on(key: Key, *args: Any, **kwargs: Any) -> Any:
    return structure.arguments(args, kwargs)[key]
