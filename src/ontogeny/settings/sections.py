"""The sections of a configuration: every key with its type, its default and a description."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ontogeny.settings.base import PathText, Section, SettingsError, as_number, at_most

Mark = Literal["end_of_text", "first", "bos", "padding", "special"]
Stream = Literal["residual", "attention_out", "mlp_in", "mlp_out"]
SNAPSHOT_SOURCES = ("pretrain", "hub", "local")


class Pretrain(Section):
    """The language model and its pre-training."""

    width: int = Field(128, ge=8, le=10**6, description="Width of the residual stream, d.")
    layers: int = Field(2, ge=1, le=1000, description="Transformer blocks.")
    heads: int = Field(4, ge=1, description="Attention heads per block; must divide the width.")
    steps: int = Field(1500, ge=1, le=10**9, description="Optimiser steps.")
    batch_blocks: int = Field(16, ge=1, description="Blocks in a step.")
    rotary_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of each head's width with rotary positions.",
    )
    tied_embeddings: bool = Field(
        False, description="Whether the unembedding uses the same matrix as the token embedding."
    )
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw",
        description="adamw for all weights, or muon for the blocks' matrices (and adamw for the "
        "rest).",
    )
    learning_rate: float = Field(3e-3, gt=0, description="Peak learning rate (AdamW).")
    muon_learning_rate: float = Field(
        1e-2, gt=0, description="Peak learning rate of muon; its schedule is the same."
    )
    warmup_steps: int = Field(50, ge=0, description="Steps of linear warm-up.")
    final_learning_rate: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Final learning rate of the cosine decay, as a share of the peak.",
    )
    weight_decay: float = Field(0.01, ge=0, description="Weight decay of matrices.")
    doubled_blocks: float = Field(
        0.25,
        ge=0,
        le=1,
        description="Share of blocks that hold a passage twice, so that copying forms.",
    )
    doubled_distance: Literal["half", "varied"] = Field(
        "half",
        description="Distance between the two copies: always half a block, or varied, which "
        "requires induction.",
    )
    seed: int = Field(0, ge=0, description="Seed of the weights and of the batches.")
    data_seed: int | None = Field(
        None, ge=0, description="Seed of the batches; the seed of the weights if left out."
    )
    threads: int = Field(2, ge=1, description="Processor threads for the training.")

    @model_validator(mode="before")
    @classmethod
    def _warm_up_within(cls, given: Any) -> Any:
        return at_most(cls, given, "warmup_steps", "steps")


class Hub(Section):
    """Snapshots that are revisions of a repository of the Hugging Face hub."""

    repository: str = Field(
        ...,
        pattern=r"^[\w.-]+(/[\w.-]+)?$",
        description="Repository of the model, such as EleutherAI/pythia-160m.",
    )
    revision: str | None = Field(
        None,
        description="Pattern of the revisions' names: {step} stands for the training step, * "
        "for anything. Left out: the repository's preset "
        "(src/ontogeny/snapshots/presets.yaml).",
    )
    tokenizer: str | None = Field(
        None, description="Repository of the tokenizer, if it is not the model's (branch main)."
    )
    parallel: int = Field(4, ge=1, description="Files to download at the same time.")


class Local(Section):
    """Snapshots that are folders in Hugging Face format."""

    folders: PathText | list[PathText] = Field(
        ...,
        description="Pattern of folders or files, such as runs/mine/checkpoint-{step}. Or a "
        "list of folders to compare, such as a base model and a fine-tuned one; "
        "their steps are 0, 1, ….",
    )
    tokenizer: PathText | None = Field(
        None, description="Folder of the tokenizer; the last snapshot's when left out."
    )
    config: PathText | None = Field(
        None, description="A config.json, or a folder that has one, for checkpoints that have none."
    )
    base: PathText | None = Field(
        None, description="Folder of the base model, if the checkpoints are PEFT adapters."
    )

    @property
    def where(self) -> str:
        """The pattern or the folders, as a part of a sentence."""
        return self.folders if isinstance(self.folders, str) else ", ".join(self.folders)


class Snapshots(Section):
    """The snapshots: which steps, and where they come from: one of pretrain, hub and local."""

    steps: Literal["all"] | list[int] = Field(
        ...,
        description="Training steps in ascending order; 0 is the initial model. With local also "
        "'all': every step that is there.",
    )
    pretrain: Pretrain | None = Field(None, description="A language model that is trained here.")
    hub: Hub | None = Field(None, description="Revisions on the Hugging Face hub.")
    local: Local | None = Field(None, description="Folders, such as a Trainer's checkpoints.")
    remote_code: bool = Field(
        False, description="Allow Python code from the model's repository to run."
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

    def number(self, step: int) -> int:
        """The snapshot index of a training step, counted from 1."""
        return self.chosen.index(step) + 1


def _is_ids(given: Any) -> bool:
    return isinstance(given, dict) and set(given) == {"ids"} and isinstance(given["ids"], list)


class Activations(Section):
    """Which activations are kept, and how."""

    layers: list[int] = Field(..., min_length=1, description="Blocks to read, counted from 0.")
    streams: list[Stream] = Field(
        ["residual"],
        min_length=1,
        description="Streams to read: residual (after the block), attention_out, mlp_in, mlp_out.",
    )
    dtype: Literal["float16", "float32"] = Field(
        "float16",
        description="Type in which activations are stored; an overflow of float16 is an error.",
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Type in which the model runs; auto: bfloat16 on a GPU that has it, else "
        "float32.",
    )
    mode: Literal["cached", "streamed"] = Field(
        "cached",
        description="cached: training rows are on disk. streamed: all snapshots stay on the "
        "device and rows go straight to the trainer; only held-out rows are on disk.",
    )
    budget: float | None = Field(
        None,
        gt=0,
        description="cached: most GB of training rows on disk at a time. They are extracted in "
        "shards, each of which is deleted once it is projected. Left out: one shard.",
    )
    together: int | None = Field(
        None, ge=1, description="streamed: most trainings that share a pass. Left out: all."
    )
    keep: bool = Field(
        True,
        description="cached: false deletes training rows once they are projected and trained on.",
    )
    window: int = Field(
        262_144,
        ge=1,
        description="Rows that are shuffled together; the first window also sets the scales.",
    )
    scale: Literal["centred", "mean_norm"] = Field(
        "centred",
        description="What is scaled to √d at each site, over the first window of rows: centred, "
        "the mean norm of rows minus their mean; mean_norm, that of the rows themselves, as in "
        "the paper: a large mean at a snapshot then lowers all strengths there.",
    )
    leave_out: list[Mark | Annotated[int, Field(ge=0)]] = Field(
        ["end_of_text"],
        description="Positions that get no row: those of the end_of_text, bos or padding token, "
        "of all special tokens (special), of any other id (its number), or the "
        "first of each block (first).",
    )
    leave_out_norm: float | None = Field(
        None,
        gt=1,
        description="Leave out positions whose norm exceeds this many times the median at any "
        "snapshot, layer or stream; each snapshot is then run twice. null: none.",
    )
    seed: int = Field(0, ge=0, description="Seed of the order of the training rows.")

    @field_validator("leave_out", mode="before")
    @classmethod
    def _ids_among_names(cls, given: Any) -> Any:
        """`{ids: [5, 7]}` in the list means the ids themselves."""
        if not isinstance(given, list):
            return given
        parts = (each["ids"] if _is_ids(each) else [each] for each in given)
        return [as_number(member, int) for part in parts for member in part]


class Sites(Section):
    """A set of sites: every (snapshot, layer, stream) of the three lists' product."""

    layers: list[int] = Field(..., min_length=1, description="Layers, each in activations.layers.")
    streams: list[Stream] = Field(
        ["residual"], min_length=1, description="Streams, each in activations.streams."
    )
    snapshots: Literal["all"] | list[int] = Field(
        "all", description="Training steps, each in snapshots.steps, or 'all'."
    )


