"""Which trainings share a stream of rows when `activations.mode` is `streamed`.

All seeds of all dictionaries that read the same files form one stream. The first of their jobs to
start trains all of them that the run has to make, so that each snapshot runs once for all
(crosscoder/stream.py). It keeps the other results in the folders of their states, under digests of
everything they depend on, and their own jobs then take them from there.

Each training thus remains a separate job, with exactly the files and settings that it depends on:
adding a dictionary does not retrain the others, and jobs run again for the same reasons as with
cached rows. Two other ways to do this in Snakemake lose that. A single job with all results as
outputs deletes them all when it runs again. A job that runs before all trainings, with its age
ignored (`ancient`), stops Snakemake 9 from checking their other inputs whenever it runs.

Jobs of one stream run one after the other, because they share a resource of which there is only one
(rules/common.smk). Each requests the memory and time of all, since any of them may be the first: on
a cluster the later ones wait in the queue and then run for seconds.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from ontogeny import lineage, manifest
from ontogeny.activations.sites import stream_name
from ontogeny.experiment import Experiment
from ontogeny.files import InputError, remove, whole, write_json

PARTS = ("weights", "about", "metrics")  # products of a training; the last is written last

Training = tuple[str, int]
"""A crosscoder's name and a seed."""


def of(experiment: Experiment) -> dict[str, list[str]]:
    """The crosscoders of each stream, by its name, in the settings' order; {} for cached rows."""
    streams: dict[str, list[str]] = {}
    for name, chosen in experiment.settings.all_crosscoders.items():
        if not experiment.cached:
            streams.setdefault(stream_name(chosen), []).append(name)
    return streams


def trainings(experiment: Experiment, stream: str) -> list[Training]:
    """The trainings of a stream."""
    every = experiment.settings.all_crosscoders
    return [(name, seed) for name in of(experiment)[stream] for seed in every[name].seeds]


def together(
    experiment: Experiment, training: Training, listed: Iterable[Training]
) -> list[Training]:
    """A training and those in a list that share its stream and have no result yet.

    There are at most `activations.together`, starting with those that follow it in the settings.
    """
    stream = stream_name(experiment.settings.all_crosscoders[training[0]])
    listed = {training, *listed}
    every = [each for each in trainings(experiment, stream) if each in listed]
    at = every.index(training)
    left = [each for each in every[at:] + every[:at] if kept(experiment, *each) is None]
    return left[: experiment.settings.activations.together]


def kept(experiment: Experiment, crosscoder: str, seed: int | str) -> Path | None:
    """The folder with a training's kept result, or None if there is none.

    A result that is older than its inputs does not count.
    """
    folder = lineage.state(experiment, crosscoder, seed)
    last = folder / Path(experiment.path(PARTS[-1])).name
    if not last.exists():
        return None
    files = [path for some in experiment.training_sources(crosscoder).values() for path in some]
    made = last.stat().st_mtime_ns
    newer = [path for path in files if path.exists() and path.stat().st_mtime_ns > made]
    return None if newer else folder


def made(experiment: Experiment, crosscoder: str, seed: int | str) -> bool:
    """Whether a training has finished: its crosscoder is in its final place or kept."""
    weights = experiment.path("weights", crosscoder=crosscoder, seed=seed)
    return weights.exists() or kept(experiment, crosscoder, seed) is not None


def take(experiment: Experiment, crosscoder: str, seed: int, folder: Path) -> None:
    """Move a kept result to its final place.

    Raises
    ------
    InputError : it has changed since it was written.
    """
    for product in PARTS:
        path = experiment.path(product, crosscoder=crosscoder, seed=seed)
        manifest.check(folder / path.name)
        with whole(path) as draft:
            shutil.copyfile(folder / path.name, draft)
    remove(folder)


def want(experiment: Experiment, listed: Iterable[Training]) -> None:
    """Write the list of trainings that a run has to make."""
    write_json(experiment.path("wanted"), sorted(listed))


def wanted(path: Path) -> list[Training]:
    """The list that `want` wrote.

    Raises
    ------
    InputError : the file does not exist or is damaged.
    """
    try:
        return [(str(name), int(seed)) for name, seed in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError):
        raise InputError(f"{path}: no list of trainings; leave out --wanted") from None
