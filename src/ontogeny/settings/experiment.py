"""A whole experiment: its sections together, and what follows from them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ontogeny.settings.derived import SAE, frontier_crosscoders
from ontogeny.settings.faults import faults
from ontogeny.settings.sections import (
    Activations,
    Analysis,
    AnalysisName,
    Basis,
    Circuits,
    Contexts,
    Corpus,
    Crosscoder,
    Frontier,
    Grader,
    Heads,
    PresenceTests,
    Pretrain,
    Section,
    SettingsError,
    Snapshots,
    Span,
    Storage,
    Wheels,
)


class Settings(Section):
    """A whole experiment."""

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
    analyses: list[AnalysisName] = Field(
        ["dimensionality", "kinds"],
        description="What is made beside histories and phases; each is a target by its name too.",
    )
    analysis: Analysis = Field(Analysis(), description="Thresholds of the tables.")
    contexts: Contexts = Field(Contexts(), description="What is shown of each feature.")
    frontier: Frontier | None = Field(
        None, description="Dictionaries of the fidelity frontier; null leaves it out."
    )
    heads: Heads = Field(Heads(), description="Attention heads and copying.")
    circuits: Circuits = Field(Circuits(), description="Tasks and the features behind them.")
    presence_tests: PresenceTests = Field(
        PresenceTests(), description="Does the norm mean presence?"
    )
    span: Span = Field(Span(), description="Context span, the complexity of a feature.")
    grader: Grader | None = Field(
        None, description="Grades complexity beside context span; null for none. It may cost money."
    )
    storage: Storage = Field(Storage(), description="Where large and shared files lie.")
    replicates: dict[str, dict[str, bool | int | float | str]] = Field(
        {},
        description="Further models: by name, the keys of snapshots.pretrain that differ. Each is "
        "trained and analysed alike (the primary crosscoder alone) under results/NAME.REPLICATE by "
        "the target `replicates`.",
    )

    @property
    def all_crosscoders(self) -> dict[str, Crosscoder]:
        """Every dictionary that can be trained, by name: `crosscoders`, and the frontier's.

        The frontier's are named frontier-F1024-k8 and, of the snapshot of step 1500 alone,
        sae-1500-F1024-k8; with lambda0.1 instead of k8 where λ is what sets the sparsity.
        """
        return self.crosscoders | frontier_crosscoders(self)

    @property
    def crosscoders_to_train(self) -> dict[str, Crosscoder]:
        """The dictionaries of the default target: the frontier's are where it is in `analyses`."""
        return self.all_crosscoders if "frontier" in self.analyses else self.crosscoders

    def key_of(self, crosscoder: str, key: Literal["basis", "learning_rate"]) -> str:
        """Where a dictionary's `basis` or `learning_rate` is set, for messages."""
        if crosscoder.startswith(SAE) and crosscoder not in self.crosscoders:
            return f"frontier.sae_{key}"
        return f"crosscoders.{crosscoder if crosscoder in self.crosscoders else self.primary}.{key}"

    def replicate(self, name: str) -> Settings:
        """The settings of a replicate: another model, all else as here.

        Its pre-training has one thread: as many replicates as there are cores run side by side.
        """
        assert self.snapshots.pretrain is not None  # a fault otherwise
        own = self.snapshots.pretrain.model_dump()
        pretrain = Pretrain.model_validate(own | {"threads": 1} | self.replicates[name])
        return self.model_copy(
            update={
                "name": f"{self.name}.{name}",
                "snapshots": self.snapshots.model_copy(update={"pretrain": pretrain}),
                "crosscoders": {self.primary: self.crosscoders[self.primary]},
                "analyses": [name for name in self.analyses if name != "frontier"],
                "frontier": None,
                "grader": None,
                "replicates": {},
            }
        )

    @model_validator(mode="after")
    def _possible(self) -> Settings:
        found = list(faults(self))
        if found:
            raise SettingsError("\n".join(found))
        return self
