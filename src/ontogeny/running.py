"""From a declaration to its files and to a call, shared by the generic rule and command."""

from __future__ import annotations

import importlib
import inspect
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ontogeny import manifest, registry
from ontogeny.declarations import Figure, Optional, Source, Stage, folder, function
from ontogeny.experiment import Experiment
from ontogeny.files import whole

Declared = Stage | Figure
LETTERS = 100  # characters in a line of a caption


def owner(declared: Declared) -> str:
    """The name of the analysis that declares a stage or figure; '' for the core's."""
    for name, analysis in registry.all_analyses().items():
        if declared in (*analysis.stages, *analysis.figures):
            return name
    return ""


def exists(experiment: Experiment, stage: Stage) -> bool:
    """Whether the settings include a stage."""
    return not stage.when or experiment.value(stage.when) is not None


def _source(
    experiment: Experiment,
    declared: Declared,
    what: str | Optional | Callable[..., Source],
    crosscoder: str | None,
) -> Source | None:
    """The input for one argument; None if it is optional and does not exist."""
    if isinstance(what, Optional):
        if not experiment.has(what.when or what.product, owner(declared)):
            return None
        what = what.product
    return experiment.source(what, crosscoder) if isinstance(what, str) else what(experiment)


def sources(
    experiment: Experiment, declared: Declared, crosscoder: str | None = None
) -> Iterator[tuple[str, list[Source] | Source | None]]:
    """The inputs, by argument; a list, in order, if they are of all crosscoders with histories."""
    for argument, what in declared.reads.items():
        if declared.scope != "compared":
            yield argument, _source(experiment, declared, what, crosscoder)
            continue
        each = [_source(experiment, declared, what, name) for name in experiment.with_histories]
        yield argument, [source for source in each if source is not None]


def inputs(
    experiment: Experiment, declared: Declared, crosscoder: str | None = None
) -> dict[str, list[str]]:
    """The files that the workflow watches, by argument; missing ones are left out."""
    files = {}
    for argument, source in sources(experiment, declared, crosscoder):
        if source is not None:
            several = source if isinstance(source, list) else [source]
            files[argument] = [str(path) for each in several for path in each.files]
    return files


def outputs(experiment: Experiment, stage: Stage) -> dict[str, str]:
    """The files that a stage makes, by argument; {crosscoder} is left open."""
    return {argument: experiment.pattern(name) for argument, name in stage.makes.items()}


def call(experiment: Experiment, declared: Declared, crosscoder: str | None = None) -> None:
    """Run a stage, or draw a figure."""
    arguments: dict[str, Any] = {}
    manifest.check(inputs(experiment, declared, crosscoder))
    for argument, source in sources(experiment, declared, crosscoder):
        if isinstance(source, list):
            arguments[argument] = [each.argument for each in source]
        else:
            arguments[argument] = source.argument if source is not None else None
    if isinstance(declared, Figure):
        arguments["output"] = experiment.figure(declared.name)
    else:
        keys = {"crosscoder": crosscoder or experiment.primary}
        for argument, name in declared.makes.items():
            arguments[argument] = experiment.path(name, **keys)
        for argument, place in declared.scratch.items():
            arguments[argument] = experiment.folder / place.format(**keys)
    run = function(declared.run)
    known = inspect.signature(run).parameters
    if "settings" in known:
        arguments["settings"] = experiment.settings
    if "names" in known:
        arguments["names"] = experiment.with_histories
    run(**arguments)
    if isinstance(declared, Figure):
        _say(declared, experiment)


def _say(figure: Figure, experiment: Experiment) -> None:
    """Write a figure's finding and caption next to it as text, for viewers of the picture."""
    import pandas as pd

    finding = getattr(importlib.import_module(figure.module), "finding", None)
    parts = caption(figure).read_text(encoding="utf-8").split("\n\n")
    if finding is not None:
        table = pd.read_csv(experiment.figure(figure.name, "csv"), low_memory=False)
        parts.insert(0, finding(table) and f"{finding(table)}.")
    text = "\n\n".join(
        textwrap.fill(part, LETTERS, break_on_hyphens=False) for part in parts if part.strip()
    )
    with whole(experiment.figure(figure.name, "txt")) as draft:
        draft.write_text(f"{text}\n", encoding="utf-8")


def caption(figure: Figure) -> Path:
    """The caption of a figure, next to its code."""
    return folder(figure.run) / f"{figure.name}.rst"


def number_hooks(experiment: Experiment) -> list[str]:
    """The functions that collect the analyses' numbers for summary.json."""
    analyses = registry.all_analyses()
    return [analyses[n].numbers for n in experiment.analyses() if analyses[n].numbers]
