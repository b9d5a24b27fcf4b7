"""How the time and memory of what follows training grow with features and snapshots.

    python -m benchmarks.growth                      writes results/growth.json and prints the table

Each part runs by itself in a process, on synthetic decoders: two seeds whose features agree to all
degrees, in R = 128 dimensions of n snapshots of width 32. Seconds are of the processor, bytes are
what the process takes at its peak beyond what it has once everything is loaded.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from ontogeny.crosscoder.model import Crosscoder, Description
from ontogeny.features import histories
from ontogeny.features.matching import match

R, WIDTH, THREADS = 128, 32, 2
FEATURES = (1024, 4096, 16384, 98304)
SNAPSHOTS = (8, 32)
RESULT = Path(__file__).with_name("results") / "growth.json"


def dictionary(features: int, snapshots: int, seed: int) -> Crosscoder:
    """A crosscoder in a principal subspace; those of two seeds share features to all degrees."""
    rng = np.random.default_rng(0)
    W = rng.standard_normal((features, R), dtype=np.float32)
    if seed:
        noise = rng.standard_normal((features, R), dtype=np.float32)
        noise *= rng.uniform(0.2, 3, (features, 1)).astype(np.float32)
        W = (W + noise)[rng.permutation(features)]
    basis, _ = np.linalg.qr(rng.standard_normal((snapshots * WIDTH, R), dtype=np.float32))
    sites = [(step, 0, "residual") for step in range(snapshots)]
    about = Description(
        activation="batch_topk", gate="feature", features=features, width=WIDTH, inputs=sites,
        outputs=sites, basis="principal", threshold=0.1, seed=seed, settings={}, tokens="",
        ontogeny="", torch="",
    )  # fmt: skip
    tensors = {
        "W_enc": torch.zeros(1, R), "b_enc": torch.zeros(features), "W_dec": torch.from_numpy(W),
        "b_dec": torch.zeros(R), "log_threshold": torch.zeros(features),
        "scales_in": torch.ones(snapshots), "scales_out": torch.ones(snapshots),
        "mean_in": torch.zeros(snapshots * WIDTH), "mean_out": torch.zeros(snapshots * WIDTH),
        "basis": torch.from_numpy(basis),
    }  # fmt: skip
    return Crosscoder(about, tensors)


def matching(features: int, snapshots: int) -> Callable[[], Any]:
    """Matching of two seeds."""
    every = np.arange(features)
    a, b = (histories.stacked(dictionary(features, snapshots, seed), every) for seed in (0, 1))
    return lambda: {"matched": float((np.nan_to_num(match(a, b)[1]) >= 0.7).mean())}


def tables(features: int, snapshots: int) -> Callable[[], Any]:
    """Strengths, settled steps and cosines between snapshots of every feature."""
    crosscoder, steps = dictionary(features, snapshots, 0), np.arange(snapshots)

    def run() -> dict[str, Any]:
        strength = histories.by_features(crosscoder, histories.decoder_norms)
        present = histories.lives(histories.normalise(strength), 0.5, 0.35)
        histories.by_features(
            crosscoder, lambda W, of: histories.settled_step(W, of, steps, 0.7), present
        )
        histories.by_features(crosscoder, lambda W: histories.direction_cosines(W, 0.1))
        return {}

    return run


def turning_point(features: int, snapshots: int) -> Callable[[], Any]:
    """The turning point with 1,000 bootstrap samples."""
    shape = features, snapshots, snapshots
    cosines = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    return lambda: histories.turning_point(cosines, np.arange(snapshots), 1000, 0)


PARTS = {"matching": matching, "tables": tables, "turning point": turning_point}


def _measured(part: str, features: int, snapshots: int) -> dict[str, Any]:
    torch.set_num_threads(THREADS)
    run = PARTS[part](features, snapshots)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    found = run()
    spent = time.process_time() - began
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    row = {"part": part, "features": features, "snapshots": snapshots}
    return row | {"seconds": round(spent, 3), "bytes": peak} | {
        key: round(value, 4) for key, value in found.items() if key == "matched"
    }  # fmt: skip


def page(rows: list[dict[str, Any]]) -> str:
    """The table of docs/performance.md: seconds and MB by part and snapshots, features across."""
    lines = [
        "| | n | " + " | ".join(f"F {features:,}" for features in FEATURES) + " |",
        "|---|---|" + "---|" * len(FEATURES),
    ]
    for part in PARTS:
        for snapshots in SNAPSHOTS:
            own = [row for row in rows if (row["part"], row["snapshots"]) == (part, snapshots)]
            cells = [f"{row['seconds']:.3g} s, {row['bytes'] / 1e6:,.0f} MB" for row in own]
            lines.append(f"| {part} | {snapshots} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@click.command()
@click.option("--most", default=FEATURES[-1], show_default=True, help="Features, at most.")
@click.option("--output", default=RESULT, type=click.Path(path_type=Path))
def main(most: int, output: Path) -> None:
    """Measure all parts, and write them as JSON."""
    rows = []
    for part in PARTS:
        for snapshots in SNAPSHOTS:
            for features in (count for count in FEATURES if count <= most):
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    rows.append(pool.apply(_measured, (part, features, snapshots)))
                print(rows[-1], file=sys.stderr, flush=True)
    about = {"threads": THREADS, "width": WIDTH, "dimensions": R, "torch": torch.__version__}
    output.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    print(page(rows))


if __name__ == "__main__":
    main()
