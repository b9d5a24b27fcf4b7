"""Crosscoder training steps, timed: ours, the peers', a plain dense one, and the bound, in one run.

    python -m benchmarks.crosscoder                    everything (40 minutes on two cores)
    python -m benchmarks.crosscoder --only first       one group of cases; `--list` names them
    python -m benchmarks.crosscoder --resume           keep measured rows, go on with the rest
    python -m benchmarks.crosscoder --draw             the page and the plot again, from the rows

It makes what it needs by itself: each peer's environment (results/benchmarks/envs), the default
experiment's activations and those of experiments/benchmark.yaml. Every case runs in a process of
its own, one at a time. Rows go to benchmarks/results/crosscoder.json as they are measured, the
table and the plot to docs/performance.md and docs/performance.png.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks import environments
from ontogeny import devices, settings
from ontogeny.activations import basis, subspace
from ontogeny.activations.rows import Cached, HeldOut
from ontogeny.activations.sites import Site
from ontogeny.files import whole, write_json

HERE = Path(__file__).parent
WORK = Path("results/benchmarks")
ROWS = HERE / "results" / "crosscoder.json"
PEERS = ("llamascopium", "sparsify")
SPACES = ("full", "hybrid", "principal")
TRAIN_ROWS, HELD_OUT_ROWS = 131_072, 4_096
PARTNER = 0.7
PLACES = [(layer, stream) for layer in (0, 1) for stream in ("residual", "mlp_in", "mlp_out")]


@dataclass(frozen=True)
class Case:
    """One row of the table before it is measured."""

    group: str
    path: str
    data: str
    n: int
    d: int
    features: int
    batch: int = 512
    k: int = 32
    seed: int = 0
    steps: int = 60
    seconds: float = 20.0
    learning_rate: float | None = 3e-3
    moments: str = "compact"

    @property
    def key(self) -> str:
        """What names it."""
        moments = "" if self.moments == "compact" else f"-{self.moments}"
        return (
            f"{self.group}/{self.path}{moments}-n{self.n}-d{self.d}-F{self.features}-B{self.batch}"
            f"-seed{self.seed}"
        )


def cases() -> Iterator[Case]:
    """All cases, group by group."""
    first: dict[str, Any] = {"data": "default", "n": 32, "d": 128, "features": 2048}
    long: dict[str, Any] = {"steps": 400, "seconds": 60.0}
    for path in ("bound", "bound_principal"):
        yield Case("first", path, **first)
    yield Case("first", "llamascopium", **first, learning_rate=1e-3, **long)
    yield Case("first", "sparsify", **first, learning_rate=2e-3, **long)
    yield Case("first", "dense", **first, **long)
    for seed in (0, 1):
        for path in ("full", "principal"):
            yield Case("first", path, **first, seed=seed, steps=600, seconds=900.0)
    for path in ("full", "principal"):
        yield Case("first", path, **first, steps=600, seconds=900.0, moments="float32")
    big = first | {"features": 16384}
    for path in ("bound", "full", "bound_principal", "principal", "sparsify"):
        yield Case("big", path, **big, batch=2048)
    for path in ("llamascopium", "sparsify", "dense"):
        yield Case("big", path, **big)
    wide: dict[str, Any] = {"data": "wide", "n": 8, "d": 768, "features": 8192}
    for path in ("bound", "bound_principal", "llamascopium", "sparsify", "dense", "full"):
        yield Case("wide", path, **wide)
    yield Case("wide", "principal", **wide)
    for n in (4, 16, 32, 64, 128):
        for path in ("principal", "full", "bound_principal"):
            yield Case("snapshots", path, f"long{n}", n, 128, 2048, seconds=10.0)
    for features in (1024, 4096, 16384):
        for path in ("principal", "full"):
            yield Case("features", path, **(first | {"features": features}), seconds=10.0)


def make_activations(experiment: str) -> Path:
    """The activations of `default` or `benchmark`, by their workflow: nothing if they are there."""
    file = "config.yaml" if experiment == "default" else f"experiments/{experiment}.yaml"
    s = settings.load(file)
    places = [
        f"{stream}.{layer}" for layer in s.activations.layers for stream in s.activations.streams
    ]
    targets = [f"results/{s.name}/activations/{place}/stack.h5" for place in places]
    command = ["snakemake", "--cores", str(os.cpu_count()), "--configfile", file, "--quiet", "all"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run([*command, "--", *targets], env=os.environ | {"PATH": path})
    if done.returncode:
        raise click.ClickException(f"{file}: its activations could not be made; see above")
    return Path(f"results/{s.name}/activations")


def sites_of(data: str) -> tuple[str, list[Site]]:
    """The experiment that a data set comes from, and its sites, snapshot by snapshot."""
    if data == "default":
        steps = settings.load("config.yaml").snapshots.chosen
        return "default", [Site(step, 0, "residual") for step in steps]
    steps = settings.load("experiments/benchmark.yaml").snapshots.chosen
    count = 8 if data == "wide" else int(data.removeprefix("long"))
    chosen = [steps[i] for i in np.linspace(0, len(steps) - 1, count).round().astype(int)]
    places = PLACES if data == "wide" else [(0, "residual")]
    return "benchmark", [Site(step, *place) for step in chosen for place in places]


def prepare(data: str) -> dict[str, Any]:
    """Rows as .npy, and their principal subspace, made once: paths and R."""
    folder = WORK / "data" / data
    if not (folder / "ready.json").exists():
        experiment, sites = sites_of(data)
        activations = make_activations(experiment)
        train = Cached(activations, sites)
        splits: dict[str, tuple[Cached | HeldOut, int]] = {"train": (train, TRAIN_ROWS)}
        splits["held_out"] = (HeldOut(activations, sites), HELD_OUT_ROWS)
        for split, (source, most) in splits.items():
            total = min(most, source.rows)
            with whole(folder / f"{split}.npy") as draft:
                shape = (total, len(sites) * source.width)
                rows = np.lib.format.open_memmap(draft, "w+", np.float16, shape)
                for start in range(0, total, 4096):
                    stop = min(start + 4096, total)
                    rows[start:stop] = source.read(start, stop).reshape(stop - start, -1)
                rows.flush()
        start = time.monotonic()
        b = settings.Basis(max_variance_lost=0.01)
        device = devices.choose("auto")
        basis.build(b, train, folder / "basis.h5", device)
        subspace.project(folder / "basis.h5", train, 0, folder / "projected.h5", device)
        about = {
            "rows": TRAIN_ROWS,
            "r": subspace.Subspace(folder / "basis.h5").dimensions,
            "basis_seconds": time.monotonic() - start,
        }
        write_json(folder / "ready.json", about)
    about = json.loads((folder / "ready.json").read_text())
    names = {"data": "train.npy", "held_out": "held_out.npy"}
    names |= {"basis": "basis.h5", "projected": "projected.h5"}
    return about | {name: str((folder / file).resolve()) for name, file in names.items()}


def measure(case: Case) -> dict[str, Any]:
    """Run a case in its process; its row."""
    prepared = prepare(case.data)
    worker = case.path
    if case.path in PEERS:
        worker = f"{case.path}_peer"  # not the library's own name
    elif case.path in SPACES:
        worker = "ours"
    elif case.path == "bound_principal":
        worker = "bound"
    python = environments.make(case.path) if case.path in PEERS else Path(sys.executable)
    output = WORK / "out" / f"{case.key.replace('/', '-')}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    slow = case.path in PEERS or case.path == "dense"
    spec = (
        asdict(case)
        | prepared
        | {
            "threads": len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count(),
            "warm": 1 if slow else 4,
            "at_least": 3,
            "evaluate_at": [25, 50, 100, 200, 300, 400, 500, 600, 800, 1000]
            if case.group == "first"
            else [],
            "sparsity": 0.3,
            "decoder_norm": 0.3,
            "output": str(output.resolve()),
            "keep": str(output.with_suffix(".npy").resolve()) if case.group == "first" else "",
        }
    )
    if not case.path.endswith("principal"):
        spec.pop("r")
    file = output.with_suffix(".spec.json")
    write_json(file, spec)
    # Threads that spin while they wait would take the other library's processor.
    done = subprocess.run(
        [python, HERE / "workers" / f"{worker}.py", file], capture_output=True, text=True
    )
    if done.returncode:
        raise click.ClickException(f"{case.key}: failed\n{done.stderr[-3000:]}")
    found = json.loads(output.read_text())
    rates = case.batch / np.array(found["step_seconds"])
    low, middle, high = np.percentile(rates, [25, 50, 75])
    last = found["curve"][-1] if found["curve"] else {}
    return {
        "key": case.key,
        "group": case.group,
        "path": case.path + ("" if case.moments == "compact" else f", {case.moments} moments"),
        "n": case.n,
        "d": case.d,
        "r": found["r"],
        "features": case.features,
        "batch": case.batch,
        "k": case.k,
        "seed": case.seed,
        "tokens_per_second": middle,
        "tokens_per_second_low": low,
        "tokens_per_second_high": high,
        "steps": len(rates),
        "peak_bytes": found["peak_bytes"],
        "base_bytes": found["base_bytes"],
        "state_bytes": found["state_bytes"],
        "bytes_per_parameter": found["bytes_per_parameter"],
        "explained_variance": last.get("explained_variance"),
        "l0": last.get("l0"),
        "dead": found["dead"],
        "learning_rate": case.learning_rate,
        "curve": found["curve"],
        "device": "cpu",
        "processors": spec["threads"],
        "versions": found["versions"]
        | {"system": platform.system(), "machine": platform.machine()},
    }


def partners(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Share of full-space features with a partner (stacked decoders' cosine) in other trainings."""
    found = {}
    for row in rows:
        path = WORK / "out" / f"{row['key'].replace('/', '-')}.npy"
        if row["group"] == "first" and row["path"] in ("full", "principal") and path.exists():
            W = np.load(path)
            found[f"{row['path']} {row['seed']}"] = W / np.linalg.norm(W, axis=1, keepdims=True)
    share = {}
    for one, W in found.items():
        for other, V in found.items():
            if one.startswith("full") and one != other:
                share[f"{one} in {other}"] = float(((W @ V.T).max(1) >= PARTNER).mean())
    return share


