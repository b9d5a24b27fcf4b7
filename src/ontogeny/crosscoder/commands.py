"""`ontogeny train`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import click

from ontogeny import lineage, manifest, streams
from ontogeny.console import of_experiment, take_gpus, threads
from ontogeny.experiment import Experiment
from ontogeny.files import remove


@click.command()
@of_experiment
@threads
@click.argument("crosscoder")
@click.option("--seed", type=int, required=True)
@click.option(
    "--wanted",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A list of trainings, of which those on the same stream of rows are trained as well.",
)
def train(experiment: Experiment, crosscoder: str, seed: int, wanted: Path | None) -> None:
    """Train one crosscoder, resuming from its state if it was interrupted.

    Training uses several devices, which share the threads, if the settings ask for them. If rows
    are streamed, --wanted lists other trainings that read the same rows: they are trained in the
    same passes through the snapshots. If an earlier job has trained this one already, its result
    is moved into place.
    """
    settings = experiment.settings
    count = settings.all_crosscoders[crosscoder].devices
    state = lineage.state(experiment, crosscoder, seed)
    listed = [] if experiment.cached or wanted is None else streams.wanted(wanted)
    if listed and (kept := streams.kept(experiment, crosscoder, seed)):
        return streams.take(experiment, crosscoder, seed, kept)
    take_gpus(experiment, count)
    from ontogeny.activations.basis_file import Kept

    sources = experiment.training_sources(crosscoder)
    manifest.check(sources)
    for path in sources.get("basis", []):
        Kept.read(path).check(settings.basis)
    output = experiment.path("trained", crosscoder=crosscoder, seed=seed)
    where = experiment.row_paths(crosscoder)
    if listed:
        _train_together(experiment, (crosscoder, seed), listed)
        return streams.take(experiment, crosscoder, seed, state)
    from ontogeny.crosscoder import launch
    from ontogeny.crosscoder import train as stage

    launch.on_devices(stage.train, settings, count, crosscoder, seed, where, output, state)
    with suppress(OSError):  # the training has succeeded all the same
        remove(state)


def _train_together(
    experiment: Experiment, training: streams.Training, listed: list[streams.Training]
) -> None:
    """Train all crosscoders that share a stream with this training, and keep the results."""
    from ontogeny.activations.sites import stream_name
    from ontogeny.crosscoder import launch, stream

    chosen = streams.together(experiment, training, listed)
    members = [
        stream.Member(name, seed, experiment.row_paths(name), lineage.state(experiment, name, seed))
        for name, seed in chosen
    ]
    shared = stream_name(experiment.settings.all_crosscoders[training[0]])
    state = experiment.path("stream_state", stream=shared)
    count = experiment.settings.all_crosscoders[training[0]].devices
    launch.on_devices(stream.train, experiment.settings, count, members, state)
    with suppress(OSError):  # the training has succeeded all the same
        remove(state)