class Crosscoder(Section):
    """One sparse dictionary over sites, and its training."""

    inputs: Sites = Field(..., description="Sites that are read.")
    outputs: Sites | None = Field(
        None, description="Sites that are reconstructed; the inputs when left out."
    )
    basis: Literal["principal", "hybrid", "full"] = Field(
        "hybrid",
        description="Space of the training. hybrid: the encoder in the principal subspace and "
        "the decoder in all n·d dimensions, so that each snapshot can have its own "
        "gates and penalties. full: both in all dimensions. principal: both in the "
        "subspace. If there are `outputs`, the default is full.",
    )
    token_table: bool = Field(
        False,
        description="Subtract the current token's mean activation from each row first and add it "
        "back in the reconstruction: the dictionary explains what the token alone does not.",
    )
    scale: Literal["residual", "activations"] = Field(
        "residual",
        description="token_table: how sites are scaled. residual: the mean norm of the rows "
        "minus the table becomes √d. activations: as activations.scale says.",
    )
    features: int = Field(..., ge=1, description="Number of features, F.")
    activation: Literal["batch_topk", "jumprelu", "relu"] = Field(
        "batch_topk", description="batch_topk (with AuxK), jumprelu (tanh-quad), relu (L1)."
    )
    gate: Literal["feature", "snapshot"] = Field(
        "snapshot",
        description="snapshot: one gate per feature and site. feature: one gate for all sites, "
        "which cannot show when a feature appears. Left out: snapshot, or feature "
        "where only that is possible (relu, basis: principal, AuxK).",
    )
    k: int = Field(
        8, ge=1, description="batch_topk: mean number of active features per token and site."
    )
    k_start: int | None = Field(
        None,
        ge=1,
        description="batch_topk: k at the first step, which falls to `k` over the first 40% of "
        "the steps; null: k is constant.",
    )
    sparsity: float | None = Field(
        None,
        ge=0,
        description="Weight of the sparsity penalty, λ. Left out: 0.3, or 0.12 if the penalty is "
        "per_snapshot.",
    )
    penalty: Literal["pooled", "per_snapshot"] = Field(
        "pooled",
        description="jumprelu: pooled penalises the squared frequency of a feature over all "
        "snapshots together, as in the paper; per_snapshot penalises it at each snapshot "
        "separately, so that splitting a feature in time does not lower the penalty.",
    )
    l0: float | None = Field(
        None,
        gt=0,
        description="jumprelu: number of active features per token and site that λ is adjusted "
        "to after its warm-up; null: λ is constant.",
    )
    start_active: float | None = Field(
        32,
        gt=0,
        description="jumprelu: active features per token at the start, which sets the quantile "
        "at which each threshold begins. null: all begin at 0.1.",
    )
    refit: bool = Field(
        False,
        description="jumprelu: decoders whose gate is closed while another of the feature is "
        "open learn from the reconstruction error.",
    )
    bandwidth: float = Field(4.0, gt=0, description="jumprelu: ε of the straight-through estimate.")
    threshold_share: float = Field(
        0.125,
        gt=0,
        le=1,
        description="jumprelu: share of each batch that thresholds learn from.",
    )
    dead_after_rows: int = Field(
        100_000,
        ge=1,
        description="Rows without activity after which a feature is dead.",
    )
    aux_features: int | None = Field(
        None,
        ge=0,
        description="batch_topk, gate: feature: dead features that AuxK trains at a time; 0 is "
        "none. Left out: 128, or all if there are fewer.",
    )
    aux_k: int = Field(16, ge=1, description="batch_topk: dead features that a token may use.")
    aux_weight: float = Field(1 / 32, ge=0, description="batch_topk: weight of the AuxK loss.")
    center: bool = Field(
        True,
        description="Subtract each site's mean first, as part of b_dec; else b_dec starts at 0.",
    )
    train_decoder: bool = Field(
        True, description="false keeps the decoder's random directions: a baseline."
    )
    batch_rows: int = Field(1024, ge=1, description="Rows in a batch, B.")
    steps: int = Field(..., ge=1, description="Optimiser steps.")
    learning_rate: float = Field(1e-3, gt=0, description="Peak learning rate (Adam).")
    moments: Literal["float32", "compact"] = Field(
        "compact",
        description="Adam's moments: 8 bytes per weight, or 2 (bfloat16, a variance per feature).",
    )
    precision: Literal["highest", "high"] = Field(
        "high",
        description="Matrix products on a GPU: highest is float32, high is TF32 inside where the "
        "GPU has it. CPUs: float32.",
    )
    warmup: float = Field(
        0.02, ge=0, le=1, description="First share of the steps, with a linear warm-up."
    )
    decay: float = Field(
        0.2,
        ge=0,
        le=1,
        description="Last share of steps, in which the rate decays to 1/32.",
    )
    seeds: list[int] = Field([0, 1], min_length=1, description="One training each.")
    threads: int = Field(1, ge=1, description="Processor threads for one training, on each device.")
    devices: int = Field(
        1,
        ge=1,
        description="Processes that share one training, each with a share of the features and "
        "one GPU, if there are GPUs; with mode: streamed also a share of the snapshots. It changes "
        "results only by rounding.",
    )

    @model_validator(mode="before")
    @classmethod
    def _possible(cls, given: Any) -> Any:
        """The defaults of basis, gate and k, where other keys rule them out."""
        if not isinstance(given, dict):
            return given
        filled = dict(given)
        if given.get("outputs") is not None:
            filled.setdefault("basis", "full")
        one = given.get("activation") == "relu" or given.get("basis") == "principal"
        if one or given.get("aux_features"):
            filled.setdefault("gate", "feature")
        return at_most(cls, filled, "k", "features")

    @property
    def written(self) -> Sites:
        """The sites that are reconstructed."""
        return self.outputs or self.inputs

    @property
    def aux(self) -> int:
        """How many dead features AuxK trains at a time."""
        if self.activation != "batch_topk" or self.gate == "snapshot":
            return 0
        return min(128, self.features) if self.aux_features is None else self.aux_features

    @property
    def peak_sparsity(self) -> float:
        """λ after its warm-up."""
        if self.sparsity is not None:
            return self.sparsity
        return 0.12 if self.activation == "jumprelu" and self.penalty == "per_snapshot" else 0.3


