"""Damaged results: does every reader end with a line that names the file, or with right results?

    python -m benchmarks.damage results/NAME [--only KIND] [--seed 0] [--limit 120]

One file of each kind in a finished experiment is emptied, cut in half, shortened by its last byte,
and given ten flipped bits, in a copy of the experiment. `ontogeny verify` has to name it each time.
Then four readers try it, each in a process of its own (benchmarks.readers): the command that reads
it first, the Python interface, and both again with the digests set aside, as for results that have
none or for files that are too large to be compared. What can come out:

    line        one line for each fault, which names the file
    right       the same result as from the intact file
    verified    another result without an error, but `ontogeny verify` names the file
    silent      another result, and nothing names the file
    unnamed     a line that does not name the file
    traceback, crash, timeout

It ends with 1 if there is one of the last five, or a damage that `ontogeny verify` does not name.
Files that only Snakemake writes (benchmarks/) and notes beside the digests have no digests, so
`verify` is not asked about them. The table and the totals go to benchmarks/results/damage.json.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from benchmarks import readers
from ontogeny import digests, manifest, registry
from ontogeny.experiment import Experiment

RECORD = Path(__file__).parent / "results" / "damage.json"
GOOD = ("line", "right", "verified")
BY_ENDING = ("figures", "atlas", "benchmarks")  # folders of many files that are read alike
ASIDE = "digests-aside"
WITHOUT = ", no digests"


def flipped(data: bytes, seed: int = 0) -> bytes:
    """Ten bits, or all of a shorter file, none of which is flipped twice."""
    damaged = bytearray(data)
    for place in random.Random(seed).sample(range(8 * len(data)), min(10, 8 * len(data))):
        damaged[place // 8] ^= 1 << place % 8
    return bytes(damaged)


DAMAGES: dict[str, Callable[[bytes, int], bytes]] = {
    "empty": lambda data, seed: b"",
    "half": lambda data, seed: data[: len(data) // 2],
    "last byte": lambda data, seed: data[:-1],
    "ten bits": flipped,
}


def product_of(experiment: Experiment, path: Path) -> str:
    """The product that a file is or belongs to; '' if there is none."""
    known = registry.products()
    for each in (path, *path.parents):
        if each == experiment.folder:
            break
        name = experiment.identify(each).split(" ")[0]
        if name in known:
            return name
    return ""


def kinds(experiment: Experiment) -> dict[str, Path]:
    """One file of each kind, by the name of the kind: its product, and its name in a folder.

    Digits do not distinguish kinds. Empty files, logs and hidden files are left out.
    """
    found: dict[str, Path] = {}
    for path in sorted(experiment.files()):
        inside = path.relative_to(experiment.folder)
        if inside.parts[0] == "logs" or path.name.startswith(".") or not path.stat().st_size:
            continue
        product = product_of(experiment, path)
        if inside.parts[0] == digests.FOLDER:
            folder = (experiment.folder / inside.relative_to(digests.FOLDER)).with_suffix("")
            what = "of a folder" if folder.is_dir() else "of a file"
            label = f"record {what}" if path.suffix == ".json" else inside.as_posix()
        elif not product:
            label = inside.as_posix()
        elif registry.products()[product].path.count("/") == len(inside.parts) - 1:
            label = product
        elif product in BY_ENDING:
            label = f"{product}: *{path.suffix}"
        else:
            label = f"{product}: {path.name}"
        found.setdefault(re.sub(r"\d+", "N", label), path)
    return found


def put(path: Path, data: bytes, about: os.stat_result) -> None:
    """Write a new file with the times of the one that it replaces, which may have other links."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def _stat(path: Path) -> tuple[int, int, int]:
    about = path.stat()
    return about.st_size, about.st_mtime_ns, about.st_ino