@click.command()
@click.option("--only", default="", help="Groups or paths, by commas.")
@click.option("--resume", is_flag=True, help="Keep the rows that are there.")
@click.option("--list", "listed", is_flag=True, help="Name the cases.")
@click.option("--draw", is_flag=True, help="Measure nothing; page and plot from the rows.")
def main(only: str, resume: bool, listed: bool, draw: bool) -> None:
    """Time crosscoder training steps: ours, the peers', a plain dense one, and the bound."""
    from benchmarks import page

    wanted = set(filter(None, only.split(",")))
    chosen = [c for c in cases() if not wanted or wanted & {c.group, c.path}]
    if listed:
        for case in chosen:
            click.echo(case.key)
        return
    kept = json.loads(ROWS.read_text()) if ROWS.exists() and (resume or draw or wanted) else []
    names = {c.key for c in chosen}
    rows = [r for r in kept if resume or draw or r["key"] not in names]
    done = {r["key"] for r in rows}
    todo = [] if draw else [c for c in chosen if c.key not in done]
    for number, case in enumerate(todo, start=1):
        click.echo(f"[{number} of {len(todo)}] {case.key}", nl=False)
        row = measure(case)
        rows.append(row)
        write_json(ROWS, rows)
        quality = (
            "" if row["l0"] is None else f", EV {row['explained_variance']:.4f} L0 {row['l0']:.1f}"
        )
        click.echo(f"  {row['tokens_per_second']:,.0f} tokens/s{quality}")
    shares = partners(rows)
    if shares:
        write_json(ROWS.with_name("partners.json"), shares)
    page.write(rows)


if __name__ == "__main__":
    main()
