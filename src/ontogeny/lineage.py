"""What results depend on, as digests: parameters by which the workflow runs a stage again.

A stage depends on the files that it reads, on the settings that it uses (`values`), and on the code
that it runs (`code`). Files in undeclared folders, which survive an interrupted run, are kept under
such digests too: the archive of a pre-training, and the state of an unfinished training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ontogeny import provenance
from ontogeny.corpus.wheels import wheels_folder
from ontogeny.declarations import Figure, Stage, folder
from ontogeny.experiment import Experiment
from ontogeny.files import digest_file, digest_value
from ontogeny.settings import Section

NO_BASIS = ("least_kept",)  # a key of the basis that does not change it
NO_RESULT = ("seeds", "threads", "devices")  # keys that do not change the result of a seed


def code(module: str) -> str:
    """Digest of the code of a stage such as "ontogeny.corpus.build"."""
    return provenance.code_digest(module)


def values(section: Section, *without: str) -> str:
    """A section of the settings as a parameter of a rule, without the keys that it does not use."""
    return digest_value(section.model_dump(mode="json", exclude=set(without)))


def text(experiment: Experiment) -> list[str]:
    """What the tokens depend on besides the text files."""
    corpus = experiment.settings.corpus
    wheels = ""
    if corpus.wheels:
        wheels = wheels_folder(corpus.wheels, experiment.results).name
    own = digest_value(corpus.model_dump(mode="json", exclude={"wheels": {"requirements"}}))
    return [own, code("ontogeny.corpus.build"), wheels]


def model(experiment: Experiment) -> str:
    """What the snapshots depend on, except which of them are kept."""
    settings = experiment.settings
    if settings.snapshots.pretrain is None:
        excluded: Any = {"steps": True, "hub": {"parallel", "tokenizer"}, "local": {"tokenizer"}}
        return digest_value(settings.snapshots.model_dump(mode="json", exclude=excluded))
    copying = [settings.analysis.copying_blocks, settings.analysis.seed]
    trained = values(settings.snapshots.pretrain, "threads")
    return digest_value([*text(experiment), trained, copying, code("ontogeny.snapshots.pretrain")])


def rows(experiment: Experiment) -> str:
    """What the rows depend on besides the model and the text, including how they are cut."""
    shards = experiment.shards
    cut = [[windows.start, windows.stop] for windows in shards if windows and len(shards) > 1]
    without = ("keep", "budget", "mode", "scale", "together")  # the scale only affects the stacks
    return digest_value([values(experiment.settings.activations, *without), cut])


def training(experiment: Experiment, crosscoder: str) -> str:
    """What an unfinished training of any seed of a crosscoder depends on."""
    settings = experiment.settings
    own = values(settings.all_crosscoders[crosscoder], *NO_RESULT)
    read = [model(experiment), text(experiment), experiment.steps, rows(experiment)]
    read.append(settings.activations.scale)
    stages = [code(f"ontogeny.crosscoder.{'train' if experiment.cached else 'stream'}")]
    return digest_value([[*read, values(settings.basis, *NO_BASIS)], own, stages])


def archive(experiment: Experiment) -> Path:
    """Folder for the training states of a model that is trained here."""
    return experiment.path("archive", digest=model(experiment))


def state(experiment: Experiment, crosscoder: str, seed: int | str) -> Path:
    """Folder for the state of an unfinished training; it depends on settings, rows and code."""
    digest = training(experiment, crosscoder)
    return experiment.path("state", crosscoder=crosscoder, seed=seed, digest=digest)


def parameters(experiment: Experiment, declared: Stage | Figure) -> dict[str, Any]:
    """What a declared stage or figure depends on besides its files."""
    made: dict[str, Any] = {"code": code(declared.module)}
    if declared.settings:
        made["settings"] = digest_value([experiment.value(key) for key in declared.settings])
    if isinstance(declared, Stage):
        if "snapshots" in declared.reads.values():
            made["model"] = [model(experiment), experiment.steps]
        home = folder(declared.run)
        made |= {name: digest_file(home / name) for name in declared.files}
    return made
