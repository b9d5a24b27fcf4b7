"""The loop that every path is timed by. Needs torch and NumPy alone: peers run it too.

A path gives `make(spec, rows) -> path`, where path has

    step(batch)             one training step on (B, n·d) float32, as its own trainer takes it
    reconstruct(batch)      ((B, n·d) reconstruction, mean active features a token)
    dead(seen)              share of features silent over the last `seen` rows, or None
    r, sites, versions      dimensions trained in; n; versions of what ran
    rows                    where there is such: what batches are taken from instead of the data
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch


def memory(field: str) -> int:
    """VmRSS or VmHWM of this process, bytes; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(field)), 0)


def forget_peak() -> None:
    """Start the peak (VmHWM) anew, where the system allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def held_out(path: Any, rows: np.ndarray, batch: int) -> dict[str, float]:
    """Explained variance over all sites on held-out rows, the worst site's, and L0.

    rows : (rows, n·d), the constant that is explained away is their own mean.
    """
    mean = torch.from_numpy(rows.astype(np.float32).mean(0))
    lost = there = torch.zeros(len(mean), dtype=torch.float64)
    active = 0.0
    with torch.no_grad():
        for start in range(0, len(rows) - batch + 1, batch):
            x = torch.from_numpy(rows[start : start + batch].astype(np.float32))
            again, l0 = path.reconstruct(x)
            lost = lost + (x - again).square().sum(0, dtype=torch.float64)
            there = there + (x - mean).square().sum(0, dtype=torch.float64)
            active += l0 * len(x)
    seen = len(rows) // batch * batch
    sites = path.sites
    by_site = 1 - lost.view(sites, -1).sum(1) / there.view(sites, -1).sum(1)
    return {
        "explained_variance": 1 - float(lost.sum() / there.sum()),
        "by_site": by_site.tolist(),
        "l0": active / seen,
    }


def run(make: Any) -> None:
    """Time the path of the spec file that the command line names, and write its output file."""
    spec = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(spec["threads"])
    torch.manual_seed(spec["seed"])
    rows, test = (np.load(spec[name], mmap_mode="r") for name in ("data", "held_out"))
    batch = spec["batch"]

    def take(step: int) -> torch.Tensor:
        index = np.arange(step * batch, (step + 1) * batch) % len(rows)
        return torch.from_numpy(rows[index].astype(np.float32))

    base = memory("VmRSS")
    path = make(spec, rows)
    base = getattr(path, "base", base)
    rows = getattr(path, "rows", rows)
    began = time.perf_counter()
    for step in range(spec["warm"]):
        path.step(take(step))
    compiled = time.perf_counter() - began
    forget_peak()
    seconds: list[float] = []
    curve: list[dict[str, float]] = []
    peak = 0
    evaluate = set(spec["evaluate_at"])
    step = spec["warm"]
    while True:
        x = take(step)
        start = time.perf_counter()
        path.step(x)
        seconds.append(time.perf_counter() - start)
        step += 1
        del x
        last = step >= spec["steps"] or (
            sum(seconds) > spec["seconds"] and len(seconds) >= spec["at_least"]
        )
        if hasattr(path, "reconstruct") and (step in evaluate or last):
            peak = max(peak, memory("VmHWM"))
            found = held_out(path, test, min(batch, len(test)))
            curve.append({"tokens": step * batch, "seconds": sum(seconds)} | found)
            forget_peak()
        if last:
            break
    result = {
        "step_seconds": seconds,
        "warm_seconds": compiled,
        "peak_bytes": max(peak, memory("VmHWM")) - base,
        "base_bytes": base,
        "curve": curve,
        "dead": path.dead(50_000) if hasattr(path, "dead") else None,
        "r": path.r,
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__} | path.versions,
        "note": getattr(path, "note", ""),
        "bytes_per_parameter": getattr(path, "bytes_per_parameter", None),
        "state_bytes": getattr(path, "state_bytes", None),
    }
    if spec.get("keep") and hasattr(path, "decoders"):
        np.save(spec["keep"], path.decoders().numpy())
    Path(spec["output"]).write_text(json.dumps(result))
