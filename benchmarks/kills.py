"""A run that is killed a hundred times: does it end with the bytes of an unbroken run?

    python -m benchmarks.kills [--kills 100] [--seed 0] [--experiment tests/tiny.yaml]

The experiment runs once unbroken. Then it runs beside that, and each attempt is ended by SIGKILL,
SIGTERM or SIGINT after a random time, sent to Snakemake alone, to Snakemake and all its jobs, or to
one job. When an attempt has finished before its signal came, its files are compared with the
unbroken run's (`benchmarks.digests`) and the experiment begins again from nothing, until all kills
are spent; the last attempt is left to finish. Times, logs, versions and the digests beside the
files, which hold their times, are not compared. One row per kill, and what was found, go to
benchmarks/results/kills.json.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
import psutil
import yaml

from benchmarks.digests import differences, record

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "benchmarks" / "results" / "kills.json"
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
TO = ("snakemake", "all", "one job")
# Seconds within which a run that was asked to end has to be gone.
PATIENCE = 300


class Trial:
    """An experiment in a folder of its own, started as often as it takes."""

    def __init__(self, folder: Path, experiment: Path) -> None:
        self.folder = folder
        self.results = folder / "results" / yaml.safe_load(experiment.read_text())["name"]
        self.log = folder / "said.txt"
        folder.mkdir(parents=True, exist_ok=True)
        downloads = ROOT / "results" / "downloads"
        if downloads.exists() and not (folder / "results" / "downloads").exists():
            shutil.copytree(downloads, folder / "results" / "downloads")
        self.words = ["snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2",
                      "--configfile", str(experiment.resolve())]  # fmt: skip

    def start(self) -> subprocess.Popen[bytes]:
        """A run in a session of its own, which Ctrl-C would end."""
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT / "src"),
        }
        with self.log.open("wb") as log:
            return subprocess.Popen(
                self.words,
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )

    def finish(self) -> None:
        """Run until the end; raises RuntimeError, with what was printed, where that fails."""
        if self.start().wait():
            raise RuntimeError(self.log.read_text(errors="replace")[-4000:])

    def begin_again(self) -> None:
        """As if nothing had run."""
        shutil.rmtree(self.results)
        shutil.rmtree(self.folder / ".snakemake")


def contents(results: Path) -> dict[str, dict[str, str]]:
    """Digests of all files but those that hold times."""
    return {
        name: parts
        for name, parts in record(results).items()
        if not name.startswith("digests/") and name != "manifest.json"
    }


def kill(run: subprocess.Popen[bytes], number: signal.Signals, to: str, chance: random.Random):
    """Send a signal, and wait until what received it is gone."""
    snakemake = psutil.Process(run.pid)
    jobs = snakemake.children(recursive=True)
    told = {"snakemake": [snakemake], "all": [snakemake, *jobs]}.get(to)
    if told is None:
        told = [chance.choice(jobs)] if jobs else [snakemake]
    for process in told:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
    # A job that was killed alone fails its run, which waits for the jobs beside it.
    run.wait(timeout=PATIENCE)


def trial(folder: Path, experiment: Path, kills: int, seed: int, longest: float) -> dict[str, Any]:
    """Run unbroken, then broken, and compare."""
    chance = random.Random(seed)
    unbroken, broken = Trial(folder / "unbroken", experiment), Trial(folder / "broken", experiment)
    since = time.monotonic()
    unbroken.finish()
    expected = contents(unbroken.results)
    click.echo(f"unbroken: {time.monotonic() - since:.0f} s, {len(expected)} files")
    rows: list[dict[str, Any]] = []
    whole, unequal = 0, []

    def compare() -> None:
        nonlocal whole
        whole += 1
        unequal.extend(differences(expected, contents(broken.results)))
        unequal.extend(f"{path}: left behind" for path in broken.results.rglob("*.part"))
        click.echo(f"finished {whole} times; {len(unequal)} files differ")

    while len(rows) < kills:
        number, to = chance.choice(SIGNALS), chance.choice(TO)
        after = chance.uniform(0.5, longest)
        run = broken.start()
        try:
            code = run.wait(timeout=after)
        except subprocess.TimeoutExpired:
            since = time.monotonic()
            kill(run, number, to, chance)
            said = broken.log.read_text(errors="replace")
            rows.append(
                {
                    "signal": number.name,
                    "to": to,
                    "after_seconds": round(after, 1),
                    "ended_in_seconds": round(time.monotonic() - since, 1),
                    "code": run.returncode,
                    "traceback": "Traceback" in said,
                    "last_line": (said.splitlines() or [""])[-1][:200],
                }
            )
            click.echo(f"{len(rows)}: {rows[-1]}")
            continue
        if code:
            raise RuntimeError(f"ended by itself:\n{broken.log.read_text()[-4000:]}") from None
        compare()
        broken.begin_again()
    broken.finish()
    compare()
    return {
        "experiment": experiment.name,
        "kills": len(rows),
        "seed": seed,
        "signals": Counter(f"{row['signal']} to {row['to']}" for row in rows),
        "finished": whole,
        "files": len(expected),
        "differ": unequal,
        "tracebacks": sum(row["traceback"] for row in rows),
        "rows": rows,
    }


@click.command()
@click.option("--kills", default=100, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--longest", default=20.0, show_default=True, help="Seconds to a signal, at most.")
@click.option(
    "--experiment",
    default=ROOT / "tests" / "tiny.yaml",
    type=click.Path(exists=True, path_type=Path),
)
@click.option(
    "--folder",
    default=ROOT / "results" / "benchmarks" / "kills",
    type=click.Path(path_type=Path),
    help="Where both runs go.",
)
def main(kills: int, seed: int, longest: float, experiment: Path, folder: Path) -> None:
    """Kill a run again and again, and hold its files against an unbroken run's."""
    found = trial(folder.resolve(), experiment, kills, seed, longest)
    RECORD.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    click.echo(f"{found['kills']} kills, {found['finished']} finished runs of "
               f"{found['files']} files: {len(found['differ'])} differ")  # fmt: skip
    raise SystemExit(bool(found["differ"]))


if __name__ == "__main__":
    main()
