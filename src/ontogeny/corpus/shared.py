"""The corpus stage with the folder of tokens that experiments share.

This is separate from build.py, so that a change here does not make tokens again.
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
    """As build.build, but copies what `storage.cache` has, and stores new results there.

    `own` is the folder of the model's own tokenizer; None trains one. Raises InputError as
    build.build, or if a shared file is damaged.
    """
    corpus, pretrain = settings.corpus, settings.snapshots.pretrain is not None
    made = (tokens, tokenizer)
    folder = scratch.expanded(settings.storage.cache) if settings.storage.cache else None
    key = cache.corpus_key(corpus, own, pretrain) if folder else None
    if folder and key:
        for path in made:  # files left by other settings do not belong to the result
            path.unlink(missing_ok=True)
        if cache.take(folder, key, made):
            print(f"taken from {folder / key}", file=sys.stderr)
            return
    stage.build(corpus, wheels, own, tokens, tokenizer, pretrain)
    if folder and key:
        cache.give(folder, key, made)
