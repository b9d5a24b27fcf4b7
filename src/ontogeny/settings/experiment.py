"""A whole experiment: its core sections, the analyses' sections, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict, Field, create_model, field_validator

from ontogeny import registry
from ontogeny.declarations import function
from ontogeny.settings.base import AnalysisSection, Section, SettingsError, as_number
from ontogeny.settings.basis import Basis
from ontogeny.settings.sections import (
    Activations,
    Analysis,
    Crosscoder,
    Snapshots,
    Storage,
)
from ontogeny.settings.text import Corpus, Wheels

MODEL_SEED = "snapshots.pretrain.seed"
BASELINE = "baseline"  # the condition of replicates that change that key alone
S = TypeVar("S", bound=AnalysisSection)


class Settings(Section):
    """A whole experiment. `load` gives one that also has the analyses' sections."""

    model_config = ConfigDict(title="Settings")

    name: str = Field(
        ..., pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Folder under results/."
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="Device to compute on: auto, cpu, cuda or cuda:N.",
    )
    corpus: Corpus = Field(Corpus(wheels=Wheels()), description="Text and tokenizer.")
    snapshots: Snapshots = Field(..., description="The language model's snapshots.")
    activations: Activations = Field(
        ..., description="Activations: what is read from the snapshots."
    )
    basis: Basis = Field(Basis(), description="The principal subspace.")
    crosscoders: dict[str, Crosscoder] = Field(
        ..., min_length=1, description="Dictionaries to train, by name."
    )
    primary: str = Field(..., description="The crosscoder that the feature figures show.")
    analyses: list[str] = Field(
        ["dimensionality", "kinds", "contexts", "names"],
        description="Analyses to run in addition to the histories and the phases. Each is also "
        "a target.",
    )
    analysis: Analysis = Field(Analysis(), description="Thresholds of the tables.")
    storage: Storage = Field(Storage(), description="Where large and shared files are kept.")
    replicates: dict[str, dict[str, Any]] = Field(
        {},
        description="Variants of the experiment with other models: for each, by name, the keys "
        "that differ, such as snapshots.pretrain.seed (for the primary crosscoder's "
        "keys, crosscoders.PRIMARY.KEY). The targets `replicates` and `controls` "
        "train and analyse each in the same way (without random directions) under "
        "results/NAME.REPLICATE. A list of seeds makes one replicate per seed.",
    )

    @field_validator("replicates", mode="after")
    @classmethod
    def _one_for_each_seed(cls, given: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        expanded: dict[str, dict[str, Any]] = {}
        for name, changed in given.items():
            seeds = changed.get(MODEL_SEED)
            if not isinstance(seeds, list):
                expanded[name] = changed
                continue
            for seed in as_number(seeds, list[int]):
                expanded[f"{name}seed{seed}"] = changed | {MODEL_SEED: seed}
        return expanded

    def section(self, kind: type[S]) -> S:
        """The section of an analysis.

        Raises
        ------
        LookupError : the section is optional and was left out.
        """
        section = getattr(self, kind.key, None)
        if not isinstance(section, kind):
            raise LookupError(f"{kind.key}: not given")
        return section

    def _derived(self, names: Iterable[str]) -> dict[str, tuple[Crosscoder, dict[str, str]]]:
        """Dictionaries that analyses require, and where their keys are set."""
        made: dict[str, tuple[Crosscoder, dict[str, str]]] = {}
        for name in names:
            hook = registry.all_analyses()[name].crosscoders
            made |= function(hook)(self) if hook else {}
        return made

    @property
    def all_crosscoders(self) -> dict[str, Crosscoder]:
        """Every dictionary that can be trained, by name: `crosscoders`, and those of analyses."""
        derived = self._derived(registry.all_analyses())
        return self.crosscoders | {name: chosen for name, (chosen, _) in derived.items()}

    @property
    def crosscoders_to_train(self) -> dict[str, Crosscoder]:
        """The dictionaries of the default target, including those of the analyses in `analyses`."""
        derived = self._derived(self.analyses)
        return self.crosscoders | {name: chosen for name, (chosen, _) in derived.items()}

    def key_of(self, crosscoder: str, key: Literal["basis", "l0", "learning_rate"]) -> str:
        """The place where one of a dictionary's keys is set, for messages."""
        if crosscoder in self.crosscoders:
            return f"crosscoders.{crosscoder}.{key}"
        _, keys = self._derived(registry.all_analyses())[crosscoder]
        return keys.get(key, f"crosscoders.{self.primary}.{key}")

    def replicate(self, name: str) -> Settings:
        """The settings of a replicate; for an unknown name, with no key changed.

        Its pre-training has one thread, since as many replicates as there are cores run in
        parallel.

        Raises
        ------
        ValidationError : from pydantic, for an unknown key or an impossible value.
        SettingsError : a key belongs to something that is not a section.
        """
        given = self.model_dump(mode="json", exclude_unset=True)
        analyses = registry.all_analyses()
        given |= {
            "name": f"{self.name}.{name}",
            "crosscoders": {
                key: given["crosscoders"][key]
                for key, chosen in self.crosscoders.items()
                if chosen.train_decoder
            },
            "analyses": [
                n for n in self.analyses if n in analyses and analyses[n].in_replicates is not None
            ],
            "replicates": {},
        }
        for key, analysis in analyses.items():
            if analysis.in_replicates is None and analysis.optional:
                given[key] = None
            elif analysis.in_replicates and given.get(key) is not None:
                given[key] |= analysis.in_replicates
        changes = {"snapshots.pretrain.threads": 1} | self.replicates.get(name, {})
        for key, value in changes.items():
            *path, last = key.replace(".PRIMARY.", f".{self.primary}.").split(".")
            section: Any = given
            for part in path:
                section = section.setdefault(part, {}) if isinstance(section, dict) else None
            if not isinstance(section, dict):
                raise SettingsError(f"replicates.{name}.{key}: no such key; correct it")
            section[last] = value
        return whole().model_validate(given)


@cache
def whole() -> type[Settings]:
    """`Settings` with a section for each analysis that has keys."""
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
    """`WholeSettings`, for processes that receive pickled settings."""
    if name == "WholeSettings":
        return whole()
    raise AttributeError(name)
