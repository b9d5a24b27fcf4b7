"""Like for like: the same loss with the same gate, here and in the peers' libraries, in one run.

    python -m benchmarks.like_for_like                 (11 minutes on 2 idle cores)
    python -m benchmarks.like_for_like --resume        go on after an interruption
    python -m benchmarks.like_for_like --only speed    speed, snapshots or quality alone
    python -m benchmarks.like_for_like --draw          page and README again, from the rows

Three parts, each case in a process of its own, one at a time:

    speed       seconds of a step on a batch in memory, F 2,048, B 512, n 32, d 128. Weights of
                JumpReLU are held by a learning rate of 0 while it is timed, so that L0 stays what
                the row says. The cases take turns, ROUNDS times; the slower ways have one turn
    snapshots   the same of 128 and of 32 snapshots, hybrid space
    quality     explained variance on held-out rows after a minute of steps; and memory

Peers' environments and activations are made first where they are not there (minutes; not counted).
Rows go to benchmarks/results/like_for_like.json, tables to docs/performance.md, a sentence to
README.md.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks import crosscoder, environments, page
from ontogeny.files import write_json

ROWS = crosscoder.HERE / "results" / "like_for_like.json"
PARTS = crosscoder.WORK / "like_for_like"
WIDTH, FEATURES, BATCH, K = 128, 2048, 512, 32
ACTIVE = 40  # of some training rows, that make an L0 of 30 to 40 on held-out ones: llamascopium's
ROUNDS = 2
MINUTE = 60.0
MARKS = [15.0, 30.0]  # seconds of training, at which held-out rows are looked at besides
HELD_OUT_ROWS = 1024  # that the L0 of a timed case is of
HIGH = "llamascopium, high thresholds"
PAPER = {"activation": "jumprelu", "gate": "snapshot"}
TOPK = {"activation": "batch_topk", "gate": "snapshot"}
TOPK_FEATURE = {"activation": "batch_topk", "gate": "feature"}
LOSSES = {"jumprelu": "JumpReLU, tanh-quad", "batch_topk": "BatchTopK"}


@dataclass(frozen=True)
class Case:
    """One row before it is measured. `spec` is what its worker is told beside sizes."""

    part: str
    path: str
    loss: str
    gate: str
    worker: str
    seconds: float
    spec: dict[str, Any] = field(default_factory=dict)
    data: str = "default"
    n: int = 32
    compiler: bool = True
    turns: int = ROUNDS

    @property
    def key(self) -> str:
        """What names it."""
        return f"{self.part}, {self.path}, {self.loss}, gate per {self.gate}, n {self.n}"


def ours(part: str, path: str, space: str, kind: dict[str, str], **more: Any) -> Case:
    """A case of the package's own."""
    spec = {"space": space, "learning_rate": 3e-3, **kind, **more.pop("spec", {})}
    seconds = more.pop("seconds", 4.0)
    loss = LOSSES[kind["activation"]]
    return Case(part, path, loss, kind["gate"], "ours", seconds, spec, **more)


def peer(part: str, path: str, seconds: float, **spec: Any) -> Case:
    """A case of a peer's."""
    if path.startswith("llamascopium"):
        rates = {"learning_rate": 1e-3, "sparsity": 0.3, "decoder_norm": 0.3}
        return Case(part, path, "JumpReLU, tanh", "snapshot", "llamascopium", seconds, rates | spec)
    spec = {"learning_rate": 2e-3} | spec
    return Case(part, path, "TopK", "feature", "sparsify", seconds, spec)


def cases() -> list[Case]:
    """All of them."""
    held: dict[str, Any] = {"spec": {"hold": True}}
    bare = held | {"compiler": False, "turns": 1}
    coreless = {"spec": {"hold": True, "core": False}, "turns": 1}  # it compiles for a minute
    stretched: dict[str, Any] = {"spec": {"fill": MINUTE}, "seconds": MINUTE, "turns": 1}
    steered = stretched | {"spec": {"fill": MINUTE, "l0": float(K)}}
    found = [
        peer("speed", "llamascopium", 8.0, hold=True),
        peer("speed", HIGH, 8.0, hold=True, active=ACTIVE),
        ours("speed", "hybrid", "hybrid", PAPER, **held),
        ours("speed", "full", "full", PAPER, **held),
        ours("speed", "hybrid without the core", "hybrid", PAPER, **coreless),
        ours("speed", "hybrid without a compiler", "hybrid", PAPER, **bare),
        ours("speed", "full without a compiler", "full", PAPER, **bare),
        ours("speed", "batchtopk hybrid", "hybrid", TOPK),
        ours("speed", "batchtopk full", "full", TOPK),
        peer("speed", "sparsify", 4.0),
        ours("speed", "batchtopk full", "full", TOPK_FEATURE, turns=1),
        ours("speed", "batchtopk hybrid", "hybrid", TOPK_FEATURE, turns=1),
    ]
    for n in (32, 128):
        for path, kind, more in (("hybrid", PAPER, held), ("batchtopk hybrid", TOPK, {})):
            data = {"data": f"long{n}", "n": n, "turns": 1}
            found.append(ours("snapshots", path, "hybrid", kind, **data, **more))
    return [
        *found,
        ours("quality", "hybrid", "hybrid", PAPER, **steered),
        ours("quality", "batchtopk hybrid", "hybrid", TOPK, **stretched),
        peer("quality", "sparsify", MINUTE),
        peer("quality", HIGH, MINUTE, active=ACTIVE),
        peer("quality", "llamascopium", MINUTE),
    ]


