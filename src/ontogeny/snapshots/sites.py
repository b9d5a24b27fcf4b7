"""Where a stream lives in a transformers model: found by structure, read and replaced by hooks.

A *site* is (snapshot, layer, stream). Within one model, (layer, stream) names a module and one of
its ends:

    residual       output of the block        attention_out  output of what mixes positions
    mlp_in         input of its MLP           mlp_out        output of its MLP

No name of a module is looked at. The blocks are the list of as many modules as the configuration
counts layers. Of a block's children that hold matrices, the attention is the one whose output at
a position depends on earlier positions: seen by running it again, with random weights and another
input at the first position. The MLP is what remains: one module, or several in a row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn

from ontogeny.files import InputError

PROBE = (2, 5)  # blocks and tokens of the forward pass that shows a block's structure
# Least change at later positions, as a share of that at the first, that is mixing and not rounding:
# grouped matrix products of experts round by what else is in the batch.
MIXING = 0.05
CACHE = "_ontogeny_ends"  # attribute of a model that holds what was found, by layer


class _Enough(Exception):
    """Raised by a hook when the last wanted value is there: the rest of the model is not run."""


@dataclass(frozen=True)
class _End:
    """One end of a module of a block.

    path : the module's name in the block. argument : the argument (position or keyword) that is
    the stream; None where the output is. added : the argument that the module itself adds to its
    output, as BLOOM's do with the residual stream; the stream is the output without it.
    """

    path: str
    argument: int | str | None = None
    added: int | str | None = None


@dataclass(frozen=True)
class _Call:
    """One call of a module of a block in the probe; hidden : its (B, T, …) or (B·T, …) argument."""

    path: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    hidden: int | str | None
    out: Any

    @property
    def matrices(self) -> list[nn.Parameter]:
        return [w for w in self.module.parameters() if w.ndim >= 2]

    @property
    def width_in(self) -> int:
        return _argument(self.args, self.kwargs, cast(Any, self.hidden)).shape[-1]

    @property
    def width_out(self) -> int | None:
        """Width of the output; None where it is not one value a position."""
        out = _value(self.out)
        return out.shape[-1] if _by_position(out) else None


def load_model(
    folder: str | Path,
    device: torch.device,
    dtype: torch.dtype,
    remote_code: bool = False,
    last_layer: int | None = None,
) -> Any:
    """A causal language model in Hugging Face format, in evaluation mode; safetensors only.

    Parameters
    ----------
    remote_code : let the Python code that the snapshot brings run (snapshots.remote_code).
    last_layer : drop what comes after this block, which then takes no memory on the device;
        `read` works up to it, logits are no more to be had. None keeps everything.

    Raises
    ------
    InputError : no snapshot, a damaged one, an architecture that transformers does not know, or a
        layer that the model does not have.
    """
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    spoiled = f"{folder}: not a snapshot; delete it to make it again"
    try:
        kind = json.loads((Path(folder) / "config.json").read_text())["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{spoiled} (config.json: {_line(error)})") from None
    if kind not in CONFIG_MAPPING and not remote_code:
        raise InputError(
            f"{folder}: transformers does not know the architecture '{kind}'; set "
            "snapshots.remote_code: true to run the code that the model's repository brings for it"
        )
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=remote_code,
            ignore_mismatched_sizes=True,  # named below, like what is missing
            output_loading_info=True,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{spoiled} ({_line(error)})") from None
    model, info = loaded
    absent = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if absent:
        raise InputError(f"{spoiled} (no weights of the right shape for {absent[0]})")
    model.eval()
    if last_layer is not None:
        truncate(model, last_layer)
    return model.to(device)


def _line(error: Exception) -> str:
    """An error's message as one short line."""
    return " ".join(str(error).split())[:200]


def width(model: nn.Module) -> int:
    """Width d of the residual stream."""
    return cast(Any, model).config.get_text_config().hidden_size


def blocks(model: nn.Module) -> nn.ModuleList:
    """The model's transformer blocks: its list of as many modules as the config has layers.

    Of several such lists it is the one with most parameters, which a list of experts or adapters
    inside a block is not; of equal ones the outermost.
    """
    count = cast(Any, model).config.get_text_config().num_hidden_layers
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not lists:
        raise InputError(
            f"{type(model).__name__}: no list of {count} blocks found, as many as its "
            "configuration has layers; choose another model"
        )
    if len(lists) == 1:
        return lists[0]
    return max(lists, key=lambda m: sum(w.numel() for w in m.parameters()))


def _block(model: nn.Module, layer: int) -> nn.Module:
    found = blocks(model)
    if not 0 <= layer < len(found):
        raise InputError(
            f"activations.layers: layer {layer} does not exist; the model has {len(found)}, "
            f"numbered 0 to {len(found) - 1}"
        )
    return found[layer]


