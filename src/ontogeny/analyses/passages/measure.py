"""Passages that every snapshot reads: held-out text from the middle of blocks, and task prompts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ontogeny import devices
from ontogeny.analyses.passages.settings import Passages
from ontogeny.corpus.build import Tokens
from ontogeny.corpus.pieces import Vocabulary, read_tokens
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.files import InputError, read_hdf5, write_table
from ontogeny.reading import tables
from ontogeny.reading.passages import Passage, of_ids
from ontogeny.reading.trace import run
from ontogeny.settings import Settings

HELD_OUT = "held-out text"


def measure(
    settings: Settings,
    crosscoder: Path,
    snapshots: Path,
    tokens: Path,
    tokenizer: Path,
    tasks: Path | None,
    passages: Path,
    features: Path,
) -> None:
    """Write what every snapshot computes on some passages.

    Parameters
    ----------
    snapshots : folder. tasks : prompts of `circuits`, or None.
    passages, features : Parquet, one row per token and snapshot, and one per active feature;
        their columns are in columns.yaml.

    Raises
    ------
    InputError : inputs are damaged, or the crosscoder was trained on other tokens.
    """
    section, data = settings.section(Passages), Tokens(tokens)
    trained = Crosscoder.load(crosscoder, devices.choose(settings.device))
    if trained.about.tokens != data.digest:
        raise InputError(f"{crosscoder}: trained on other tokens than {tokens}; train it again")
    every = [*_of_text(settings, data), *_of_tasks(settings, data, tasks)]
    chosen, top = [passage for _, passage in every], section.predictions
    found = run(settings, trained, snapshots, chosen, data.vocabulary, top)
    vocabulary = Vocabulary(read_tokens(tokenizer, data.vocabulary))
    texts = [text for passage in chosen for text in vocabulary.texts(passage.ids)]
    read = tables.tokens(found, texts, vocabulary)
    source = read["passage"].map(dict(enumerate(source for source, _ in every)))
    read.insert(1, "source", source)
    write_table(passages, read)
    active = tables.features(found, texts, tables.described({})).drop(columns=["name", "kind"])
    place = ["passage", "position", "step", "layer", "stream"]
    write_table(features, active.groupby(place, sort=False).head(section.features))


def _of_text(settings: Settings, data: Tokens) -> Iterator[tuple[str, Passage]]:
    """Passages from evenly spaced blocks; the tokens before them in the block are read as well."""
    section = settings.section(Passages)
    first, last = data.splits["held_out"]
    count = min(section.held_out, last - first)
    blocks = first + np.linspace(0, last - first - 1, count).round().astype(int)
    shown = min(section.length, data.context - 1)
    start = min(data.context // 2, data.context - shown)
    for block in data.take(np.unique(blocks)):
        yield HELD_OUT, of_ids(settings, data, block[: start + shown], start)


def _of_tasks(settings: Settings, data: Tokens, path: Path | None) -> Iterator[tuple[str, Passage]]:
    """The first clean prompts of each task that the last snapshot can do."""
    count = settings.section(Passages).prompts
    if path is None or not count:
        return
    with read_hdf5(path, "a file of tasks") as file:
        names, own = [str(name) for name in file.attrs["tasks"]], file.attrs.get("tokens")
        prompts = {
            name: (file[name]["clean"][:count], file[name]["length"][:count]) for name in names
        }
    if own != data.digest:
        raise InputError(f"{path}: made from other tokens than the crosscoder's; make them again")
    for name, (clean, length) in prompts.items():
        for ids, size in zip(clean, length, strict=True):
            before = int(ids[0] == data.end_of_text)
            yield name, of_ids(settings, data, ids[:size], before)
