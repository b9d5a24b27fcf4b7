"""The loop that every path is timed by. Needs torch and NumPy alone: peers run it too.

A path gives `make(spec, rows) -> path`, where path has

    step(batch)             one training step on (B, n·d) float32, as its own trainer takes it
    reconstruct(batch)      ((B, n·d) reconstruction, mean active features a token)
    dead(seen)              share of features silent over the last `seen` rows, or None
    r, sites, versions      dimensions trained in; n; versions of what ran
    take(step)              where there is such: the batch of a step, in place of (B, n·d) rows
    spent(seconds)          where there is such: told after each step what the steps took so far
    parameters              where there is such: number of trained weights
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


class Rows:
    """Rows of a .npy file, (rows, n·d), read where they are asked for: a memory map would count."""

    def __init__(self, path: str, most: int | None = None) -> None:
        mapped = np.load(path, mmap_mode="r")[:most]
        self.shape, self._dtype, self._offset = mapped.shape, mapped.dtype, mapped.offset
        self._path = path

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop), float32."""
        width = self.shape[1]
        offset = self._offset + start * width * self._dtype.itemsize
        rows = np.fromfile(self._path, self._dtype, (stop - start) * width, offset=offset)
        return rows.reshape(-1, width).astype(np.float32)

    def mean(self, most: int = 16384) -> torch.Tensor:
        """Mean of the first rows, (n·d,) float32."""
        total = np.zeros(self.shape[1])
        count = min(most, self.shape[0])
        for start in range(0, count, 512):
            total += self.read(start, min(start + 512, count)).sum(0, dtype=np.float64)
        return torch.from_numpy((total / count).astype(np.float32))


def held_out(path: Any, rows: Rows, batch: int) -> dict[str, Any]:
    """Explained variance over all sites on held-out rows, each site's, and L0.

    rows : (rows, n·d), the constant that is explained away is their own mean.
    """
    mean = rows.mean(rows.shape[0])
    lost = there = torch.zeros(len(mean), dtype=torch.float64)
    active, seen = 0.0, rows.shape[0] // batch * batch
    with torch.no_grad():
        for start in range(0, seen, batch):
            x = torch.from_numpy(rows.read(start, start + batch))
            again, l0 = path.reconstruct(x)
            lost = lost + (x - again).square().sum(0, dtype=torch.float64)
            there = there + (x - mean).square().sum(0, dtype=torch.float64)
            active += l0 * len(x)
    by_site = 1 - lost.view(path.sites, -1).sum(1) / there.view(path.sites, -1).sum(1)
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
    given, test = Rows(spec["data"]), Rows(spec["held_out"], spec.get("held_out_rows"))
    base = memory("VmRSS")
    path = make(spec, given)
    base = getattr(path, "base", base)
    batch = spec["batch"]

    def plain(step: int) -> torch.Tensor:
        start = step % (given.shape[0] // batch) * batch
        return torch.from_numpy(given.read(start, start + batch))

    take = getattr(path, "take", plain)
    spent = getattr(path, "spent", lambda _: None)
    began = time.perf_counter()
    for step in range(spec["warm"]):
        path.step(take(step))
    compiled = time.perf_counter() - began
    forget_peak()
    seconds: list[float] = []
    curve: list[dict[str, Any]] = []
    peak = 0  # up to the first look at held-out rows, whose memory is not training's
    evaluate, marks = set(spec["evaluate_at"]), sorted(spec.get("evaluate_at_seconds", []))
    step, total = spec["warm"], 0.0
    while True:
        x = take(step)
        start = time.perf_counter()
        path.step(x)
        seconds.append(time.perf_counter() - start)
        total += seconds[-1]
        spent(total)
        step += 1
        del x
        last = step >= spec["steps"] or (
            total > spec["seconds"] and len(seconds) >= spec["at_least"]
        )
        marked = bool(marks) and total >= marks[0]
        if marked:
            marks = [mark for mark in marks if mark > total]
        if step in evaluate or marked or last:
            peak = peak or memory("VmHWM")
            if hasattr(path, "reconstruct"):
                found = held_out(path, test, min(batch, test.shape[0]))
                curve.append({"tokens": step * batch, "seconds": total} | found)
        if last:
            break
    result = {
        "step_seconds": seconds,
        "warm_seconds": compiled,
        "peak_bytes": peak - base,
        "base_bytes": base,
        "curve": curve,
        "dead": path.dead(50_000) if hasattr(path, "dead") else None,
        "r": path.r,
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__} | path.versions,
        "note": getattr(path, "note", ""),
        "bytes_per_parameter": getattr(path, "bytes_per_parameter", None),
        "state_bytes": getattr(path, "state_bytes", None),
        "parameters": getattr(path, "parameters", None),
    }
    if spec.get("keep") and hasattr(path, "decoders"):
        np.save(spec["keep"], path.decoders().numpy())
    Path(spec["output"]).write_text(json.dumps(result))
