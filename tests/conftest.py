"""The tiny experiment: run once a session in a copy of the checkout, and copied to be changed."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

pytest_plugins = ["browsing"]

ROOT = Path(__file__).parents[1]
SOURCES = ("Snakefile", "rules", "envs", "profiles", "schemas", "src")
RESULTS = "results/tiny"
HANGS = 300  # seconds after which a process that a test waits for is taken to hang
# A model this small runs fastest on one thread; stages then run beside each other.
WORKFLOW = ("snakemake", "--cores", "2", "--set-threads", "corpus=1", "pretrain=1",
            "training_log=1", "snapshot=1", "basis=1", "project=1")  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """One thread a worker: models are small, and workers beside each other fill the processor."""
    if hasattr(config, "workerinput"):
        torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what installs a SLURM, unless the marker is asked for by its name.

    Files that run workflows come first: last, one of them would keep one worker waiting.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    if "cluster" not in config.option.markexpr:
        others = [item for item in items if item.get_closest_marker("cluster")]
        items[:] = [item for item in items if item not in others]
        config.hook.pytest_deselected(items=others)


class Checkout:
    """A folder with the workflow's sources, whose config.yaml is the tiny experiment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(folder / "src"),
        }

    def __truediv__(self, path: str) -> Path:
        return self.folder / path

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command here, and return it with what it printed."""
        return subprocess.run(
            words, cwd=self.folder, env=self.environment, capture_output=True, text=True
        )

    def snakemake(self, *words: str) -> str:
        """Run the workflow; fails unless it succeeds. Returns all that it said."""
        done = self.command(WORKFLOW[0], *words, *WORKFLOW[1:])
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
        return done.stdout + done.stderr

    def would_run(self, *words: str) -> Counter[str]:
        """Jobs by rule that the workflow would run now."""
        said = self.snakemake("--dry-run", *words)
        jobs: Counter[str] = Counter()
        if "Job stats:" not in said:
            assert "Nothing to be done" in said, said
            return jobs
        table = said.split("Job stats:\n")[1].split("\n\n")[0].splitlines()
        for line in table[2:]:
            rule, count = line.split()
            jobs[rule] = int(count)
        for target in ("all", "total"):
            jobs.pop(target, None)
        return jobs

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace a string that a source holds once."""
        text = (self / path).read_text()
        assert text.count(old) == 1, f"{path}: {old!r} stands there {text.count(old)} times"
        (self / path).write_text(text.replace(old, new))

    def configure(self, changes: dict[str, Any], file: str = "config.yaml") -> None:
        """Write the tiny experiment with some keys, 'section.key', set otherwise."""
        settings = tiny(changes)
        (self / file).write_text(yaml.safe_dump(settings, sort_keys=False))


