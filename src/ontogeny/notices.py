"""What a run prints first and last: what it will make, how long that takes, and what to open."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from ontogeny.cost import bill, machines
from ontogeny.cost.bill import Bill
from ontogeny.cost.limits import amount
from ontogeny.cost.machines import Rates
from ontogeny.experiment import Experiment
from ontogeny.settings import Settings

FIRST_FIGURES = ("ranges", "histories", "comparison", "training")  # most informative first


def rates(device: int | None, name: str) -> Rates | None:
    """Rates for an estimate without measuring; None for a GPU that is not in devices.yaml.

    Parameters
    ----------
    device, name : from machines.Machine.
    """
    if device == 0:
        laptop = machines.data()["laptop"]
        return Rates(name="CPU", how="assumed", memory=0, **laptop)
    words = name.upper().replace("-", " ")
    known = [key for key in machines.data()["devices"] if _is_named(key, words)]
    return machines.table(max(known, key=len)) if known else None


def _is_named(key: str, words: str) -> bool:
    return all(part in words for part in key.upper().split("-"))


def hours(planned: Bill, cores: int) -> float:
    """Hours until an experiment is finished on this many cores; NaN without rates.

    Jobs use all cores or wait for each other. What cannot run in parallel is estimated as half of
    the time that the longest jobs of all stages take one after another.
    """
    if planned.rates is None:
        return math.nan
    core_hours, longest = 0.0, 0.0
    for line in planned.lines:
        spent = line.hours(planned.rates)
        core_hours += spent * min(line.threads, cores)
        longest += spent if line.stage == "pretrain" else spent / max(line.left, 1)
    return max(core_hours / cores, longest / 2)


def opening(settings: Settings, results: str | Path, cores: int) -> list[str]:
    """What a run prints before its first job, as a list of lines.

    Parameters
    ----------
    settings : steps resolved. results : the folder that holds the experiments' folders.
    """
    experiment = Experiment(Path(results) / settings.name, settings)
    machine = machines.machine(settings, results)
    planned = bill.bill(settings, results, rates(machine.device, machine.device_name))
    lines = [f"{experiment.folder}: {_subject(experiment)}"]
    left = sum(line.left for line in planned.lines)
    spent = hours(planned, cores)
    if left and not math.isnan(spent):
        where = planned.machine.device_name if planned.machine.device else _idle(cores)
        lines.append(
            f"  about {_roughly(spent)} on {where}, and "
            f"{amount(planned.disk)} of disk; `ontogeny plan` measures this machine first"
        )
    elif left:
        lines.append(f"  {amount(planned.disk)} of disk; `ontogeny plan` estimates the time")
    lines.append("  you can interrupt it at any time: the same command continues from there")
    seen = _seen(experiment)
    if seen:
        lines.append(f"  finished already, to look at meanwhile: {', '.join(seen)}")
    else:
        lines.append(f"  figures appear one by one in {experiment.folder}/figures")
    return lines


def _idle(cores: int) -> str:
    return "one idle core" if cores == 1 else f"{cores} idle cores"


def _roughly(hours: float) -> str:
    minutes = round(60 * hours)
    if minutes <= 1:
        return "a minute"
    return f"{minutes} minutes" if minutes < 120 else f"{hours:.0f} hours"


def _took(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def _subject(experiment: Experiment) -> str:
    """Snapshots, dictionaries and analyses of an experiment, in one line."""
    settings = experiment.settings
    steps, primary = experiment.steps, settings.crosscoders[settings.primary]
    trained = settings.snapshots.pretrain is not None
    source = "of a model that is trained here" if trained else f"of {_model(settings)}"
    several = [name for name in settings.crosscoders if name != settings.primary]
    others = f", beside {' and '.join(several)}" if several else ""
    return (
        f"{len(steps)} snapshots {source}, steps {steps[0]:,} to {steps[-1]:,}; the crosscoder "
        f"{settings.primary} with {primary.features:,} features{others}"
    )


def _model(settings: Settings) -> str:
    if settings.snapshots.hub is not None:
        return settings.snapshots.hub.repository
    assert settings.snapshots.local is not None, "snapshots have one of three sources"
    folders = settings.snapshots.local.folders
    return folders if isinstance(folders, str) else " and ".join(folders)


def _seen(experiment: Experiment) -> list[str]:
    """The results of an experiment that can be opened now, the most useful first."""
    paths = [experiment.path("atlas") / "index.html"] if experiment.path("atlas").exists() else []
    figures = [experiment.figure(name, "png") for name in FIRST_FIGURES]
    paths += [path for path in figures if path.exists()][:1]
    return [str(path) for path in paths]


def closing(settings: Settings, results: str | Path, began: float) -> list[str]:
    """What a run prints after its last job, as a list of lines: what to open.

    Parameters
    ----------
    began : start of the run, from time.monotonic().
    """
    experiment = Experiment(Path(results) / settings.name, settings)
    seen = _seen(experiment)
    lines = [f"{experiment.folder}: finished in {_took(time.monotonic() - began)}"]
    if seen:
        lines.append(f"  open       {seen[0]}")
    drawn = sorted((experiment.folder / "figures").glob("*.png"))
    if drawn:
        first = next((path for path in map(Path, seen) if path in drawn), drawn[0])
        lines.append(f"  figures    {first} and {len(drawn) - 1} others beside it")
    if experiment.path("summary").exists():
        lines.append(f"  numbers    {experiment.path('summary')}")
    if experiment.path("contexts_table").exists():
        lines.append(f"  a feature  ontogeny show {experiment.folder} {_telling(experiment)}")
    return lines


def _telling(experiment: Experiment) -> int:
    """A feature worth looking at: one whose name says more than a token, or otherwise the first."""
    if not experiment.path("names").exists():
        return 0
    names = experiment.table("names")
    telling = names[~names["rule"].isin(["", "token", "start"]) & ~names["strongest"]]
    return int((telling if len(telling) else names)["feature"].iloc[0])


def tell(lines: Iterable[str]) -> None:
    """Print lines on stderr, set off by empty ones."""
    print("", *lines, "", sep="\n", file=sys.stderr, flush=True)