def measure(case: Case, turn: int) -> dict[str, Any]:
    """What a case's worker found, from its file where it is there."""
    name = "".join(c if c.isalnum() else "-" for c in f"{case.key}-{turn}")
    output = PARTS / f"{name}.json"
    if output.exists():
        return json.loads(output.read_text())
    output.parent.mkdir(parents=True, exist_ok=True)
    is_peer = case.worker in crosscoder.PEERS
    quality = case.part == "quality"
    spec = (
        {"n": case.n, "d": WIDTH, "features": FEATURES, "batch": BATCH, "k": K, "seed": 0,
         "steps": 100_000, "seconds": case.seconds, "moments": "compact", "threads": threads(),
         "warm": 1 if is_peer or not case.compiler else 5, "at_least": 3, "evaluate_at": [],
         "evaluate_at_seconds": MARKS if quality else [],
         "held_out_rows": None if quality else HELD_OUT_ROWS, "path": case.path,
         "output": str(output.resolve())}
        | crosscoder.prepare(case.data) | case.spec
    )  # fmt: skip
    file = output.with_suffix(".spec.json")
    write_json(file, spec)
    python = environments.make(case.worker) if is_peer else Path(sys.executable)
    worker = f"{case.worker}_peer" if is_peer else case.worker
    # A compiler that is not there is what such a machine has.
    there = os.environ if case.compiler else os.environ | {"CXX": "/no/compiler"}
    command = [python, crosscoder.HERE / "workers" / f"{worker}.py", file]
    done = subprocess.run(command, capture_output=True, text=True, env=there)
    if done.returncode:
        raise click.ClickException(f"{case.key}: failed\n{done.stderr[-3000:]}")
    return json.loads(output.read_text())


def threads() -> int:
    """Of a process: two, as the page says, or what there are."""
    return min(2, os.cpu_count() or 2)


def row(case: Case, found: list[dict[str, Any]]) -> dict[str, Any]:
    """A case's row, from what its rounds found."""
    seconds = np.concatenate([one["step_seconds"] for one in found])
    low, middle, high = np.percentile(BATCH / seconds, [25, 50, 75])
    last = found[-1]["curve"][-1]
    trained = case.part == "quality"
    about: dict[str, Any] = {
        "part": case.part, "path": case.path, "loss": case.loss, "gate": case.gate, "n": case.n,
        "rows_per_second": middle, "quartiles": [low, high], "steps": len(seconds),
        "l0": last["l0"], "explained_variance": last["explained_variance"] if trained else None,
        "peak_bytes": max(one["peak_bytes"] for one in found), "versions": found[-1]["versions"],
    }  # fmt: skip
    if trained:
        about["explained_variance_least"] = min(last["by_site"])
        about["curve"] = [
            {k: v for k, v in at.items() if k != "by_site"} for at in found[-1]["curve"]
        ]
        about["rows_seen"] = last["tokens"]
    if found[-1]["state_bytes"]:
        state, own = found[-1]["state_bytes"], found[-1]["bytes_per_parameter"]
        about["bytes_per_parameter"] = own
        about["memory"] = about["peak_bytes"] / state
    return about


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same with ratio_to_llamascopium: to its row of about the same L0."""
    theirs = [r for r in rows if r["part"] == "speed" and r["path"] == HIGH]
    for one in rows:
        if one["part"] == "speed" and theirs:
            one["ratio_to_llamascopium"] = one["rows_per_second"] / theirs[0]["rows_per_second"]
    return rows


@click.command()
@click.option("--only", default="", help="Parts, by commas: speed, snapshots, quality.")
@click.option("--resume", is_flag=True, help="Keep what an interrupted run has measured.")
@click.option("--draw", is_flag=True, help="Measure nothing; page and README from the rows.")
@click.option("--list", "listed", is_flag=True, help="Name the cases.")
def main(only: str, resume: bool, draw: bool, listed: bool) -> None:
    """Compare training steps of one loss and gate with those of peers' libraries."""
    if draw:
        page.write_like_for_like(json.loads(ROWS.read_text()))
        return
    wanted = set(filter(None, only.split(",")))
    chosen = [case for case in cases() if not wanted or case.part in wanted]
    if listed:
        for case in chosen:
            click.echo(case.key)
        return
    for name in crosscoder.PEERS:
        environments.make(name)
    for data in sorted({case.data for case in chosen}):
        crosscoder.prepare(data)
    if not resume:
        for file in PARTS.glob("*.json"):
            file.unlink()
    began, load = time.monotonic(), os.getloadavg()[0]
    found: dict[str, list[dict[str, Any]]] = {case.key: [] for case in chosen}
    for turn in range(ROUNDS):
        for case in chosen:
            if turn >= case.turns:
                continue
            found[case.key].append(measure(case, turn))
            one = row(case, found[case.key])
            scored = one["explained_variance"]
            quality = "" if scored is None else f", EV {scored:.4f}"
            click.echo(
                f"{time.monotonic() - began:4.0f} s  {case.key}: {one['rows_per_second']:,.0f} "
                f"rows/s, L0 {one['l0']:.1f}{quality}"
            )
    rows = [row(case, found[case.key]) for case in chosen]
    if wanted and ROWS.exists():
        rows += [r for r in json.loads(ROWS.read_text())["rows"] if r["part"] not in wanted]
    about = {"features": FEATURES, "batch": BATCH, "width": WIDTH, "k": K, "threads": threads(),
             "processors": os.cpu_count(), "load_before": load, "python": platform.python_version(),
             "system": platform.system(), "machine": platform.machine()}  # fmt: skip
    result = {"about": about, "rows": compared(rows)}
    write_json(ROWS, result)
    page.write_like_for_like(result)


if __name__ == "__main__":
    main()
