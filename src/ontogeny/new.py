"""`ontogeny new`: look at checkpoints, and write an experiment file for them.

    ontogeny new runs/mine --text text/*.jsonl        # a folder that holds checkpoints
    ontogeny new EleutherAI/pythia-160m               # or a repository with revisions

Its choices are in the file with their reasons, so that they can be changed: which steps, which
layer, how much text, and how large a dictionary fits on this machine.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import yaml

from ontogeny.corpus import text as texts
from ontogeny.cost import bill, machines, table
from ontogeny.cost.limits import amount
from ontogeny.files import InputError, write_text
from ontogeny.settings import Hub, Local, Settings, TextFiles, load
from ontogeny.snapshots import local, presets, sources, weights
from ontogeny.snapshots.callback import log_spaced
from ontogeny.snapshots.shape import Shape

MOST = 32  # snapshots, as in the paper
DEPTH = 4  # depth of folders to search below the given one
TEXT = (".txt", ".jsonl", ".json", ".parquet")
BYTES_PER_TOKEN = 5  # more than most tokenizers need, so tokens are underestimated
HELD_OUT, CONTEXT = 128, 512  # blocks, and most tokens in a block
LEAST = 16  # least blocks of text for an experiment
TOKENS = 2**18, 2**22  # that train the dictionary, on a CPU and on a GPU
FEATURES = 16  # per dimension of the residual stream


@dataclass(frozen=True)
class Found:
    """Checkpoints, and how an experiment names them.

    Attributes
    ----------
    key : local or hub. where : that section's YAML. steps : all that exist, ascending.
    """

    key: str
    where: str
    steps: list[int]


def find(source: str) -> Found:
    """The checkpoints of a folder, or of a repository of the Hugging Face hub."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return _folders(folder)
    if folder.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
        raise InputError(f"{source}: no such folder; name one that holds checkpoints")
    try:
        return _revisions(source)
    except InputError as error:
        raise InputError(
            f"{source}: no such folder here, and as a repository of the hub: {error}"
        ) from None


def _folders(folder: Path) -> Found:
    """The largest set of folders below this one that hold a model and differ only in a number."""
    if not weights.lacking(weights.present(folder)):
        raise InputError(
            f"{folder}: this is a single checkpoint; name the folder that holds it and the others"
        )
    patterns: dict[str, int] = {}
    for depth in range(1, DEPTH + 1):
        for path in sorted(folder.glob("/".join("*" * depth))):
            name = str(path.relative_to(folder))
            if not path.is_dir() or weights.lacking(weights.present(path)):
                continue
            # The last number of a name is its step.
            numbered = re.sub(r"\d+(?=\D*$)", "{step}", name)
            if numbered != name:
                patterns[numbered] = patterns.get(numbered, 0) + 1
    if not patterns:
        raise InputError(
            f"{folder}: has no checkpoints with a step in their names, such as checkpoint-100, "
            f"each with {weights.CONFIG} and {weights.SINGLE}; name the folder that has them"
        )
    pattern = max(patterns, key=lambda name: (patterns[name], -len(name)))
    named = str(folder / pattern)
    steps = local.resolve_steps(Local(folders=named))
    return Found("local", f"{{ folders: {json.dumps(named)} }}", steps)


def _revisions(repository: str) -> Found:
    """The revisions of a repository, by its preset or by its list of branches and tags."""
    preset = presets.find(repository)
    if preset is not None and preset.steps is not None:
        return Found("hub", f"{{ repository: {repository} }}", preset.steps)
    from ontogeny.snapshots import hub

    if preset is not None:
        pattern, known = preset.revision, ""
    else:
        names = hub.repository_names(Hub(repository=repository, revision=None))
        pattern = most_common_pattern(names)
        known = f", revision: {json.dumps(pattern)}"
    steps = hub.published_steps(Hub(repository=repository, revision=pattern))
    if not steps:
        raise InputError(
            f"{repository}: no branch or tag fits {pattern}; set snapshots.hub.revision by hand "
            "(docs/your-own-model.md)"
        )
    return Found("hub", f"{{ repository: {repository}{known} }}", steps)


def most_common_pattern(names: Iterable[str]) -> str:
    """The most common form of the names, with {step} for the step and * for other numbers."""
    patterns: dict[str, int] = {}
    for name in names:
        first = re.sub(r"\d+", "{step}", name, count=1)
        if first != name:
            head, _, tail = first.partition("{step}")
            pattern = head + "{step}" + re.sub(r"\d+", "*", tail)
            patterns[pattern] = patterns.get(pattern, 0) + 1
    return max(patterns, key=lambda name: (patterns[name], -len(name)), default="step{step}")