class Analysis(Section):
    """Thresholds of the feature tables."""

    presence: float = Field(
        0.5, gt=0, lt=1, description="Normalised strength from which a feature is present."
    )
    absence: float = Field(
        0.35,
        gt=0,
        lt=1,
        description="Normalised strength below which it is absent again; at most `presence`.",
    )
    settled_cosine: float = Field(
        0.7,
        gt=0,
        lt=1,
        description="Cosine with its final direction from which a feature is settled.",
    )
    direction_floor: float = Field(
        0.1, gt=0, lt=1, description="Normalised strength below which a direction is not compared."
    )
    matched_cosine: float = Field(
        0.7,
        gt=0,
        lt=1,
        description="Cosine of stacked decoders from which two features count as matched.",
    )
    bootstrap: int = Field(
        1000, ge=10, description="Bootstrap samples, over features or over blocks."
    )
    spliced_blocks: int = Field(
        64, ge=1, description="Held-out blocks on which loss recovered is measured."
    )
    phase_blocks: int = Field(
        512, ge=1, description="Held-out blocks on which losses and KL are measured."
    )
    copying_blocks: int = Field(64, ge=1, description="Held-out passages of the copying measures.")
    seed: int = Field(
        0, ge=0, description="Seed of the bootstrap, the permutations and the copying passages."
    )

    @model_validator(mode="before")
    @classmethod
    def _absence_within(cls, given: Any) -> Any:
        return at_most(cls, given, "absence", "presence")


class Storage(Section):
    """Where to keep files that are large, or that several experiments share."""

    scratch: str | None = Field(
        None,
        min_length=1,
        description="Folder for large files that can be made again, such as /scratch/$USER; "
        "results/NAME then has links to SCRATCH/NAME. Left out: everything is under results/.",
    )
    on_scratch: list[Literal["activations", "basis", "state", "snapshots", "pretrain"]] = Field(
        ["activations", "basis", "state"],
        min_length=1,
        description="Folders of an experiment to keep on scratch: activations, basis (with "
        "projected rows), state (of unfinished trainings), snapshots, pretrain (training states).",
    )
    cache: str | None = Field(
        None,
        min_length=1,
        description="Folder in which experiments share tokens and snapshots trained here, each "
        "under a digest of what it depends on. Left out: each makes its own.",
    )
