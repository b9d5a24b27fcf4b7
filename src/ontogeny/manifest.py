"""Whether the files of an experiment are as they were written.

Stages check what they read before they begin, and `ontogeny verify` checks everything. Each fault
is one line: the file, what is wrong with it, and the command that makes it again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ontogeny import digests, registry
from ontogeny.activations.sites import STACK
from ontogeny.files import InputError, one_line, write_json
from ontogeny.scratch import below

MOST = 1 << 31  # bytes up to which stages compute digests; larger files have some per chunk
UNKEPT = ("trained_mark",)  # empty, made by Snakemake itself
KEPT_BETWEEN = (
    "state",
    "stream_state",
    "archive",
)  # kept by jobs for later ones, which remove them


class Verdict(NamedTuple):
    """A line for each fault, numbers of files and bytes compared, and files without a digest."""

    faults: list[str]
    files: int
    size: int
    unknown: list[Path]


def _pattern(product: str) -> str:
    path = re.escape(registry.products()[product].path)
    return re.sub(r"\\{\w+\\}", "[^/]+", path)


def _made_as(name: str, products: Iterable[str]) -> str | None:
    """The product that a file in an experiment's folder is, or belongs to, by its name."""
    for product in products:
        if re.fullmatch(_pattern(product), name):
            return product
    return None


def mend(path: Path, experiment: Path) -> str:
    """How to make a file of an experiment again."""
    name = path.relative_to(experiment)
    if str(name) == registry.products()["config"].path:
        return "run the experiment again to restore it"
    if any(re.match(_pattern(product), str(name)) for product in KEPT_BETWEEN):
        return f"delete {path.parent}; it is made again when it is needed"
    pieces = [str(piece) for piece in (name, *name.parents)]
    in_folder = name.parts[0] == registry.products()["figures"].path
    made = [] if in_folder else [piece for piece in pieces if _made_as(piece, registry.products())]
    run = f"results/{experiment.absolute().name}"
    target = f"{run}/{(made or pieces)[0]}"
    return f"`snakemake --cores 2 --configfile {run}/config.yaml --force {target}` makes it again"


def lines(path: Path, most: int | None = None) -> Iterator[str]:
    """A line for each file, in a file or folder, that is not as it was written."""
    experiment = digests.home(path)
    if experiment is not None:
        for file, wrong in digests.faults(path, most):
            yield f"{file}: damaged: {wrong}; {mend(file, experiment)}"


def check(*given: Any) -> None:
    """Raise InputError, one line per file, unless the given files are as they were written.

    A stack refers to the rows in its folder's files, which are checked as well. Missing files are
    not reported; whoever reads them will do so.

    Parameters
    ----------
    given : paths, also in lists and dictionaries.
    """
    wanted: dict[Path, None] = {}
    for path in _flat(given):
        wanted[path] = None
        if path.name == STACK:
            wanted |= dict.fromkeys(sorted(path.parent.glob("step*[0-9].h5")))
    wrong = [line for path in wanted if path.exists() for line in lines(path, MOST)]
    if wrong:
        raise InputError("\n".join(wrong))


def _flat(given: Any) -> Iterator[Path]:
    if isinstance(given, str | Path):
        yield Path(given)
    else:
        for each in given.values() if isinstance(given, dict) else given:
            yield from _flat(each)


def damaged(experiment: Path) -> Iterator[str]:
    """A line for each file of an experiment that is not as it was written, or cannot be opened."""
    known = digests.known(experiment)
    for path in below(experiment):
        if path.is_file() and path.relative_to(experiment).parts[0] != digests.FOLDER:
            wrong = digests.fault(path, known[path][0], MOST) if path in known else unreadable(path)
            if wrong:
                yield f"{path}: damaged: {wrong}; {mend(path, experiment)}"


def unreadable(path: Path) -> str:
    """Why a file cannot be opened as the type in its name; '' if it can."""
    try:
        if path.suffix == ".h5":
            import h5py

            h5py.File(path, "r").close()
        elif path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            load_file(path)
        elif path.suffix in (".parquet", ".csv"):
            import pandas as pd

            (pd.read_csv if path.suffix == ".csv" else pd.read_parquet)(path)
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
    except Exception as error:
        return one_line(error, 160)
    return ""


def verify(experiment: Path, gone: Iterable[str] = ()) -> Verdict:
    """Compare every file of an experiment with what was written.

    Parameters
    ----------
    gone : products that are removed after use, so they may be missing.

    Raises
    ------
    InputError : no digests were recorded for the folder's files.
    """
    may_go = {*KEPT_BETWEEN, *gone}
    if not (experiment / digests.FOLDER).is_dir():
        raise InputError(
            f"{experiment}: no digests were recorded here; run the experiment again to record them"
        )
    faults, files, size, known = [], 0, 0, digests.known(experiment)
    for path, (digest, _) in known.items():
        wrong = digests.fault(path, digest)
        name = str(path.relative_to(experiment))
        if wrong == "missing" and any(re.match(_pattern(product), name) for product in may_go):
            continue
        if wrong:
            faults.append(f"{path}: {wrong}; {mend(path, experiment)}")
        files, size = files + 1, size + digest.size
    for record, written in digests.unreadable(experiment):
        wrong = f"not compared, because the record of its digests, {record}, is damaged"
        inside = next(iter(below(written)), written) if written.is_dir() else written
        faults.append(f"{written}: {wrong}; {mend(inside, experiment)}")
    products = [p for p in registry.products() if p not in UNKEPT]
    there = (p for p in below(experiment) if p.is_file() and p not in known)
    unknown = [p for p in there if _made_as(str(p.relative_to(experiment)), products)]
    return Verdict(faults, files, size, unknown)


def copied(experiment: Path) -> str:
    """Advice for a copy of results whose files have lost their times."""
    config = experiment / registry.products()["config"].path
    return (
        f"{experiment}: copied without the times of its files, so everything would run again; if "
        f"nothing has changed since, `snakemake --cores 1 --touch --configfile {config}` keeps "
        "it, and --forceall makes everything again (`cp -a` and `rsync -a` keep the times)"
    )


def gather(experiment: Path, output: Path) -> None:
    """Write one table of all digests: name → size in bytes and XXH3."""
    table = {
        str(path.relative_to(experiment)): {"size": digest.size, "xxh3": digest.xxh3}
        for path, (digest, _) in sorted(digests.known(experiment).items())
        if path != output and path.exists()
    }
    write_json(output, {"digest": "XXH3, 128 bits (xxhsum -H2)", "files": table})
