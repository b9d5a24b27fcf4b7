"""Pre-training with the folder of states that experiments share.

Apart from pretrain.py, whose digest decides when a model is trained again: this code does not.
"""

from __future__ import annotations

from pathlib import Path

from ontogeny import cache, scratch
from ontogeny.corpus.build import Tokens
from ontogeny.files import InputError
from ontogeny.settings import Settings
from ontogeny.snapshots import pretrain as stage


def pretrain(settings: Settings, tokens: Path, archive: Path, log: Path | None = None) -> None:
    """As pretrain.train, with the states that `storage.cache` has; the others are put there.

    InputError where the snapshots are not trained here, or a shared state is damaged.
    """
    p, steps = settings.snapshots.pretrain, settings.snapshots.chosen
    if p is None:
        raise InputError("snapshots.pretrain: not given; these snapshots are not trained here")
    folder = scratch.expanded(settings.storage.cache) if settings.storage.cache else None
    if folder is None:
        stage.train(p, steps, settings.analysis, tokens, archive, log, settings.device)
        return
    states = [archive / f"step{step}" for step in sorted({0, *steps, p.steps})]
    digest = Tokens(tokens).digest
    key = cache.pretrain_key(p, settings.analysis, digest)
    with stage.claimed(archive, digest):
        cache.take(folder, key, states)
    stage.train(p, steps, settings.analysis, tokens, archive, log, settings.device)
    cache.give(folder, key, states)
