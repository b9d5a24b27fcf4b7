"""Pre-training with the folder of states that experiments share.

This is separate from pretrain.py, so that a change here does not make models train again.
"""

from __future__ import annotations

from pathlib import Path

from ontogeny import cache, scratch
from ontogeny.corpus.build import Tokens
from ontogeny.settings import Settings
from ontogeny.snapshots import pretrain as stage


def pretrain(
    settings: Settings,
    tokens: Path,
    archive: Path,
    log: Path | None = None,
    until: int | None = None,
) -> None:
    """As pretrain.train, but takes states from `storage.cache` and stores the others there.

    Raises InputError if the snapshots are not trained here, or a shared state is damaged.
    """
    folder = scratch.expanded(settings.storage.cache) if settings.storage.cache else None
    wanted = stage.wanted_steps(settings, until)
    states = [archive / f"step{step}" for step in wanted]
    if folder is not None:
        digest = Tokens(tokens).digest
        key = cache.pretrain_key(stage.section(settings), settings.analysis, digest)
        with stage.claimed(archive, digest):
            cache.take(folder, key, states)
    stage.train(settings, tokens, archive, log, until)
    if folder is not None:
        cache.give(folder, key, states)