@torch.no_grad()
def truncate(model: nn.Module, layer: int) -> None:
    """Drop, in place, the blocks after `layer` and all outside that no pass up to it runs."""
    _block(model, layer)
    del blocks(model)[layer + 1 :]
    cast(Any, model).config.get_text_config().num_hidden_layers = layer + 1
    device = next(model.parameters()).device
    for name in unused(model, torch.zeros((1, 1), dtype=torch.long, device=device), layer):
        model.set_submodule(name, nn.Identity())


def unused(model: nn.Module, ids: torch.Tensor, layer: int) -> list[str]:
    """Names of the outermost modules outside the blocks that are not run until `layer` ends.

    Parameters
    ----------
    ids : (B, T) tokens to try it with. layer : −1 is where the first block begins.
    """
    list_of_blocks = blocks(model)
    inside = set(list_of_blocks.modules())
    outside = {name: m for name, m in model.named_modules() if m not in inside}
    run: set[str] = set()

    def stop(*_: Any) -> None:
        raise _Enough

    with ExitStack() as stack:
        for name, module in outside.items():
            note = module.register_forward_pre_hook(lambda m, args, name=name: run.add(name))
            stack.callback(note.remove)
        if layer < 0:
            handle = list_of_blocks[0].register_forward_pre_hook(stop)
        else:
            handle = _block(model, layer).register_forward_hook(stop)
        stack.callback(handle.remove)
        try:
            cast(Any, model)(input_ids=ids, use_cache=False)
        except _Enough:
            pass
    # A container is never run itself: it is used if something in it is, the blocks among them.
    run |= {name for name, module in model.named_modules() if module is list_of_blocks}
    used = {"", *run}
    for name in run:
        used |= {name[:i] for i, letter in enumerate(name) if letter == "."}
    return [n for n in outside if n not in used and n.rpartition(".")[0] in used]


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], key: int | str) -> Any:
    return args[key] if isinstance(key, int) else kwargs[key]