def choose(steps: Sequence[int], count: int = MOST) -> list[int]:
    """At most `count` of the steps, as evenly spaced in their logarithm as possible, with both
    ends."""
    if len(steps) <= count:
        return list(steps)
    wanted = log_spaced(steps[-1], count)
    chosen = {steps[0]} | {presets.nearest(step, steps, 1)[0] for step in wanted}
    # If several wanted steps have the same neighbour, fill the widest gaps.
    while len(chosen) < count:
        ordered = sorted(chosen)
        gaps = [
            ((b + 1) / (a + 1), [step for step in steps if a < step < b])
            for a, b in pairwise(ordered)
        ]
        inside = max((gap for gap in gaps if gap[1]), key=lambda gap: gap[0])[1]
        chosen.add(inside[len(inside) // 2])
    return sorted(chosen)


def tokens_in(paths: Sequence[Path]) -> int:
    """Approximate lower bound on tokens in text files, from their bytes, doubled if compressed."""
    packed = (".gz", ".bz2", ".xz", ".zst", ".parquet", ".arrow")
    sizes = ((2 if p.suffix in packed else 1) * p.stat().st_size for p in paths)
    return sum(sizes) // BYTES_PER_TOKEN


def _corpus(given: Sequence[str], beside: Path) -> tuple[str, int | None]:
    """YAML for the text, and a lower bound on its tokens if one is known."""
    if len(given) == 1 and not Path(given[0]).expanduser().exists():
        if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", given[0]) and not Path(given[0]).suffix:
            return f"  dataset: {{ name: {given[0]}, split: train }}", None
    patterns = [_pattern(name) for name in given] or _text_beside(beside)
    if not patterns:
        note = "of Python packages; text like the model's training text, but unseen, is better"
        return f"  wheels: {{ sources: [python] }} # {note}", None
    paths = texts.files(TextFiles(paths=patterns))
    return f"  files: {{ paths: {json.dumps(patterns)} }}", tokens_in(paths)


def _pattern(name: str) -> str:
    """A folder's text files as a pattern; anything else unchanged."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return name
    kinds = {p.suffix for p in folder.rglob("*") if p.is_file() and p.suffix in TEXT}
    if not kinds:
        raise InputError(f"{name}: holds no text ({', '.join(TEXT)}); name files")
    most = max(kinds, key=lambda kind: sum(p.stat().st_size for p in folder.rglob(f"*{kind}")))
    return f"{name.rstrip('/')}/**/*{most}"


def _text_beside(folder: Path) -> list[str]:
    """Text in a folder named text next to the checkpoints."""
    held = folder / "text"
    return [_pattern(str(held))] if held.is_dir() and any(held.iterdir()) else []


def write(source: str, text: Sequence[str], output: Path | None, results: Path) -> Path:
    """Write the experiment file, and return its path.

    Parameters
    ----------
    source : a folder that holds checkpoints, or a repository of the hub.
    text : files, patterns or a folder, or one dataset of the hub.
    output : path; None means experiments/NAME.yaml, or NAME.yaml if there is no such folder.
    results : the folder that will hold the experiment's folder.

    Raises
    ------
    InputError : there is nothing to look at, or the file exists already.
    """
    found = find(source)
    steps = choose(found.steps)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(source.rstrip("/")).resolve().name).strip("-._")
    if output is None:
        folder = Path("experiments")
        output = (folder if folder.is_dir() else Path()) / f"{name or 'mine'}.yaml"
    if output.exists():
        raise InputError(f"{output}: exists already; name another with --output FILE")
    probe = _probe(found, steps)
    shape, machine = sources.shape_of(probe, results), machines.machine(probe, results)
    corpus, there = _corpus(text, Path(source).expanduser())
    context = min(CONTEXT, shape.positions or CONTEXT)
    if there is not None and there < LEAST * context:
        raise InputError(
            f"--text: the files hold about {there:,} tokens, but at least {LEAST} blocks of "
            f"{context} tokens are needed; name more text"
        )
    made = _experiment(name or "mine", found, steps, shape, corpus, there, machine)
    write_text(output, made.replace("FILE", str(output)))
    return output


def _probe(found: Found, steps: list[int]) -> Settings:
    """Settings that are sufficient to find the model's shape and this machine's resources."""
    return load(
        {
            "name": "new",
            "snapshots": {"steps": steps, found.key: yaml.safe_load(found.where)},
            "activations": {"layers": [0]},
            "crosscoders": {"main": {"inputs": {"layers": [0]}, "features": 1024, "steps": 1}},
            "primary": "main",
        }
    )


def _experiment(
    name: str,
    found: Found,
    steps: list[int],
    shape: Shape,
    corpus: str,
    there: int | None,
    machine: machines.Machine,
) -> str:
    """The file's text."""
    gpu = bool(machine.device)
    context = min(CONTEXT, shape.positions or CONTEXT)
    layer = shape.layers // 2
    tokens = TOKENS[gpu]
    row = 2 * len(steps) * shape.width  # bytes, float16
    tokens = min(tokens, int(machine.disk / 4 / row))
    if there is not None:
        tokens = min(tokens, there * 3 // 4)
    held_out = max(2, min(HELD_OUT, tokens // context // 4))
    blocks = max(2, tokens // context - held_out)
    features = 2 ** max(9, min(15 if gpu else 13, (FEATURES * shape.width).bit_length() - 1))
    batch = min(1024, max(64, 2 ** ((blocks * context // 8).bit_length() - 1)))
    train = max(500, min(4000, 12 * blocks * context // batch))
    chosen = f"{len(steps)} of {len(found.steps)}" if len(steps) < len(found.steps) else "all"
    return f"""\
# Written by `ontogeny new`; every value is a suggestion that you can change. See
# docs/your-own-model.md, and schemas/config.schema.json for each key.
#   ontogeny check FILE, ontogeny plan FILE
#   ontogeny run FILE --cores {os.cpu_count() or 1}

name: {name} # folder under results/
device: auto

corpus:
{corpus.rstrip()}
  context: {context} # tokens in a block{_limit(shape, context)}
  train_blocks: {blocks} # {blocks * context:,} tokens train the dictionary; more are better
  held_out_blocks: {held_out} # on which everything is measured

snapshots:
  # {chosen} of the steps that are there, most of them early
  steps: [{", ".join(map(str, steps))}]
  {found.key}: {found.where}

activations:
  layers: [{layer}] # of {shape.layers}, counted from 0: the residual stream after this block
  # Many models have outliers at a block's first position, which would take up features.
  leave_out: [end_of_text, first]

basis:
  max_variance_lost: 0.01 # of any snapshot

crosscoders:
  main:
    inputs: {{ layers: [{layer}] }}
    features: {features} # {features / shape.width:.0f} for each of the {shape.width} dimensions
    k: 16 # active features per token, on average
    token_table: true # subtract each token's mean activation first: see docs/method.md
    batch_rows: {batch}
    steps: {train}
    learning_rate: 3.0e-3
    seeds: [0, 1] # the second shows which features are found again
    threads: {min(4, os.cpu_count() or 1)}

primary: main

analyses: [dimensionality, kinds, tokens, contexts, names, complexity, trust]
"""


def _limit(shape: Shape, context: int) -> str:
    return ", all that the model has positions for" if context == shape.positions else ""


def summary(file: Path, results: Path) -> list[str]:
    """What was found and what it will cost, one per line."""
    settings = load(file)
    steps, shape = settings.snapshots.chosen, sources.shape_of(settings, results)
    corpus = settings.corpus
    if corpus.files is not None:
        text = ", ".join(corpus.files.paths)
    elif corpus.dataset is not None:
        text = f"the dataset {corpus.dataset.name}"
    else:
        text = "the sources of Python packages, since no --text was given"
    rates = bill.measure(settings, results)
    planned = bill.bill(settings, results, rates)
    tokens = corpus.train_blocks * corpus.context
    return [
        f"{len(steps)} snapshots, steps {steps[0]:,} to {steps[-1]:,}, of a model of "
        f"{shape.layers} blocks of width {shape.width} ({shape.parameters:,} parameters)",
        f"a dictionary of {settings.crosscoders[settings.primary].features:,} features over the "
        f"residual stream after block {settings.activations.layers[0]}, from {tokens:,} tokens of "
        f"{text}",
        f"needs {amount(planned.disk)} of disk, {amount(planned.host)} of memory, and about "
        f"{table.duration(planned.hours)} on one core",
    ]
