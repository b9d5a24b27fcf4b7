"""The available analyses: the built-in ones, and those of installed packages.

An installed package adds one through the entry point group `ontogeny.analyses`:

    [project.entry-points."ontogeny.analyses"]
    mine = "their_package.declaration:ANALYSIS"
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import pkgutil
import textwrap
from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from ontogeny import analyses
from ontogeny.declarations import Analysis, Figure, Product, Stage, folder, function
from ontogeny.files import InputError

GROUP = "ontogeny.analyses"
COLUMNS = "columns.yaml"


@cache
def all_analyses() -> dict[str, Analysis]:
    """Every analysis by its name, built-in ones first.

    Raises
    ------
    InputError : an installed package's declaration cannot be read, or its name is in use already.
    """
    folders = sorted(m.name for m in pkgutil.iter_modules(analyses.__path__) if m.ispkg)
    declared = {
        name: importlib.import_module(f"{GROUP}.{name}.declaration").ANALYSIS for name in folders
    }
    for entry in importlib.metadata.entry_points(group=GROUP):
        try:
            analysis = entry.load()
        except Exception as error:
            why = " ".join(str(error).split())
            raise InputError(
                f"analysis {entry.name}: {entry.value} cannot be loaded ({why}); repair or remove "
                "that package"
            ) from None
        if not isinstance(analysis, Analysis) or analysis.name in declared:
            raise InputError(
                f"analysis {entry.name}: {entry.value} is not an Analysis, or its name is taken; "
                "rename or remove it"
            )
        declared[analysis.name] = analysis
    return declared


@cache
def products() -> dict[str, Product]:
    """Every product of the core stages and the analyses, by its name in the map."""
    from ontogeny.stages import PRODUCTS

    made = [*PRODUCTS, *(p for analysis in all_analyses().values() for p in analysis.products)]
    return {product.name: product for product in made}


def product(name: str) -> Product:
    """A product by its name in the map; InputError, with similar names, if there is none."""
    known = products()
    if name not in known:
        close = difflib.get_close_matches(name, known, 3) or sorted(known)
        raise InputError(f"{name}: no product has this name; similar ones are {', '.join(close)}")
    return known[name]


@cache
def stages() -> dict[str, Stage]:
    """Every stage that is declared, by its name."""
    from ontogeny.stages import STAGES

    made = [*STAGES, *(s for analysis in all_analyses().values() for s in analysis.stages)]
    return {stage.name: stage for stage in made}


@cache
def figures() -> dict[str, Figure]:
    """Every figure that is declared, by its name."""
    from ontogeny.stages import FIGURES

    made = [*FIGURES, *(f for analysis in all_analyses().values() for f in analysis.figures)]
    return {figure.name: figure for figure in made}


@cache
def columns(product: str) -> dict[str, str]:
    """Descriptions of the columns of a table; a * stands for the name of another column."""
    analysis = analysis_of(product)
    home = folder(analysis.stages[0].run) if analysis else Path(__file__).parent
    with (Path(__file__).parent / COLUMNS).open(encoding="utf-8") as file:
        every = yaml.safe_load(file)
    own = every
    if analysis and (home / COLUMNS).exists():
        own = yaml.safe_load((home / COLUMNS).read_text(encoding="utf-8"))
    return dict(every["common"] | own.get(product, {}))


def described(product: str, names: Iterable[str]) -> dict[str, str]:
    """Descriptions of some columns of a table, in their order; '' if one is not documented."""
    documented, found = columns(product), {}
    for column in names:
        patterns = (name for name in documented if fnmatchcase(column, name))
        name = column if column in documented else next(patterns, "")
        stem = column
        for part in name.split("*"):
            stem = stem.removeprefix(part).removesuffix(part)
        found[column] = documented.get(name, "").replace("*", stem)
    return found


@cache
def analysis_of(product: str) -> Analysis | None:
    """The analysis that makes a product, or None for the core stages'."""
    return next(
        (a for a in all_analyses().values() if product in (p.name for p in a.products)), None
    )


@cache
def stage_of(product: str) -> Stage | None:
    """The declared stage that makes a product."""
    return next((s for s in stages().values() if product in s.makes.values()), None)


def ahead(experiment: Any) -> tuple[list[str], list[str]]:
    """The analyses' remarks on their own files: lines that stop a run, and lines of advice."""
    told = [function(a.ahead)(experiment) for a in all_analyses().values() if a.ahead]
    stops, advice = (list(chain.from_iterable(lines)) for lines in zip(*told, strict=True))
    return stops, advice


def page() -> str:
    """The analyses, what each makes and draws, and its keys: docs/analyses.md."""
    lines = [
        "# Analyses",
        "",
        "Each analysis is a folder in src/ontogeny/analyses/. It runs if `analyses` lists it, "
        "and its",
        "name is also a target: `snakemake --cores 2 kinds`. `ontogeny analyses` prints this page.",
    ]
    for name, analysis in all_analyses().items():
        lines += ["", f"## {name}", textwrap.fill(analysis.about, 99), ""]
        for made in analysis.products:
            lines.append(f"- `{made.path}`: {made.about}")
        names = ", ".join(f"`{figure.name}` ({figure.label})" for figure in analysis.figures)
        lines.append(f"- figures: {names}")
        if analysis.section is not None:
            keys = ", ".join(f"`{name}.{key}`" for key in analysis.section.model_fields)
            lines.append(f"- keys: {keys}")
    return "\n".join(lines) + "\n"
