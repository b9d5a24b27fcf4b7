"""From the pre-training's archive to a snapshot's place in the experiment (no torch needed)."""

from __future__ import annotations

import shutil
from pathlib import Path

from ontogeny.files import InputError, whole

FILES = ("config.json", "model.safetensors")


def publish(archive: str | Path, step: int, folder: str | Path) -> None:
    """Copy a snapshot's config.json and model.safetensors out of the archive.

    Raises
    ------
    InputError : the archive does not hold the step.
    """
    source = Path(archive) / f"step{step}"
    if not source.is_dir():
        raise InputError(
            f"{source}: no such training state; run again with --forcerun pretrain to make it"
        )
    with whole(folder) as draft:
        draft.mkdir()
        for name in FILES:
            shutil.copyfile(source / name, draft / name)
