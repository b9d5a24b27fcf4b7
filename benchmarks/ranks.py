"""What sharing a training over two processes saves and costs: seconds a step, messages, waiting.

    python -m benchmarks.ranks                         (4 minutes on 2 idle cores)

Takes the trainer's own compiled steps (BatchTopK in a principal subspace, compact moments, rows of
random numbers) with one process of one thread and with two of one thread each, in turn, and writes
benchmarks/results/ranks.json. Of each size:

    efficiency          seconds of one process / (2 · seconds of two)
    work                the same of processor time, which other jobs of the machine do not change
    messages, waiting   shares of a step of two: sending and adding, and waiting for the other to
                        come to the message. Each message then has a barrier before it, and these
                        steps count for nothing else
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.distributed as dist

from benchmarks import page
from ontogeny import devices
from ontogeny.crosscoder import train
from ontogeny.crosscoder.ranks import Ranks
from ontogeny.files import write_json
from ontogeny.settings import Crosscoder

OUTPUT = Path(__file__).parent / "results" / "ranks.json"
DIMENSIONS, K = 640, 32
SIZES = {"large": (32_768, 2048, 6), "middle": (16_384, 1024, 12), "small": (2048, 512, 60)}
REPEATS = 2
WARM = 2


class Data:
    """What the trainer asks of its data: one batch of random rows, again and again."""

    def __init__(self, batch: int) -> None:
        self.width, self.device, self.digest = DIMENSIONS, torch.device("cpu"), ""
        self.scales_in, self.U = torch.ones(1), None
        rng = np.random.default_rng(0)
        self.x = torch.from_numpy(rng.standard_normal((batch, DIMENSIONS), np.float32))

    def batches(
        self, size: int, start: int, stop: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(x, target) of steps [start, stop): (B, I), (1, B, I)."""
        return ((self.x, self.x[None]) for _ in range(start, stop))


def timed(function: Any, spent: dict[str, float]) -> Any:
    """A collective that notes how long it waited for the others, and how long it took then."""

    def call(*arguments: Any) -> Any:
        began = time.perf_counter()
        dist.barrier()
        met = time.perf_counter()
        found = function(*arguments)
        spent["waiting"] += met - began
        spent["messages"] += time.perf_counter() - met
        return found

    return call


def rank_main(rank: int, size: int, shape: tuple[int, int, int], folder: str) -> None:
    """One process: its seconds of each step, processor seconds, and seconds of messages."""
    features, batch, steps = shape
    devices.use_threads(1)
    devices.keep_memory()
    ranks = Ranks()
    if size > 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        meet = f"file://{folder}/meet"
        dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=size)
        ranks = Ranks(rank, size)
    c = Crosscoder(inputs={"layers": [0]}, features=features, k=K, batch_rows=batch, steps=10_000)
    data = Data(batch)
    training = train.Training(c, data, 1, ranks)
    grid, train.NORM_GRID = train.NORM_GRID, [0.1]
    now = training.begin(0)
    train.NORM_GRID = grid
    x, target = next(data.batches(batch, 0, 1))
    spent = {"waiting": 0.0, "messages": 0.0}

    def take(count: int) -> list[float]:
        found = []
        for _ in range(count):
            began = time.perf_counter()
            training.advance(now, x, target, 1e-3)
            found.append(time.perf_counter() - began)
        return found

    take(WARM)
    work = time.process_time()
    seconds = take(steps)
    row = {"seconds": seconds, "work": (time.process_time() - work) / steps}
    if size > 1:
        dist.all_reduce = timed(dist.all_reduce, spent)
        dist.all_gather_single = timed(dist.all_gather_single, spent)
        total = sum(take(steps))
        row |= {name: value / total for name, value in spent.items()}
        dist.destroy_process_group()
    write_json(Path(folder) / f"{rank}.json", row)


def measured(size: int, shape: tuple[int, int, int]) -> list[dict[str, Any]]:
    """What each rank wrote."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(rank_main, (size, shape, folder), nprocs=size)
        return [json.loads((Path(folder) / f"{r}.json").read_text()) for r in range(size)]


@click.command()
@click.option(
    "--only",
    type=click.Choice(list(SIZES)),
    multiple=True,
    help="Measure these alone, and keep nothing.",
)
@click.option("--draw", is_flag=True, help="Write the page's table again from what was measured.")
def main(only: tuple[str, ...], draw: bool) -> None:
    """Time training steps of one process and of two that share the features."""
    if draw:
        page.write_ranks(json.loads(OUTPUT.read_text())["rows"])
        return
    rows = []
    for name in only or SIZES:
        features, batch, _ = SIZES[name]
        alone, both = [], []
        for _ in range(REPEATS):
            alone += measured(1, SIZES[name])
            both += measured(2, SIZES[name])
        one = statistics.median(s for row in alone for s in row["seconds"])
        two = statistics.median(s for row in both for s in row["seconds"])
        work = [statistics.fmean(row["work"] for row in found) for found in (alone, both)]
        rows.append(
            {
                "size": name, "features": features, "batch": batch, "dimensions": DIMENSIONS,
                "k": K, "seconds_one": one, "seconds_two": two, "efficiency": one / (2 * two),
                "work": work[0] / (2 * work[1]),
                "messages": statistics.fmean(row["messages"] for row in both),
                "waiting": statistics.fmean(row["waiting"] for row in both),
            }
        )  # fmt: skip
        print(
            f"F {features:,}, B {batch:,}: {one:.3f} s, on two {two:.3f} s; efficiency "
            f"{rows[-1]['efficiency']:.0%} ({rows[-1]['work']:.0%} by processor time), messages "
            f"{rows[-1]['messages']:.1%}, waiting {rows[-1]['waiting']:.1%}",
            flush=True,
        )
    about = {"python": platform.python_version(), "torch": torch.__version__,
             "processors": os.cpu_count(), "load": os.getloadavg()[0]}  # fmt: skip
    if not only:
        write_json(OUTPUT, {"about": about, "rows": rows})
        page.write_ranks(rows)


if __name__ == "__main__":
    main()
