"""`ontogeny export FORMAT` and `ontogeny import FORMAT`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ontogeny.files import InputError

if TYPE_CHECKING:
    from ontogeny.experiment import Experiment

FOLDER = click.Path(path_type=Path, file_okay=False)
NOTES = {
    "padded": "one gate per feature: the last dimension of W_D makes it exact and is not part "
    "of the activation",
    "heads": "each head is now gated by its own norm, which is not the function that was trained",
}
UNKNOWN = (
    "not known which activations it belongs to, so analyses that read activations refuse it; use "
    "--activations to name those of an experiment"
)


def add(main: click.Group) -> None:
    """Add the groups `export` and `import` to the command line."""
    main.add_command(export)
    main.add_command(import_)


@click.group()
def export() -> None:
    """Write a crosscoder in another format to a new folder OUTPUT.

    EXPERIMENT is the folder of an experiment or of a crosscoder.
    """


@click.group("import")
def import_() -> None:
    """Read a crosscoder in another format from FOLDER, and write it to a new folder OUTPUT."""


def _chosen(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add options that choose a crosscoder, as the arguments of `_find`, and the output."""
    for parameter in (
        click.option("--seed", type=int, help="Seed of the crosscoder; default: the first."),
        click.option(
            "--crosscoder", "name", help="Name of the crosscoder; default: the primary one."
        ),
        click.argument("output", type=FOLDER),
        click.argument("experiment", type=FOLDER),
    ):
        function = parameter(function)
    return function


def _find(experiment: Path, name: str | None, seed: int | None) -> tuple[Path, Experiment | None]:
    """A crosscoder's folder, and the experiment that it belongs to, if any.

    Raises
    ------
    InputError : the experiment, crosscoder or seed does not exist.
    """
    from ontogeny.exchange.plain import part
    from ontogeny.experiment import Experiment

    if not part(experiment, "weights").exists():
        opened = Experiment.open(experiment)
        return opened.trained(name, seed), opened
    if (name, seed) != (None, None):
        raise InputError(
            f"{experiment}: this is already a crosscoder; leave out --crosscoder and --seed"
        )
    around = experiment.absolute().parents
    if len(around) > 2 and part(around[2], "config").exists():
        return experiment, Experiment.open(around[2])
    return experiment, None


@export.command()
@_chosen
@click.option(
    "--gate",
    type=click.Choice(["padded", "heads"]),
    default="padded",
    help="For one gate per feature. padded: exact, with one more dimension; heads: each head "
    "gated by its own norm.",
)
def llamascopium(output: Path, gate: str, **chosen: Any) -> None:
    """The Crosscoder folder of the paper's library."""
    from ontogeny.crosscoder.model import Crosscoder
    from ontogeny.exchange import llamascopium

    trained = Crosscoder.load(_find(**chosen)[0])
    llamascopium.write(trained, output, gate)
    print(output)
    if trained.about.gate == "feature" and trained.about.activation != "relu":
        print(NOTES[gate])


@export.command()
@_chosen
@click.option("--step", type=int, help="Training step of the snapshot.")
@click.option("--layer", type=int, help="Layer, if there are several.")
@click.option("--stream", help="Stream, if there are several.")
@click.option(
    "--alone", is_flag=True, help="Fit an SAE of this snapshot alone, which is an approximation."
)
def saelens(
    experiment: Path, output: Path, name: str | None, seed: int | None, alone: bool, **site: Any
) -> None:
    """One snapshot's dictionary, in the format of SAELens."""
    from ontogeny.crosscoder.model import Crosscoder
    from ontogeny.exchange import saelens

    folder, opened = _find(experiment, name, seed)
    if alone and opened is None:
        raise InputError(
            "--alone: needs the activations of an experiment; give the experiment's folder"
        )
    activations = opened.path("activations") if alone and opened else None
    model = opened.name if opened else ""
    trained = Crosscoder.load(folder)
    config = saelens.write(trained, output, **site, model=model, alone=activations)
    about = config["metadata"]
    print(f"{output}: {config['architecture']}, {config['d_in']} to {about['output']}")
    for which in ("alone", "crosscoder"):
        if which in about:
            explained, l0 = about[which]["explained_variance"], about[which]["l0"]
            print(f"{which}: EV {explained:.3f} at L0 {l0:.1f}, held out")


@export.command()
@_chosen
@click.option("--licence", help="Licence of the weights, by its name on the hub, such as mit.")
@click.option("--data-licence", help="Licence of a text that does not come with the project.")
def hub(output: Path, licence: str | None, data_licence: str | None, **chosen: Any) -> None:
    """A folder for the Hugging Face hub, with a filled model card."""
    from ontogeny.exchange import hub

    folder, experiment = _find(**chosen)
    hub.write(folder, output, experiment, licence, data_licence)
    print(output)


@export.command()
@click.argument("experiment", type=FOLDER)
@click.argument("output", type=FOLDER)
@click.option("--crosscoder", "name", help="Its name; else the primary one.")
@click.option("--step", type=int, help="Whose promoted tokens; else each feature's peak.")
def neuronpedia(experiment: Path, output: Path, name: str | None, step: int | None) -> None:
    """Dashboards of an experiment's features, for Neuronpedia by way of SAEDashboard."""
    from ontogeny.exchange import neuronpedia
    from ontogeny.experiment import Experiment

    count = neuronpedia.write(Experiment.open(experiment), output, name, step)
    print(f"{output}: {count} features")


@import_.command("llamascopium")
@click.argument("folder", type=FOLDER)
@click.argument("output", type=FOLDER)
@click.option("--steps", help="Training steps of the heads, in order, such as 0,1000,143000.")
@click.option("--layer", type=int, help="Layer of all heads.")
@click.option("--stream", help="Stream of all heads, such as residual.")
@click.option(
    "--threshold", type=float, help="Threshold for single tokens, if act_fn is batchtopk."
)
@click.option(
    "--activations", type=FOLDER, help="Activations of the experiment in which it will be used."
)
def from_llamascopium(
    folder: Path, output: Path, steps: str | None, activations: Path | None, **options: Any
) -> None:
    """A Crosscoder folder of the paper's library."""
    from ontogeny.exchange import llamascopium, scales
    from ontogeny.exchange.plain import free

    try:
        numbers = [int(step) for step in steps.split(",")] if steps else None
    except ValueError:
        raise InputError(f"--steps: {steps} is not a list of numbers separated by commas") from None
    free(output)
    crosscoder = llamascopium.read(folder, numbers, **options)
    moved = 0.0
    if activations is not None:
        crosscoder, moved = scales.for_activations(crosscoder, activations)
    crosscoder.save(output)
    print(output)
    if moved:
        print(f"scaled like {activations}: gates move by up to {moved:.2%}")
    if not crosscoder.about.tokens:
        print(UNKNOWN)


@import_.command("hub")
@click.argument("folder", type=FOLDER)
@click.argument("output", type=FOLDER)
def from_hub(folder: Path, output: Path) -> None:
    """A downloaded folder that `export hub` wrote."""
    from ontogeny.exchange import hub

    hub.read(folder, output)
    print(output)