def _with_argument(
    args: tuple[Any, ...], kwargs: dict[str, Any], key: int | str, value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with another value for one of them."""
    if isinstance(key, int):
        return (*args[:key], value, *args[key + 1 :]), kwargs
    return args, kwargs | {key: value}


def _value(out: Any) -> Any:
    """What a module hands on: its output, or the first of several."""
    return out[0] if isinstance(out, tuple | list) else out


def _by_position(value: Any) -> bool:
    """Whether a value of the probe is a vector for each position: (B, T, …) or (B·T, …)."""
    rows, tokens = PROBE
    return (
        isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and (
            (value.ndim == 3 and value.shape[:2] == PROBE)
            or (value.ndim == 2 and value.shape[0] == rows * tokens)
        )
    )


def _ends(model: nn.Module, layer: int) -> dict[str, _End | str]:
    """The block's end for each stream, or the reason why it has none.

    Found once for each kind of block that a model has; blocks that hold modules of the same
    types, names and shapes are of a kind.
    """
    known: dict[int, dict[str, _End | str]] = model.__dict__.setdefault(CACHE, {})
    if layer not in known:
        wanted = _kind(_block(model, layer))
        first = next(i for i, block in enumerate(blocks(model)) if _kind(block) == wanted)
        if first not in known:
            known[first] = _find(_probe(model, first), blocks(model)[first], width(model))
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


@torch.no_grad()
def _probe(model: nn.Module, layer: int) -> dict[str, _Call]:
    """First call of each module of a block, by name in the block, in the order they begin."""
    block = _block(model, layer)
    begun: list[str] = []
    calls: dict[str, _Call] = {}

    def keep(path: str, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        given = [*enumerate(args), *kwargs.items()]
        hidden = next((key for key, value in given if _by_position(value)), None)
        calls.setdefault(path, _Call(path, module, args, kwargs, hidden, out))
        if path == "":
            raise _Enough

    ids = _probe_ids(model)
    with ExitStack() as stack:
        for path, module in block.named_modules():
            before = module.register_forward_pre_hook(lambda m, args, p=path: begun.append(p))
            after = module.register_forward_hook(
                lambda m, args, kwargs, out, p=path: keep(p, m, args, kwargs, out),
                with_kwargs=True,
                prepend=True,
            )
            stack.callback(before.remove)
            stack.callback(after.remove)
        try:
            cast(Any, model)(input_ids=ids, use_cache=False)
        except _Enough:
            pass
    return {path: calls[path] for path in dict.fromkeys(begun) if path in calls}


def _find(calls: dict[str, _Call], block: nn.Module, d: int) -> dict[str, _End | str]:
    """Tell a block's attention and MLP apart; the values are ends, or reasons why there is none."""
    mixing: dict[str, bool] = {}

    def mixes(call: _Call) -> bool:
        if call.path not in mixing:
            mixing[call.path] = _mixes(call)
        return mixing[call.path]

    def parts(path: str, module: nn.Module) -> list[_Call]:
        """Children that hold matrices and see positions; a container's are its parent's."""
        found = []
        for name, child in module.named_children():
            below = f"{path}.{name}" if path else name
            if below not in calls:
                found += parts(below, child)
            elif calls[below].hidden is not None and calls[below].matrices:
                found.append(calls[below])
        order = list(calls)
        return sorted(found, key=lambda call: order.index(call.path))

    here = parts("", block)
    while len(here) == 1 and any(map(mixes, inner := parts(here[0].path, here[0].module))):
        here = inner  # a wrapper around all that the block does
    attentions = [call for call in here if mixes(call)]
    others = [call for call in here if not mixes(call)]
    attention: _End | str = f"{len(attentions)} of its parts mix positions, where one is expected"
    if len(attentions) == 1:
        chosen = attentions[0]
        while inner := [
            call
            for call in parts(chosen.path, chosen.module)
            if _size(call) == _size(chosen) and mixes(call)
        ]:
            chosen = inner[0]  # what is around it holds norms alone, or nothing
        attention = f"{chosen.path} does not give a vector of width {d} for each position"
        if chosen.width_out == d:
            attention = _End(chosen.path, added=_added(chosen))

    whole = [c for c in others if c.width_in == c.width_out == d and len(c.matrices) >= 2]
    if len(whole) > 1:
        names = " and ".join(call.path for call in whole)
        return {"attention_out": attention} | dict.fromkeys(
            ("mlp_in", "mlp_out"), f"{names} are MLPs beside each other"
        )
    chain = whole or (others if attentions else [])
    if not chain or chain[0].width_in != d or chain[-1].width_out != d:
        reason = f"none of its parts is an MLP from and to width {d}"
        return {"attention_out": attention} | dict.fromkeys(("mlp_in", "mlp_out"), reason)
    return {
        "attention_out": attention,
        "mlp_in": _End(chain[0].path, argument=chain[0].hidden),
        "mlp_out": _End(chain[-1].path, added=_added(chain[-1])),
    }


def _size(call: _Call) -> int:
    return sum(w.numel() for w in call.matrices)


def _replay(call: _Call) -> Callable[..., Any]:
    """A function that runs a call's module again, with random weights and other arguments.

    A snapshot's own weights may hide what a module does: at the first step a projection may be
    nought. The structure is the architecture's, and so the answer must be.
    """
    weights: dict[str, torch.Tensor] = {}
    for name, w in call.module.named_parameters():
        if w.is_floating_point():
            fan_in = w.shape[-1] if w.ndim >= 2 else 1
            spread = (3 / fan_in) ** 0.5 if w.ndim >= 2 else 0.1
            generator = torch.Generator(w.device).manual_seed(len(weights))
            random = torch.empty_like(w).uniform_(-spread, spread, generator=generator)
            weights[name] = random if w.ndim >= 2 else random + 1

    def run(changes: dict[int | str, torch.Tensor]) -> Any:
        args, kwargs = call.args, call.kwargs
        for key, value in changes.items():
            args, kwargs = _with_argument(args, kwargs, key, value)
        return torch.func.functional_call(call.module, weights, args, kwargs)

    return run


def _noise(like: torch.Tensor, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=generator).to(like)


@torch.no_grad()
def _mixes(call: _Call) -> bool:
    """Whether outputs at later positions change with the input at the first."""
    key = cast(Any, call.hidden)
    run, x = _replay(call), _noise(_argument(call.args, call.kwargs, key), 0)
    other = x.clone()
    other.view(*PROBE, -1)[:, 0] = _noise(x, 1).view(*PROBE, -1)[:, 0]
    for before, after in zip(_outputs(run({key: x})), _outputs(run({key: other})), strict=True):
        change = (after.float() - before.float()).abs().reshape(*PROBE, -1)
        if change[:, 1:].max() > MIXING * change[:, 0].max():
            return True
    return False


def _outputs(out: Any) -> list[torch.Tensor]:
    values = out if isinstance(out, tuple | list) else (out,)
    return [value for value in values if _by_position(value)]


@torch.no_grad()
def _added(call: _Call) -> int | str | None:
    """The argument that the module adds to its output, if it does with one."""
    run = None
    for key, value in [*enumerate(call.args), *call.kwargs.items()]:
        if key == call.hidden or not _by_position(value) or value.shape != _value(call.out).shape:
            continue
        run = run or _replay(call)
        change = _noise(value, 2)
        moved = _value(run({key: value + change})) - _value(run({key: value}))
        if (moved - change).float().norm() < MIXING * change.float().norm():
            return cast(int | str, key)
    return None


def _end(model: nn.Module, layer: int, stream: str) -> tuple[nn.Module, _End]:
    """The module of a stream, and which of its ends it is."""
    block = _block(model, layer)
    if stream == "residual":
        return block, _End("")
    end = _ends(model, layer)[stream]
    if isinstance(end, str):
        raise InputError(
            f"activations.streams: {type(model).__name__} has no {stream} in layer {layer}, for "
            f"{end}; remove it"
        )
    return block.get_submodule(end.path), end


def _on(module: nn.Module, end: _End, act: Callable[[torch.Tensor], torch.Tensor | None]) -> Any:
    """Hook a module so that `act` sees a stream's value there and may give another (or None).

    The value has the module's own shape, (B, T, d) or (B·T, d). Returns the hook's handle.
    """
    key = end.argument
    if key is not None:

        def before(m: nn.Module, args: Any, kwargs: Any) -> Any:
            new = act(_argument(args, kwargs, key))
            return None if new is None else _with_argument(args, kwargs, key, new)

        return module.register_forward_pre_hook(before, with_kwargs=True)

    def after(m: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
        value = _value(out)
        base = None if end.added is None else _argument(args, kwargs, end.added)
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

    The pass stops as soon as the last of them is known, and waits for no device.

    Parameters
    ----------
    model : in evaluation mode. ids : (B, T) token ids on the model's device.

    Raises
    ------
    InputError : a layer or a stream that the model does not have, with the setting to change.
    """
    ends = {key: _end(model, *key) for key in wanted}
    got: dict[tuple[int, str], torch.Tensor] = {}
    if not ends:
        return got

    def keep(key: tuple[int, str], value: torch.Tensor) -> None:
        last = len(got) == len(ends) - 1
        # A model may go on to write into a value, as Falcon adds its attention to its MLP's output.
        got[key] = (value if last else value.clone()).reshape(*ids.shape, -1)
        if last:
            raise _Enough

    with ExitStack() as stack:
        for key, (module, end) in ends.items():
            stack.callback(_on(module, end, partial(keep, key)).remove)
        try:
            cast(Any, model)(input_ids=ids, use_cache=False)
        except _Enough:
            pass
    return got


@contextmanager
def replaced(model: nn.Module, layer: int, stream: str, value: torch.Tensor) -> Iterator[None]:
    """Inside the block, every forward pass has `value` (B, T, d) at the site, not its own."""
    module, end = _end(model, layer, stream)
    handle = _on(module, end, lambda old: value.reshape(old.shape).to(old.dtype))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def continued(model: nn.Module, layer: int, stream: str, value: torch.Tensor) -> Iterator[None]:
    """As `replaced`, without running the blocks that this makes needless.

    Of the residual stream, these are the blocks up to `layer`, whose outputs the value stands for;
    of other streams, or where blocks hand on more than one tensor, there are none.
    """
    needless = _passing(model, layer) if stream == "residual" else []
    with ExitStack() as stack:
        stack.enter_context(replaced(model, layer, stream, value))
        for block, key in needless:
            block.forward = partial(_hand_on, key)
            stack.callback(delattr, block, "forward")
        yield


def _hand_on(key: int | str, *args: Any, **kwargs: Any) -> Any:
    return _argument(args, kwargs, key)


PASSING = "_ontogeny_passing"  # attribute of a model that holds what was found, by layer


@torch.no_grad()
def _passing(model: nn.Module, layer: int) -> list[tuple[nn.Module, int | str]]:
    """The blocks up to `layer`, each with the argument that it turns into its output.

    None of them where one returns more than a tensor, or takes none of its output's shape.
    """
    known: dict[int, list[tuple[nn.Module, int | str]]] = model.__dict__.setdefault(PASSING, {})
    if layer in known:
        return known[layer]
    chosen = list(blocks(model)[: layer + 1])
    found: list[tuple[nn.Module, int | str]] = []

    def look(block: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        if isinstance(out, torch.Tensor) and "forward" not in block.__dict__:
            for key, given in [*enumerate(args), *kwargs.items()]:
                if isinstance(given, torch.Tensor) and given.shape == out.shape:
                    found.append((block, key))
                    break
        if block is chosen[-1]:
            raise _Enough

    ids = _probe_ids(model)
    with ExitStack() as stack:
        for block in chosen:
            stack.callback(block.register_forward_hook(look, with_kwargs=True).remove)
        try:
            cast(Any, model)(input_ids=ids, use_cache=False)
        except _Enough:
            pass
    whole = [block for block, _ in found] == chosen
    known[layer] = found if whole else []
    return known[layer]
