"""The structure of a transformers model: its blocks, and the role of each module of a block.

Names of modules are not used. The blocks are the list with as many modules as the configuration has
layers. Among a block's children with matrices, the attention is the one whose output at a position
depends on earlier positions. To see this, it is run again with random weights and another input at
the first position. The MLP is what remains: one module, or several in sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ontogeny.files import InputError

Key = int | str  # of an argument: its position or its keyword

PROBE = (2, 5)  # blocks and tokens of the forward pass that reveals a block's structure
# Least change at later positions, as a share of that at the first, that counts as mixing. Rounding
# is smaller: grouped matrix products of experts round differently with the rest of the batch.
MIXING = 0.05
ENDS = "_ontogeny_ends"  # attribute of a model that stores its blocks' ends, by layer
PASSING = "_ontogeny_passing"  # the same for the blocks of `passing`


class Enough(Exception):
    """Raised by a hook when it has the last wanted value, so that the rest does not run."""


@dataclass(frozen=True)
class End:
    """The input or output of a module of a block.

    path : the module's name in the block. argument : the argument that is the stream; None if the
    output is. added : an argument that the module itself adds to its output, as BLOOM's modules do
    with the residual stream; the stream is then the output without it.
    """

    path: str
    argument: Key | None = None
    added: Key | None = None


@dataclass(frozen=True, eq=False)
class _Call:
    """A module's call in the probe of a block; hidden : its (B, T, …) or (B·T, …) argument."""

    path: str
    module: nn.Module
    given: dict[Key, Any]
    hidden: Key | None
    out: Any

    @property
    def matrices(self) -> list[nn.Parameter]:
        return [w for w in self.module.parameters() if w.ndim >= 2]

    @property
    def size(self) -> int:
        """Number of weights in the matrices."""
        return sum(w.numel() for w in self.matrices)

    @property
    def width_in(self) -> int:
        return self.given[cast(Key, self.hidden)].shape[-1]

    @property
    def width_out(self) -> int | None:
        """Width of the output; None if it does not have one value per position."""
        out = value_of(self.out)
        return out.shape[-1] if _by_position(out) else None


def width(model: nn.Module) -> int:
    """Width d of the residual stream."""
    return cast(Any, model).config.get_text_config().hidden_size


def blocks(model: nn.Module) -> nn.ModuleList:
    """The model's transformer blocks: its list of as many modules as the config has layers.

    If there are several such lists, it is the one with most parameters, which excludes a list of
    experts or adapters inside a block; among equal ones, it is the outermost.
    """
    count = cast(Any, model).config.get_text_config().num_hidden_layers
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not lists:
        raise InputError(
            f"{type(model).__name__}: no list of {count} blocks found, although its configuration "
            "has as many layers; choose another model"
        )
    if len(lists) == 1:  # nearly always true, and every pass asks
        return lists[0]
    return max(lists, key=lambda m: sum(w.numel() for w in m.parameters()))


def block_of(model: nn.Module, layer: int) -> nn.Module:
    """The block of a layer, or InputError."""
    every = blocks(model)
    if not 0 <= layer < len(every):
        raise InputError(
            f"activations.layers: layer {layer} does not exist; the model has {len(every)}, "
            f"numbered 0 to {len(every) - 1}"
        )
    return every[layer]


def arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[Key, Any]:
    """A call's arguments by position or keyword."""
    positional: dict[Key, Any] = dict(enumerate(args))
    return positional | kwargs


