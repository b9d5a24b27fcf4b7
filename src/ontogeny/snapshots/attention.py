"""Attention heads of a transformers model: where their outputs enter the residual stream.

The heads of a layer write into the input of its output projection, in H adjacent slices of the same
width. That projection is the attention's last matrix (structure.py) whose output is a vector of the
residual stream's width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from ontogeny.files import InputError
from ontogeny.snapshots import structure


@dataclass(frozen=True, eq=False)
class Heads:
    """The heads of one layer.

    projection : the module whose input they write. count : H. width : of a head's slice.
    """

    projection: nn.Module
    count: int
    width: int

    def slice(self, head: int) -> slice:
        """Columns of a head, numbered from 0, in the projection's input."""
        return slice(head * self.width, (head + 1) * self.width)


def find(model: nn.Module, layer: int) -> Heads | str:
    """The heads of a layer, or the reason why they cannot be separated."""
    config = cast(Any, model).config.get_text_config()
    count, d = int(getattr(config, "num_attention_heads", 0) or 0), structure.width(model)
    if not count:
        return "its configuration counts no attention heads"
    try:
        attention, _ = structure.end_of(model, layer, "attention_out")
    except InputError as error:
        return str(error)
    widths = [getattr(config, name, None) for name in ("head_dim", "v_head_dim")]
    known = {int(w) for w in (*widths, d // count) if w}
    fitting: list[Heads] = []

    def look(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        given, value = _first(args, kwargs), structure.value_of(out)
        matrix = any(w.ndim == 2 for w in module.parameters(recurse=False))
        if not matrix or given is None or not isinstance(value, torch.Tensor):
            return
        if value.shape[-1] == d and given.shape[-1] in {count * w for w in known}:
            fitting.append(Heads(module, count, given.shape[-1] // count))

    def stop(*_: Any) -> None:
        raise structure.Enough

    hooks = [m.register_forward_hook(look, with_kwargs=True) for m in attention.modules()]
    hooks.append(structure.block_of(model, layer).register_forward_hook(stop))
    device = next(model.parameters()).device
    with torch.no_grad():
        structure.run(model, torch.zeros((1, 2), dtype=torch.long, device=device), hooks)
    if not fitting:
        return f"layer {layer} has no projection of {count} heads to width {d}"
    return fitting[-1]


@contextmanager
def changed(heads: Heads, act: Callable[[torch.Tensor], torch.Tensor | None]) -> Iterator[None]:
    """Within the context, `act` sees what the heads write and may return another value, or None.

    The value has the module's own shape, (B, T, H·width) or (B·T, H·width).
    """

    def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
        given = structure.arguments(args, kwargs)
        key = next(key for key, value in given.items() if isinstance(value, torch.Tensor))
        new = act(given[key])
        return None if new is None else structure.as_call(given | {key: new})

    handle = heads.projection.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _first(args: Any, kwargs: Any) -> torch.Tensor | None:
    """The first tensor among a call's arguments."""
    given = structure.arguments(args, kwargs).values()
    return next((value for value in given if isinstance(value, torch.Tensor)), None)
