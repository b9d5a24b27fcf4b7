"""`ontogeny export FORMAT` and `ontogeny import FORMAT`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ontogeny.cli.base import FOLDER, main


@main.group()
def export() -> None:
    """Write a crosscoder in another format, to a new folder OUTPUT."""


@main.group("import")
def import_() -> None:
    """Read a crosscoder of another format's FOLDER, to a new folder OUTPUT."""


def _chosen(function: Callable[..., Any]) -> Callable[..., Any]:
    """Which crosscoder, as the arguments of `_find`."""
    for option in (
        click.option("--folder", type=FOLDER, help="A crosscoder's own folder, instead."),
        click.option("--seed", type=int, help="Else the first."),
        click.option("--crosscoder", "name", help="Its name; else the primary one."),
        click.option("--results", type=FOLDER, default=Path("results/default"), help="Experiment."),
    ):
        function = option(function)
    return click.argument("output", type=FOLDER)(function)


def _find(
    results: Path, name: str | None, seed: int | None, folder: Path | None
) -> tuple[Path, Path | None]:
    """A crosscoder's folder, and its experiment's where there is one.

    Raises
    ------
    InputError : no such experiment, crosscoder or seed.
    """
    from ontogeny import finished

    if folder is not None:
        around = folder.absolute().parents
        of_experiment = len(around) > 2 and (around[2] / "config.yaml").exists()
        return folder, around[2] if of_experiment else None
    return finished.crosscoder(results, name, seed), results


@export.command()
@_chosen
@click.option(
    "--gate",
    type=click.Choice(["padded", "heads"]),
    default="padded",
    help="Of one gate a feature: exact, by one more dimension; or each head by its own norm.",
)
def llamascopium(output: Path, gate: str, **chosen: Any) -> None:
    """The Crosscoder folder of the paper's library."""
    from ontogeny.crosscoder.model import Crosscoder
    from ontogeny.exchange import llamascopium as it

    trained = Crosscoder.load(_find(**chosen)[0])
    it.write(trained, output, gate)
    print(output)
    if trained.about.gate == "feature" and trained.about.activation != "relu":
        print(NOTES[gate])


NOTES = {
    "padded": "one gate a feature: the last dimension of W_D makes it exact; it is no activation",
    "heads": "each head now opens by its own norm: not the function that was trained",
}


@export.command()
@_chosen
@click.option("--step", type=int, help="The snapshot.")
@click.option("--layer", type=int, help="Where there are several.")
@click.option("--stream", help="Where there are several.")
@click.option(
    "--alone", is_flag=True, help="An SAE of the snapshot by itself, fitted: an approximation."
)
def saelens(
    output: Path,
    step: int | None,
    layer: int | None,
    stream: str | None,
    alone: bool,
    **chosen: Any,
) -> None:
    """One snapshot's dictionary, as SAELens reads it."""
    from ontogeny.crosscoder.model import Crosscoder
    from ontogeny.exchange import saelens as it
    from ontogeny.files import InputError

    folder, experiment = _find(**chosen)
    if alone and experiment is None:
        raise InputError("--alone: needs the activations of an experiment; use --results")
    of = None if not alone or experiment is None else experiment / "activations"
    model = experiment.name if experiment else ""
    trained = Crosscoder.load(folder)
    config = it.write(trained, output, step, layer, stream, model, of)
    told = config["metadata"]
    print(f"{output}: {config['architecture']}, {config['d_in']} to {told['output']}")
    for name in ("alone", "crosscoder"):
        if name in told:
            it_is = told[name]
            print(f"{name}: EV {it_is['explained_variance']:.3f} at L0 {it_is['l0']:.1f}, held out")


@export.command()
@_chosen
@click.option("--licence", help="Of the weights, as the hub names it, such as mit.")
@click.option("--data-licence", help="Of a text that the project does not bring.")
def hub(output: Path, licence: str | None, data_licence: str | None, **chosen: Any) -> None:
    """A folder for the Hugging Face hub, with a filled model card."""
    from ontogeny.exchange import hub as it

    folder, experiment = _find(**chosen)
    it.write(folder, output, experiment, licence, data_licence)
    print(output)


@import_.command("llamascopium")
@click.argument("folder", type=FOLDER)
@click.argument("output", type=FOLDER)
@click.option("--steps", help="Training steps of the heads, in order, such as 0,1000,143000.")
@click.option("--layer", type=int, help="Of all heads.")
@click.option("--stream", help="Of all heads, such as residual.")
@click.option("--threshold", type=float, help="Of a batchtopk one, for single tokens.")
@click.option("--activations", type=FOLDER, help="Of an experiment that it is to be used on.")
def from_llamascopium(
    folder: Path,
    output: Path,
    steps: str | None,
    layer: int | None,
    stream: str | None,
    threshold: float | None,
    activations: Path | None,
) -> None:
    """A Crosscoder folder of the paper's library."""
    from ontogeny.exchange import llamascopium as it
    from ontogeny.exchange import scales
    from ontogeny.exchange.plain import free
    from ontogeny.files import InputError

    try:
        numbers = [int(step) for step in steps.split(",")] if steps else None
    except ValueError:
        raise InputError(f"--steps: {steps} is not numbers with commas between") from None
    free(output)
    found = it.read(folder, numbers, layer, stream, threshold)
    moved = 0.0
    if activations is not None:
        found, moved = scales.for_activations(found, activations)
    found.save(output)
    print(output)
    if moved:
        print(f"scaled as {activations} is: gates move by up to {moved:.2%}")
    if not found.about.tokens:
        print(UNKNOWN)


UNKNOWN = (
    "which activations it belongs to is not known: analyses that read them refuse it; "
    "--activations names those of an experiment to use it on"
)


@import_.command("hub")
@click.argument("folder", type=FOLDER)
@click.argument("output", type=FOLDER)
def from_hub(folder: Path, output: Path) -> None:
    """A folder that `export hub` wrote, downloaded."""
    from ontogeny.exchange import hub as it

    it.read(folder, output)
    print(output)
