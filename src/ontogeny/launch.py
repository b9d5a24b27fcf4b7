"""`ontogeny run`: the workflow, from a checkout or from the installed package."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ontogeny import places
from ontogeny.files import InputError


def run(file: Path, cores: int, words: Sequence[str]) -> None:
    """Run Snakemake in this process, in the current folder, and end with its exit code.

    Parameters
    ----------
    file : the experiment's configuration. words : targets and options of Snakemake.

    Raises
    ------
    InputError : the file does not exist.
    """
    if str(file).startswith("-"):
        raise InputError(f"{file}: the experiment's file comes first: ontogeny run FILE {file}")
    configuration = places.found(file)
    if not configuration.is_file():
        here = f"; there is {file.name} in this folder" if Path(file.name).is_file() else ""
        raise InputError(f"{file}: no such file; `ontogeny new FOLDER` writes one{here}")
    # Jobs call `ontogeny`, which should be that of this Python, even in an inactive environment.
    programs = str(Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join([programs, os.environ.get("PATH", os.defpath)])
    from snakemake.cli import main

    main([*words, *_options(configuration, cores)])


def _options(configuration: Path, cores: int) -> list[str]:
    snakefile, profile = places.WORKFLOW / "Snakefile", places.WORKFLOW / "profiles" / "default"
    options = ["--cores", str(cores), "--snakefile", str(snakefile)]
    return [*options, "--workflow-profile", str(profile), "--configfile", str(configuration)]