def as_call(given: dict[Key, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments by position or keyword as `*args, **kwargs`."""
    positional = tuple(value for key, value in given.items() if isinstance(key, int))
    return positional, {key: value for key, value in given.items() if isinstance(key, str)}


def value_of(out: Any) -> Any:
    """A module's main output: its only one, or the first of several."""
    return out[0] if isinstance(out, tuple | list) else out


def run(model: nn.Module, ids: torch.Tensor, hooks: list[RemovableHandle]) -> None:
    """Run the model on (B, T) tokens until a hook raises Enough; then remove the hooks."""
    try:
        cast(Any, model)(input_ids=ids, use_cache=False)
    except Enough:
        pass
    finally:
        for hook in hooks:
            hook.remove()


def end_of(model: nn.Module, layer: int, stream: str) -> tuple[nn.Module, End]:
    """The module of a stream, and whether the stream is its input or output.

    Raises
    ------
    InputError : the layer does not exist, or has no such stream.
    """
    block = block_of(model, layer)
    if stream == "residual":
        return block, End("")
    end = _ends(model, layer)[stream]
    if isinstance(end, str):
        raise InputError(
            f"activations.streams: {type(model).__name__} has no {stream} in layer {layer}: "
            f"{end}; remove it"
        )
    return block.get_submodule(end.path), end


@torch.no_grad()
def passing(model: nn.Module, layer: int) -> list[tuple[nn.Module, Key]]:
    """The blocks up to `layer`, each with the argument that it transforms into its output.

    Empty if a block returns more than a tensor, or has no argument with its output's shape.
    """
    known: dict[int, list[tuple[nn.Module, Key]]] = model.__dict__.setdefault(PASSING, {})
    if layer in known:
        return known[layer]
    chosen = list(blocks(model)[: layer + 1])
    turned: list[tuple[nn.Module, Key]] = []

    def look(block: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        if isinstance(out, torch.Tensor) and "forward" not in block.__dict__:
            for key, given in arguments(args, kwargs).items():
                if isinstance(given, torch.Tensor) and given.shape == out.shape:
                    turned.append((block, key))
                    break
        if block is chosen[-1]:
            raise Enough

    hooks = [block.register_forward_hook(look, with_kwargs=True) for block in chosen]
    run(model, _probe_ids(model), hooks)
    known[layer] = turned if [block for block, _ in turned] == chosen else []
    return known[layer]


def _ends(model: nn.Module, layer: int) -> dict[str, End | str]:
    """The end of the block for each stream, or the reason why it has none.

    The search runs once for each kind of block in a model; blocks are of the same kind if their
    modules have the same types, names and shapes.
    """
    known: dict[int, dict[str, End | str]] = model.__dict__.setdefault(ENDS, {})
    if layer not in known:
        wanted = _kind(block_of(model, layer))
        first = next(i for i, block in enumerate(blocks(model)) if _kind(block) == wanted)
        if first not in known:
            known[first] = _tell_apart(_probe(model, first), blocks(model)[first], width(model))
        known[layer] = known[first]
    return known[layer]


def _kind(block: nn.Module) -> tuple[Any, ...]:
    modules = tuple((name, type(module)) for name, module in block.named_modules())
    return modules, tuple((name, tuple(w.shape)) for name, w in block.named_parameters())


def _probe_ids(model: nn.Module) -> torch.Tensor:
    """The tokens of a probe, (B, T) of `PROBE`."""
    device = next(model.parameters()).device
    vocabulary = cast(Any, model).config.get_text_config().vocab_size
    return (torch.arange(PROBE[0] * PROBE[1], device=device) % vocabulary).view(PROBE)


def _by_position(value: Any) -> bool:
    """Whether a value of the probe has a vector for each position: (B, T, …) or (B·T, …)."""
    rows, tokens = PROBE
    return (
        isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and value.shape[:-1] in (PROBE, (rows * tokens,))
    )


@torch.no_grad()
def _probe(model: nn.Module, layer: int) -> dict[str, _Call]:
    """First call of each module of a block, by its name in the block, in order of start."""
    begun: list[str] = []
    calls: dict[str, _Call] = {}

    def keep(path: str, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        given = arguments(args, kwargs)
        hidden = next((key for key, value in given.items() if _by_position(value)), None)
        calls.setdefault(path, _Call(path, module, given, hidden, out))
        if path == "":
            raise Enough

    hooks: list[RemovableHandle] = []
    for path, module in block_of(model, layer).named_modules():
        hooks += [
            module.register_forward_pre_hook(lambda m, args, p=path: begun.append(p)),
            module.register_forward_hook(
                lambda m, args, kwargs, out, p=path: keep(p, m, args, kwargs, out),
                with_kwargs=True,
                prepend=True,
            ),
        ]
    run(model, _probe_ids(model), hooks)
    return {path: calls[path] for path in dict.fromkeys(begun) if path in calls}


def _tell_apart(calls: dict[str, _Call], block: nn.Module, d: int) -> dict[str, End | str]:
    """Distinguish a block's attention and MLP; the values are ends, or reasons for having none."""
    mixes = cache(_mixes)
    order = list(calls)

    def parts(path: str, module: nn.Module) -> list[_Call]:
        """Children with matrices that see positions; those of a container count as its parent's."""
        seen = []
        for name, child in module.named_children():
            below = f"{path}.{name}" if path else name
            if below not in calls:
                seen += parts(below, child)
            elif calls[below].hidden is not None and calls[below].matrices:
                seen.append(calls[below])
        return sorted(seen, key=lambda call: order.index(call.path))

    children = parts("", block)
    while len(children) == 1 and any(
        map(mixes, inner := parts(children[0].path, children[0].module))
    ):
        children = inner  # it wraps everything that the block does
    attentions = [call for call in children if mixes(call)]
    others = [call for call in children if not mixes(call)]
    attention: End | str = f"{len(attentions)} of its parts mix positions, but one was expected"
    if len(attentions) == 1:
        chosen = attentions[0]
        while inner := [
            call
            for call in parts(chosen.path, chosen.module)
            if call.size == chosen.size and mixes(call)
        ]:
            chosen = inner[0]  # the modules around it hold only norms, or nothing
        attention = f"{chosen.path} does not give a vector of width {d} for each position"
        if chosen.width_out == d:
            attention = End(chosen.path, added=_added(chosen))

    whole = [c for c in others if c.width_in == c.width_out == d and len(c.matrices) >= 2]
    chain = whole or (others if attentions else [])
    reason = None
    if len(whole) > 1:
        reason = f"{' and '.join(call.path for call in whole)} are parallel MLPs"
    elif not chain or chain[0].width_in != d or chain[-1].width_out != d:
        reason = f"none of its parts is an MLP from and to width {d}"
    return {
        "attention_out": attention,
        "mlp_in": reason or End(chain[0].path, argument=chain[0].hidden),
        "mlp_out": reason or End(chain[-1].path, added=_added(chain[-1])),
    }


def _replay(call: _Call) -> Callable[[dict[Key, Any]], Any]:
    """A function that runs a call's module again, with random weights and other arguments.

    A snapshot's own weights may hide what a module does: at the first step a projection may be
    zero. The structure belongs to the architecture, so the result must not depend on weights.
    """
    weights: dict[str, torch.Tensor] = {}
    for name, w in call.module.named_parameters():
        if w.is_floating_point():
            fan_in = w.shape[-1] if w.ndim >= 2 else 1
            spread = (3 / fan_in) ** 0.5 if w.ndim >= 2 else 0.1
            generator = torch.Generator(w.device).manual_seed(len(weights))
            random = torch.empty_like(w).uniform_(-spread, spread, generator=generator)
            weights[name] = random if w.ndim >= 2 else random + 1

    def again(changes: dict[Key, Any]) -> Any:
        return torch.func.functional_call(call.module, weights, *as_call(call.given | changes))

    return again


def _noise(like: torch.Tensor, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=generator).to(like)


@torch.no_grad()
def _mixes(call: _Call) -> bool:
    """Whether outputs at later positions depend on the input at the first."""
    key = cast(Key, call.hidden)
    again, x = _replay(call), _noise(call.given[key], 0)
    other = x.clone()
    other.view(*PROBE, -1)[:, 0] = _noise(x, 1).view(*PROBE, -1)[:, 0]
    for before, after in zip(_outputs(again({key: x})), _outputs(again({key: other})), strict=True):
        change = (after.float() - before.float()).abs().reshape(*PROBE, -1)
        if change[:, 1:].max() > MIXING * change[:, 0].max():
            return True
    return False


def _outputs(out: Any) -> list[torch.Tensor]:
    return [v for v in (out if isinstance(out, tuple | list) else (out,)) if _by_position(v)]


@torch.no_grad()
def _added(call: _Call) -> Key | None:
    """The argument that the module adds to its output, or None."""
    again = None
    for key, value in call.given.items():
        if key == call.hidden or not _by_position(value):
            continue
        if value.shape != value_of(call.out).shape:
            continue
        again = again or _replay(call)
        change = _noise(value, 2)
        moved = value_of(again({key: value + change})) - value_of(again({key: value}))
        if (moved - change).float().norm() < MIXING * change.float().norm():
            return key
    return None