class Trial:
    """A copy of an experiment whose files are damaged one at a time, and mended again.

    Parameters
    ----------
    limit : seconds that a reader may take. original : the experiment, which is only read.
    """

    def __init__(self, original: Path, folder: Path, seed: int, limit: float) -> None:
        self.original = original
        shutil.copytree(original, folder, symlinks=False)
        self.experiment = Experiment.open(folder)
        self.seed, self.limit = seed, limit
        self.kinds = kinds(self.experiment)
        self._known = digests.known(folder)
        self._times = self._stats()
        self._right: dict[str, Any] = {}

    def _stats(self) -> dict[Path, tuple[int, int, int]]:
        return {path: _stat(path) for path in self.experiment.files()}

    def _restore(self, but: Path) -> dict[str, Any]:
        """Undo what a reader has written; returns it, by path, as digests of its parts."""
        written: dict[str, Any] = {}
        now, folder = self._stats(), self.experiment.folder
        for path in sorted(now.keys() | self._times.keys()):
            if path == but or now.get(path) == self._times.get(path):
                continue
            inside = path.relative_to(folder)
            if path in now:
                written |= readers.contents(path, inside)
                path.unlink()
                if not any(path.parent.iterdir()):
                    path.parent.rmdir()
            if (self.original / inside).exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self.original / inside, path)
                self._times[path] = _stat(path)
        return written

    def _read(self, how: str, read: Callable[[], Any], path: Path) -> readers.Reply:
        """What a reader makes of the copy as it is, which is then as it was before."""
        folder = self.experiment.folder
        aside = folder.parent / ASIDE
        if how.endswith(WITHOUT):
            (folder / digests.FOLDER).rename(aside)
        try:
            reply = readers.forked(read, self.limit)
        finally:
            if aside.exists():
                shutil.rmtree(folder / digests.FOLDER, ignore_errors=True)
                aside.rename(folder / digests.FOLDER)
        written = self._restore(path)
        return reply._replace(value=[reply.value, written]) if reply.kind == "value" else reply

    def _compared(self, path: Path) -> bool:
        """Whether `ontogeny verify` knows a file: it has a digest, or is a record of digests."""
        return (path.suffix == ".json" and digests.FOLDER in path.parts) or path in self._known

    def _named(self, path: Path) -> bool:
        """Whether `ontogeny verify` says that a file is damaged."""
        record = self.experiment.folder / digests.FOLDER
        wanted = str(path)
        if path.is_relative_to(record):  # what the record is about is named
            wanted = str((self.experiment.folder / path.relative_to(record)).with_suffix(""))
        return any(wanted in line for line in manifest.verify(self.experiment.folder).faults)

    def rows(self, kind: str, damages: dict[str, Any] = DAMAGES) -> Iterator[dict[str, Any]]:
        """The outcome of each damage to a kind of file: kind, damage, reader, outcome, told."""
        path = self.kinds[kind]
        product = product_of(self.experiment, path)
        data, about = path.read_bytes(), path.stat()
        every = readers.of(self.experiment, product, path)
        if path.is_relative_to(self.experiment.folder / digests.FOLDER):
            every = {how: read for how, read in every.items() if not how.endswith(WITHOUT)}
        try:
            for damage, change in damages.items():
                changed = change(data, self.seed)
                if changed == data:
                    continue
                put(path, changed, about)
                named = self._named(path)
                row = {"kind": kind, "damage": damage}
                if self._compared(path):
                    yield row | {"reader": "verify", "outcome": "line" if named else "silent"}
                for how, read in every.items():
                    put(path, changed, about)
                    reply = self._read(how, read, path)
                    if reply.kind == "value" and (how, kind) not in self._right:
                        put(path, data, about)
                        self._right[how, kind] = self._read(how, read, path)
                    outcome = self._judge(reply, self._right.get((how, kind)), path, named)
                    told = "" if outcome == "right" else reply.told[-600:]
                    yield row | {"reader": how, "outcome": outcome, "told": told}
        finally:
            put(path, data, about)
            self._times[path] = _stat(path)

    def _judge(
        self, reply: readers.Reply, right: readers.Reply | None, path: Path, named: bool
    ) -> str:
        if reply.kind == "value":
            assert right is not None
            if right.kind != "value":
                raise RuntimeError(f"the intact {path} cannot be read: {right.told}")
            return "right" if reply.value == right.value else "verified" if named else "silent"
        if reply.kind != "line":
            return reply.kind
        names = {str(path)}
        if registry.products().get(product_of(self.experiment, path.parent)):
            names.add(f"{path.parent}:")  # a folder that is made, and made again, as one
        return "line" if any(name in reply.told for name in names) else "unnamed"


def table(rows: list[dict[str, Any]]) -> str:
    """Outcomes as text: a line for each kind of file and reader, a column for each damage."""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        lines.setdefault((row["kind"], row["reader"]), {})[row["damage"]] = row["outcome"]
    head = f"{'kind':<34}{'reader':<24}" + "".join(f"{damage:<11}" for damage in DAMAGES)
    body = [
        f"{kind:<34}{how:<24}" + "".join(f"{found.get(damage, '-'):<11}" for damage in DAMAGES)
        for (kind, how), found in lines.items()
    ]
    return "\n".join([head, *body])


def bad(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with an outcome that is not allowed."""
    return [row for row in rows if row["outcome"] not in GOOD]


def totals(rows: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Numbers of outcomes, by reader."""
    found: dict[str, Counter[str]] = {}
    for row in rows:
        found.setdefault(row["reader"], Counter())[row["outcome"]] += 1
    return {how: dict(counts) for how, counts in found.items()}


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--only", multiple=True, help="Kinds of files, such as tokens; default: all.")
@click.option("--seed", default=0, show_default=True, help="Decides which bits are flipped.")
@click.option("--limit", default=120.0, show_default=True, help="Seconds for each reader.")
@click.option("--sample", type=int, help="Pairs of kind and damage, drawn at random; default: all.")
@click.option("--write/--no-write", default=True, help="Whether to write the record.")
def main(
    folder: Path, only: tuple[str, ...], seed: int, limit: float, sample: int | None, write: bool
) -> None:
    """Damage one file of each kind in a copy of FOLDER, and report how its readers end."""
    readers.begin()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as home:
        trial = Trial(folder.resolve(), Path(home) / folder.resolve().name, seed, limit)
        pairs = [(k, d) for k in trial.kinds for d in DAMAGES if not only or k in only]
        if sample is not None:
            pairs = random.Random(seed).sample(pairs, min(sample, len(pairs)))
        for kind in dict.fromkeys(kind for kind, _ in pairs):
            own = list(trial.rows(kind, {d: DAMAGES[d] for k, d in pairs if k == kind}))
            rows += own
            click.echo(table(own).partition("\n")[2])
            for row in bad(own):
                click.echo(f"  {row}")
    found = {
        "experiment": folder.resolve().name,
        "seed": seed,
        "kinds": len({row["kind"] for row in rows}),
        "totals": totals(rows),
        "rows": [{k: v for k, v in row.items() if k != "told"} for row in rows],
    }
    if write and not only and sample is None:
        RECORD.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    click.echo(f"{found['kinds']} kinds of files: {json.dumps(found['totals'])}")
    raise SystemExit(bool(bad(rows)))


if __name__ == "__main__":
    main()
