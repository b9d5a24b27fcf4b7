"""Large files of an experiment that are stored elsewhere, on scratch.

`results/NAME/activations` and similar folders are links to `SCRATCH/NAME/activations`. Stages and
rules do not know where the files are, so moving them does not make anything run again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ontogeny.files import InputError
from ontogeny.settings import Settings
from ontogeny.settings import base as settings_base


def expanded(path: str) -> Path:
    """A configured folder, with ~ and $VARIABLES replaced."""
    return Path(settings_base.expanded(path))


def below(folder: Path) -> Iterator[Path]:
    """All files under an experiment's folder, including those in linked folders at its top."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        yield path
        if path.is_dir():
            yield from path.rglob("*")


def link(s: Settings, results: str | Path) -> None:
    """Put the experiment's folders that `storage.on_scratch` names on scratch.

    Raises
    ------
    InputError : one of them is a folder already, or links elsewhere; scratch cannot be written to.
    """
    if s.storage.scratch is None:
        return
    for name in s.storage.on_scratch:
        place = Path(results) / s.name / name
        target = (expanded(s.storage.scratch) / s.name / name).absolute()
        try:
            target.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"storage.scratch: cannot create {target} ({error.strerror}); choose another folder"
            ) from None
        if place.is_symlink():
            if place.resolve() != target.resolve():
                raise InputError(
                    f"storage.scratch: {place} links to {place.resolve()}, not to {target}; move "
                    "the files there, and remove the link"
                )
        elif place.exists():
            raise InputError(
                f"storage.scratch: {place} exists already; move it with `rmdir {target} && mv "
                f"{place} {target}`, or leave {name} out of storage.on_scratch"
            )
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(target)
