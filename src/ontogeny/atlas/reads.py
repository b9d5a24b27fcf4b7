"""Files and settings that the site is made from, for its rule. This module imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ontogeny.experiment import Experiment
from ontogeny.files import digest_file

PAGE = Path(__file__).parent / "page"


def files(experiment: Experiment) -> dict[str, list[Path]]:
    """The files that atlas.gather reads, by the names of the rule's inputs."""
    primary = experiment.primary
    files = {
        name: experiment.seeds_of(name, primary) for name in ("weights", "fidelity", "density")
    }
    files["stacks"] = experiment.stacks(primary)
    for name in ("features", "matches", "turning_point", "phases", "losses", "levels"):
        files[name] = [experiment.path(name)]
    for name in ("log", "kinds", "names", "trust", "contexts", "span", "attribution", "behaviour"):
        if experiment.has(name):
            files[name] = [experiment.path(name)]
    if experiment.has("passages"):
        files["passages"] = [experiment.path(name) for name in ("passages", "passage_features")]
    return files


def parameters(experiment: Experiment) -> list[Any]:
    """What else the site depends on: settings, and the files of the page."""
    settings = experiment.settings
    keys = ["matched_cosine", "direction_floor", "presence", "absence"]
    shown = [experiment.value(f"analysis.{key}") for key in keys]
    if experiment.has("contexts"):
        shown.append(experiment.value("contexts"))
    crosscoder = settings.crosscoders[experiment.primary]
    trained = crosscoder.model_dump(mode="json", exclude={"threads", "devices"})
    page = {str(path.relative_to(PAGE)): digest_file(path) for path in below(PAGE)}
    return [settings.name, shown, trained, experiment.has("dimensionality"), page]


def below(folder: Path) -> list[Path]:
    """The files in a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())
