"""A whole experiment: its core sections, the analyses' own, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict, Field, create_model

from ontogeny import registry
from ontogeny.declarations import function
from ontogeny.settings.base import AnalysisSection, Section
from ontogeny.settings.sections import (
    Activations,
    Analysis,
    Basis,
    Corpus,
    Crosscoder,
    Pretrain,
    Snapshots,
    Storage,
    Wheels,
)

S = TypeVar("S", bound=AnalysisSection)


class Settings(Section):
    """A whole experiment. `load` gives one that also has the analyses' sections."""

    model_config = ConfigDict(title="Settings")

    name: str = Field(
        ..., pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Folder under results/."
    )
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N."
    )
    corpus: Corpus = Field(Corpus(wheels=Wheels()), description="Text and tokenizer.")
    snapshots: Snapshots = Field(..., description="The language model's snapshots.")
    activations: Activations = Field(..., description="What is read from it.")
    basis: Basis = Field(Basis(), description="The principal subspace.")
    crosscoders: dict[str, Crosscoder] = Field(
        ..., min_length=1, description="Dictionaries to train, by name."
    )
    primary: str = Field(..., description="The crosscoder that the feature figures show.")
    analyses: list[str] = Field(
        ["dimensionality", "kinds"],
        description="What is made beside histories and phases; each is a target by its name too.",
    )
    analysis: Analysis = Field(Analysis(), description="Thresholds of the tables.")
    storage: Storage = Field(Storage(), description="Where large and shared files lie.")
    replicates: dict[str, dict[str, bool | int | float | str]] = Field(
        {},
        description="Further models: by name, the keys of snapshots.pretrain that differ. Each is "
        "trained and analysed alike (the primary crosscoder alone) under results/NAME.REPLICATE by "
        "the target `replicates`.",
    )

    def section(self, kind: type[S]) -> S:
        """The section of an analysis.

        Raises
        ------
        LookupError : it is one that may be left out, and it is.
        """
        section = getattr(self, kind.key, None)
        if not isinstance(section, kind):
            raise LookupError(f"{kind.key}: not given")
        return section

    def _derived(self, names: Iterable[str]) -> dict[str, tuple[Crosscoder, dict[str, str]]]:
        """Dictionaries that analyses ask for by themselves, and where their keys are set."""
        made: dict[str, tuple[Crosscoder, dict[str, str]]] = {}
        for name in names:
            hook = registry.all_analyses()[name].crosscoders
            made |= function(hook)(self) if hook else {}
        return made

    @property
    def all_crosscoders(self) -> dict[str, Crosscoder]:
        """Every dictionary that can be trained, by name: `crosscoders`, and the analyses' own."""
        derived = self._derived(registry.all_analyses())
        return self.crosscoders | {name: chosen for name, (chosen, _) in derived.items()}

    @property
    def crosscoders_to_train(self) -> dict[str, Crosscoder]:
        """The dictionaries of the default target: an analysis's own where it is in `analyses`."""
        derived = self._derived(self.analyses)
        return self.crosscoders | {name: chosen for name, (chosen, _) in derived.items()}

    def key_of(self, crosscoder: str, key: Literal["basis", "l0", "learning_rate"]) -> str:
        """Where one of a dictionary's keys is set, for messages."""
        if crosscoder in self.crosscoders:
            return f"crosscoders.{crosscoder}.{key}"
        _, keys = self._derived(registry.all_analyses())[crosscoder]
        return keys.get(key, f"crosscoders.{self.primary}.{key}")

    def replicate(self, name: str) -> Settings:
        """The settings of a replicate: another model, all else as here.

        Its pre-training has one thread: as many replicates as there are cores run side by side.
        """
        assert self.snapshots.pretrain is not None  # a fault otherwise
        own = self.snapshots.pretrain.model_dump()
        pretrain = Pretrain.model_validate(own | {"threads": 1} | self.replicates[name])
        analyses = registry.all_analyses()
        changed: dict[str, Any] = {
            "name": f"{self.name}.{name}",
            "snapshots": self.snapshots.model_copy(update={"pretrain": pretrain}),
            "crosscoders": {self.primary: self.crosscoders[self.primary]},
            "analyses": [n for n in self.analyses if analyses[n].in_replicates is not None],
            "replicates": {},
        }
        for key, analysis in analyses.items():
            section = getattr(self, key, None)
            if analysis.in_replicates is None and analysis.optional:
                changed[key] = None
            elif analysis.in_replicates and section is not None:
                changed[key] = section.model_copy(update=dict(analysis.in_replicates))
        return self.model_copy(update=changed)


@cache
def whole() -> type[Settings]:
    """`Settings` with a section for each analysis that has keys of its own."""
    sections: dict[str, Any] = {}
    for name, analysis in registry.all_analyses().items():
        kind = analysis.section
        if kind is None:
            continue
        if analysis.optional:
            sections[name] = (kind | None, Field(None, description=analysis.about))
        else:
            sections[name] = (kind, Field(kind(), description=analysis.about))
    about: dict[str, Any] = {"__module__": __name__, "__doc__": "A whole experiment."}
    return create_model("WholeSettings", __base__=Settings, **about, **sections)


def __getattr__(name: str) -> Any:
    """`WholeSettings`, for processes that are handed settings pickled."""
    if name == "WholeSettings":
        return whole()
    raise AttributeError(name)
