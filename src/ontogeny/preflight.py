"""Faults that can be found before any job starts: sizes, disk space, damaged files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ontogeny import registry
from ontogeny.activations import order
from ontogeny.activations.sites import expand
from ontogeny.corpus import arrays, text
from ontogeny.corpus.build import check_bos, model_tokenizer
from ontogeny.corpus.wheels import (
    check_sources,
    find_wheels,
    most_tokens,
    needed,
    requirements_file,
)
from ontogeny.cost import limits
from ontogeny.experiment import Experiment
from ontogeny.files import BROKEN, InputError, open_hdf5
from ontogeny.scratch import below
from ontogeny.settings import Settings
from ontogeny.snapshots import local, sources

# Datasets in a product's HDF5 files; the first pattern that matches counts.
CONTENTS = {
    "tokens": ("tokens",),
    "norms_of": ("over",),
    "rows": ("activations", "position", "token"),
    "held_out": ("held_out",),
    "stack": ("held_out",),
    "projected": ("projected",),
    "basis": ("basis", "turn", "mean"),
    "token_table": ("token", "count", "table"),
}


def _datasets(name: Path) -> tuple[str, ...]:
    """The datasets that a file must have, by its name in the experiment's folder."""
    for product, datasets in CONTENTS.items():
        if name.match(re.sub(r"\{\w+\}", "*", registry.products()[product].path)):
            return datasets
    return ()


def _wheel_faults(s: Settings, results: Path) -> Iterator[str]:
    """Wheels that are damaged, or have too little text."""
    c, wheels, experiment = s.corpus, s.corpus.wheels, Experiment(results / s.name, s)
    if wheels is None:
        return
    try:
        check_sources(wheels)
        folder = experiment.wheels
        if folder.is_dir() and not experiment.path("tokens").exists():
            find_wheels(requirements_file(wheels), needed(wheels), folder)
    except InputError as error:
        yield str(error)
    batch = s.snapshots.pretrain.batch_blocks if s.snapshots.pretrain else 0
    tokens = (c.held_out_blocks + c.train_blocks + batch) * c.context
    if tokens > most_tokens(c):
        yield (
            f"corpus.train_blocks: {tokens:,} tokens are needed, but the corpus has fewer than "
            f"{most_tokens(c):,}; lower it, or corpus.held_out_blocks, or add "
            "corpus.wheels.sources"
        )


def _shape_faults(s: Settings, results: Path) -> Iterator[str]:
    """Layers, dimensions and contexts that the model or the rows do not have."""
    try:
        model = sources.shape_of(s, results)
        order.shards(s, model.width)
    except InputError as error:
        # If only the model's own code knows its architecture, nothing can be checked in advance.
        if not s.snapshots.remote_code:
            yield str(error)
        return
    if max(s.activations.layers) >= model.layers:
        yield (
            f"activations.layers: layer {max(s.activations.layers)} does not exist; the model has "
            f"{model.layers}, numbered 0 to {model.layers - 1}"
        )
    if s.corpus.tokens is not None:
        wanted = s.corpus.train_blocks + s.corpus.held_out_blocks
        try:
            taken = s.corpus.context - s.corpus.bos
            line = arrays.beyond(s.corpus.tokens, taken, wanted, model.vocabulary)
        except InputError:
            line = None  # it is reported as a fault of the text
        if line:
            yield line
    if model.positions is not None and s.corpus.context > model.positions:
        yield (
            f"corpus.context: {s.corpus.context} tokens exceed the model's {model.positions} "
            "positions; lower it"
        )
    rows = min(s.corpus.train_blocks * s.corpus.context, s.basis.rows)
    for name, c in s.all_crosscoders.items():
        if c.basis == "full" or s.basis.dimensions is None:
            continue
        sites = len(expand(c.inputs, s.snapshots.chosen))
        if s.basis.dimensions > min(sites * model.width, rows):
            yield (
                f"basis.dimensions: {s.basis.dimensions} exceeds the {sites * model.width} "
                f"dimensions or the {rows} training rows of crosscoders.{name}; lower it"
            )