def tiny(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """The tiny experiment's configuration with some keys, 'section.key', set otherwise."""
    settings = yaml.safe_load((ROOT / "tests" / "tiny.yaml").read_text())
    for key, value in (changes or {}).items():
        *path, last = key.split(".")
        section = settings
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value
    return settings


def _link(source: str, target: str) -> None:
    """Hard link where the file system allows it: the wheels are large."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@pytest.fixture
def plainly(monkeypatch):
    """Stages as torch's counter sees them: on one thread, and without the compiler."""
    from ontogeny import devices
    from ontogeny.activations import extract, feed, rows
    from ontogeny.crosscoder import native

    def inline(jobs, depth=2):
        yield from ((key, function()) for key, function in jobs)

    for module in (extract, feed, rows):
        monkeypatch.setattr(module, "read_ahead", inline)
    monkeypatch.setattr(devices, "compiler_missing", lambda: "no compiler")
    monkeypatch.setattr(native, "library", lambda: None)


@pytest.fixture
def saved_at_each_look(monkeypatch):
    """Trainings keep a state whenever they are looked at, and wait until it is written."""
    from ontogeny.crosscoder import state

    save = state.Saver.save

    def save_and_wait(saver, trainings):
        save(saver, trainings)
        saver.wait()

    monkeypatch.setattr(state, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(state.Saver, "save", save_and_wait)


@pytest.fixture(scope="session")
def wheels() -> Path:
    """The tiny experiment's wheels, fetched once into the checkout's own results/downloads."""
    from ontogeny.corpus.wheels import needed, wheels_folder
    from ontogeny.settings import Wheels

    requirements = str(ROOT / "envs/corpus-requirements.txt")
    wheels = Wheels(requirements=requirements, sources=["leads"])
    folder = wheels_folder(wheels, ROOT / "results")
    done = Checkout(ROOT).command("ontogeny", "fetch", requirements, str(folder), *needed(wheels))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def new_checkout(wheels, tmp_path_factory):
    """A function that makes a checkout in which nothing has run but the download."""

    def make() -> Checkout:
        folder = tmp_path_factory.mktemp("checkout")
        for name in SOURCES:
            if (ROOT / name).is_dir():
                ignored = shutil.ignore_patterns("*.egg-info")
                shutil.copytree(ROOT / name, folder / name, ignore=ignored)
            else:
                shutil.copy2(ROOT / name, folder / name)
        shutil.copytree(wheels, folder / "results/downloads" / wheels.name, copy_function=_link)
        made = Checkout(folder)
        made.configure({})
        return made

    return make


@pytest.fixture(scope="session")
def finished(request, new_checkout, tmp_path_factory) -> Checkout:
    """The tiny experiment, finished. Shared by all tests: look, do not change.

    Of several workers one runs it, and each has a copy: two runs of one checkout keep out of each
    other's way.
    """
    own = tmp_path_factory.getbasetemp()
    if not hasattr(request.config, "workerinput"):
        return _run(new_checkout())
    made = own.parent / "finished"
    with open(own.parent / "finished.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            _run(new_checkout()).folder.rename(made)
    return copied(Checkout(made), own / "finished")


def _run(checkout: Checkout) -> Checkout:
    checkout.snakemake()
    return checkout


@pytest.fixture
def experiment(finished, tmp_path) -> Checkout:
    """A copy of the finished experiment, time stamps included, to change at will."""
    return copied(finished, tmp_path / "checkout")


@pytest.fixture
def only_tokens(finished, tmp_path) -> Checkout:
    """The tiny experiment when its corpus is there and nothing that follows."""
    checkout = copied(finished, tmp_path / "only-tokens")
    for path in (checkout / RESULTS).iterdir():
        if path.is_dir() and path.name != "corpus":
            shutil.rmtree(path)
    return checkout


# What a text of somebody else may bring: markup, quotes, controls, what turns or parts lines.
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "</script>",
    "&lt;b&gt;",
    "\x00\x1b[31m",
    "\u202eabc\u2066",
    "\u2028`${alert(3)}`",
    "\x7f\x85\r\n\t",
]


@pytest.fixture(scope="session")
def analysed(finished, tmp_path_factory):
    """The tiny experiment with contexts, spans and a task, in which frequent tokens are hostile.

    The stages themselves, on a tokenizer whose pieces are HOSTILE.
    """
    from ontogeny import registry, running, settings
    from ontogeny.corpus.pieces import alphabet
    from ontogeny.experiment import Experiment

    folder = tmp_path_factory.mktemp("analysed") / "results" / "hostile"
    shutil.copytree(
        finished / RESULTS, folder, ignore=shutil.ignore_patterns("atlas", "state", "digests")
    )
    given = yaml.safe_load((folder / "config.yaml").read_text())
    given |= {
        "name": "hostile",
        "analyses": [
            "dimensionality",
            "kinds",
            "contexts",
            "complexity",
            "trust",
            "passages",
            "circuits",
        ],
        "circuits": {"tasks": ["induction"], "least_accuracy": 0, "pairs": 16, "path_steps": 2},
        "complexity": {"longest": 4, "contexts": 1},
        "passages": {"held_out": 3, "length": 12},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(given))
    experiment = Experiment(folder, settings.load(given))
    for name in ("tasks", "attribution", "span", "trust"):
        running.call(experiment, registry.stages()[name])

    # So small a model does no task, and nothing is told from zero: every other one is said to be.
    attribution = experiment.table("attribution")
    attribution["told"] = attribution["feature"] % 2 == 0
    attribution.to_parquet(experiment.path("attribution"))

    data, tokenizer = experiment.tokens(), experiment.path("tokenizer")
    text = data.take(np.arange(*data.splits["held_out"]))
    frequent = [int(i) for i in np.bincount(text.ravel()).argsort()[::-1] if i > 0]
    given = json.loads(tokenizer.read_text())
    names = {number: name for name, number in given["model"]["vocab"].items()}
    letters = {byte: letter for letter, byte in alphabet().items()}
    for number, piece in zip(frequent, HOSTILE, strict=False):
        names[number] = "".join(letters[byte] for byte in piece.encode())
    given["model"] |= {"vocab": {name: i for i, name in sorted(names.items())}, "merges": []}
    tokenizer.write_text(json.dumps(given))
    for name in ("contexts", "passages"):
        running.call(experiment, registry.stages()[name])
    return experiment


def copied(checkout: Checkout, folder: Path) -> Checkout:
    """A copy of a checkout, time stamps included."""

    def copy(source: str, target: str) -> None:
        (_link if source.endswith(".whl") else shutil.copy2)(source, target)

    shutil.copytree(checkout.folder, folder, copy_function=copy)
    return Checkout(folder)
