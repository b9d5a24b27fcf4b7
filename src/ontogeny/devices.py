"""Device, threads and compiler: the three things that differ between machines."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from typing import Any

import torch


def choose(device: str) -> torch.device:
    """The device that a setting names; 'auto' is CUDA where there is one, else the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def use_threads(threads: int) -> None:
    """Fix the number of CPU threads: sums are then added in one order, and runs repeat exactly."""
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)


def compiled(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """`torch.compile` as one graph, or the function itself where no C++ compiler is found."""
    compiler = os.environ.get("CXX") or "g++"
    if device.type == "cpu" and not (shutil.which(compiler) or shutil.which("clang++")):
        print(
            "no C++ compiler found: running eagerly, slower; install g++ to compile",
            file=sys.stderr,
        )
        return function
    return torch.compile(function, fullgraph=True, dynamic=False)