def _shard_faults(s: Settings, results: Path) -> Iterator[str]:
    """Settings that are impossible with several shards, each of which is removed once projected."""
    a = s.activations
    if a.budget is None or a.mode == "streamed":
        return
    shards = order.shards(s, sources.shape_of(s, results).width)
    if len(shards) == 1:
        return
    every = s.all_crosscoders.items()
    whole = {s.key_of(name, "basis"): c.basis for name, c in every if c.basis != "principal"}
    for key, basis in whole.items():
        yield (
            f"{key}: {basis} needs all training rows at once; set principal, or raise "
            "activations.budget, or set activations.mode: streamed"
        )
    blocks = s.corpus.train_blocks / order.number_of_windows(
        s.corpus.train_blocks, s.corpus.context, a.window
    )
    rows = int(blocks * s.corpus.context * len(shards[0]))
    # By default, only the first shard is used (basis.build).
    if s.basis.rows > rows and s.basis.rows != type(s.basis).model_fields["rows"].default:
        yield (
            f"basis.rows: {s.basis.rows:,} rows exceed the first shard's {rows:,}; lower it, or "
            "raise activations.budget"
        )
    used = {
        (layer, stream)
        for c in s.crosscoders.values()
        for layer in c.inputs.layers
        for stream in c.inputs.streams
    }
    for layer in a.layers:
        for stream in a.streams:
            if (layer, stream) not in used:
                yield (
                    f"activations: no crosscoder reads the {stream} of layer {layer}; remove it, "
                    "or remove activations.budget"
                )


def _mark_faults(s: Settings) -> Iterator[str]:
    """Tokens to leave out or put first that a local model's tokenizer does not have."""
    named = [name for name in s.activations.leave_out if name in ("bos", "padding")]
    numbers = [name for name in s.activations.leave_out if isinstance(name, int)]
    if s.snapshots.local is None or not (named or numbers or s.corpus.bos):
        return
    try:
        files = local.tokenizer_sources(s.snapshots.local, s.snapshots.chosen)
        _, vocabulary, marks = model_tokenizer(files[0].parent)
    except InputError:
        return  # reported with the snapshots, or by the corpus stage
    try:
        check_bos(s.corpus, marks)
        marks.ids(list(s.activations.leave_out), vocabulary)
    except InputError as fault:
        yield str(fault)


def _faults(settings: Settings, results: Path) -> Iterator[str]:
    folder = results / settings.name
    yield from _wheel_faults(settings, results)
    yield from text.faults(settings.corpus)
    yield from sources.faults(settings, results)
    yield from _mark_faults(settings)
    yield from registry.ahead(Experiment(folder, settings))[0]
    misfits = list(_shape_faults(settings, results))
    yield from misfits
    if not misfits:
        yield from _shard_faults(settings, results)
    for path in sorted(p for p in below(folder) if p.suffix == ".h5"):
        name = path.relative_to(folder)
        try:
            with open_hdf5(path) as file:
                ours = set(_datasets(name)) <= set(file)
        except InputError as error:
            yield str(error)
        except BROKEN:
            yield f"{path}: truncated or not HDF5; delete it to make it again"
        else:
            if not ours:
                yield f"{path}: not a file of the {name.parts[0]} stage; delete it to make it again"


def check(settings: Settings, results: str | Path) -> None:
    """Raise InputError, one line per fault, if the experiment cannot run.

    Parameters
    ----------
    results : the folder that holds the experiments' folders.
    """
    faults = list(dict.fromkeys(_faults(settings, Path(results))))
    faults = faults or text.short(settings.corpus)
    if faults:
        raise InputError("\n".join(faults))


def check_room(settings: Settings, results: str | Path, memory: bool = True) -> None:
    """Raise InputError, one line per fault, if the remaining work does not fit here (limits.py).

    Parameters
    ----------
    memory : whether jobs run on this machine, so that its memory is checked as well as its disk.
    """
    try:
        faults = limits.faults(settings, results, memory)
    except InputError:
        # If only the model's own code knows its architecture, nothing can be checked in advance.
        if not settings.snapshots.remote_code:
            raise
        return
    if faults:
        raise InputError("\n".join(faults))
