"""What a stage declares about itself: which products it reads and makes, its settings, its cost.

Rules, commands, `ontogeny plan`, the configuration's schema and the report are derived from these
declarations. A stage's function takes exactly what is declared, by name: the paths of what it reads
and makes, and `settings` if it has such a parameter. Nothing here imports anything heavy, and
functions are named as "package.module:function", so that reading the declarations is cheap and a
change of a declaration does not change what a stage computes.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Scope = Literal["experiment", "crosscoder", "primary", "compared"]
"""What a stage runs for: once for the experiment; for any crosscoder on request; for the primary
one; or once for all that have feature histories (each argument is then a list with one entry per
crosscoder, and the function also gets their `names`)."""


@dataclass(frozen=True)
class Product:
    """A file or folder that one stage makes and others read.

    Attributes
    ----------
    name : in the map, for `Experiment.path` and the declarations.
    path : below the experiment's folder, with {crosscoder}, {seed}, {step} and the like.
    about : what it is. The columns of a table are described in columns.yaml, in the declaration's
        folder, under the product's name.
    """

    name: str
    path: str
    about: str = ""


@dataclass(frozen=True)
class Optional:
    """A product that is read if the experiment has it; otherwise the argument is None.

    Attributes
    ----------
    when : the product whose presence decides, if it is another one.
    """

    product: str
    when: str = ""


@dataclass(frozen=True)
class Source:
    """The input of a stage for one of its arguments.

    Attributes
    ----------
    files : what the workflow watches. argument : the value for the function.
    """

    files: list[Path]
    argument: Any


@dataclass(frozen=True)
class Cost:
    """The cost of a job that no formula models, as sums of scales times coefficients.

    Each is scale → coefficient, such as {"active features * kinds.permutations": 4e-7}; scales are
    those of ontogeny.cost.scales, dotted keys of the settings, and products of them. The numbers
    are measured; `python -m benchmarks.rates` compares them with a finished experiment.

    Attributes
    ----------
    seconds : on one thread of the machine that devices.yaml calls `measured`, without starting the
        process; on a device, those for operations ("forward", "encoding" ...) change.
    memory : most bytes besides those of the process. disk : bytes of the files that it makes.
    torch : whether the process imports it.
    """

    seconds: Mapping[str, float] = field(default_factory=dict)
    memory: Mapping[str, float] = field(default_factory=dict)
    disk: Mapping[str, float] = field(default_factory=dict)
    torch: bool = True


@dataclass(frozen=True)
class Stage:
    """A step of the workflow: one rule, one command, one function.

    Attributes
    ----------
    name : of the rule, the command, its log and its benchmark.
    run : the function, "package.module:function".
    about : one sentence, the command's help.
    reads : argument → product, Optional, or a function of the experiment if no product fits.
    makes : argument → product.
    settings : dotted keys whose values the function uses; a change of one runs the stage again.
    gpu : whether it uses the device of the configuration.
    core : whether it belongs to the core of the workflow, not to an analysis.
    local : whether it takes seconds, so that a cluster's login node runs it.
    when : dotted key that has to be set for the stage to exist, such as "complexity.grader".
    scratch : argument → folder of the experiment that the stage keeps for itself between runs.
    files : files other than code that affect the result, by their names in the package's folder.
    """

    name: str
    run: str
    about: str
    reads: Mapping[str, str | Optional | Callable[..., Source]]
    makes: Mapping[str, str]
    settings: Sequence[str] = ()
    scope: Scope = "crosscoder"
    gpu: bool = True
    local: bool = False
    core: bool = False
    when: str = ""
    scratch: Mapping[str, str] = field(default_factory=dict)
    files: Sequence[str] = ()
    cost: Cost = Cost()

    @property
    def module(self) -> str:
        """The module of the function, whose digest decides whether the stage runs again."""
        return self.run.partition(":")[0]

    @property
    def rule(self) -> str:
        """The name of its rule; for an analysis, its own name is also a target."""
        return self.name if self.core else f"measure_{self.name}"


@dataclass(frozen=True)
class Figure:
    """A figure: PDF, PNG and a CSV of the numbers drawn; its caption is NAME.rst next to its code.

    Its module may have `finding(table)`, which turns the table of its CSV into the sentence for the
    figure's title and its text.

    Attributes
    ----------
    run : the function, which takes the arguments of `reads`, and `output`, a path without ending.
    label : in the report, below `category`.
    """

    name: str
    run: str
    category: str
    label: str
    reads: Mapping[str, str | Optional | Callable[..., Source]]
    settings: Sequence[str] = ()
    scope: Scope = "primary"

    @property
    def module(self) -> str:
        """The module of the function."""
        return self.run.partition(":")[0]


@dataclass(frozen=True)
class Analysis:
    """An analysis, from whose declaration its rules, commands and keys are derived.

    Attributes
    ----------
    name : in `analyses`, as a target of the workflow, and as the key of its settings.
    about : one sentence for the list in the docs.
    section : the class of its section of the settings; None if it has no keys.
    optional : whether the section may be left out, which leaves the analysis out.
    histories : whether it needs a primary crosscoder with feature histories.
    numbers : function(settings, Experiment) → dict for summary.json.
    faults : function(settings) → lines, one for each impossible combination of settings.
    ahead : function(Experiment) → two lists of lines about its own files, shown before the first
        job: reasons that stop a run, and advice.
    crosscoders : function(settings) → further dictionaries to train, by name; each with the place
        where its keys are set, for messages, if that is not crosscoders.PRIMARY.
    in_replicates : keys of its section that differ in replicates; with None, replicates do without
        it.
    """

    name: str
    about: str
    stages: Sequence[Stage]
    figures: Sequence[Figure]
    products: Sequence[Product] = ()
    section: Any = None
    optional: bool = False
    histories: bool = True
    numbers: str = ""
    faults: str = ""
    ahead: str = ""
    crosscoders: str = ""
    in_replicates: Mapping[str, Any] | None = field(default_factory=dict)


def function(name: str) -> Callable[..., Any]:
    """The function with the name "package.module:function"."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def folder(name: str) -> Path:
    """The folder of the module of "package.module:function", without importing it."""
    package = importlib.import_module(name.partition(":")[0].rpartition(".")[0])
    assert package.__file__ is not None
    return Path(package.__file__).parent
