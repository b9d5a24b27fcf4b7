"""Device, threads and compiler: the three things that differ between machines."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch

COMPILED = "TORCHINDUCTOR_CACHE_DIR"
EAGERLY = "training runs eagerly, which is slower"
GRAPHS = 64  # that one function may be compiled to in a process
_said: list[str] = []


def choose(device: str) -> torch.device:
    """The device that a setting names; 'auto' is CUDA where there is one, else the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def precision(name: str, device: torch.device) -> torch.dtype:
    """The type that a model is run in; 'auto' is bfloat16 on a GPU that has it, else float32."""
    if name == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        name = "bfloat16" if fast else "float32"
    found: torch.dtype = getattr(torch, name)
    return found


def sent(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """An array on the device. To a GPU it goes while the host works on, from memory that stays."""
    tensor = torch.from_numpy(values)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def use_threads(threads: int) -> None:
    """Fix the number of CPU threads: sums are then added in one order, and runs repeat exactly."""
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)


def keep_memory() -> None:
    """Let the C library reuse freed blocks of any size, where it can be told (glibc).

    By default it hands each large tensor back to the system and pays for fresh pages at every step.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        mmap_threshold, trim_threshold = -3, -1
        library.mallopt(mmap_threshold, 1 << 30)
        library.mallopt(trim_threshold, (1 << 31) - 1)


def find_compiled() -> None:
    """See to it that torch has a folder for what it compiles, which it needs as it is loaded."""
    named = os.environ.get(COMPILED)
    if not named:
        return
    try:
        Path(named).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=named).close()
    except OSError as error:
        os.environ[COMPILED] = tempfile.mkdtemp(prefix="ontogeny-compiled-")
        print(
            f"{COMPILED}: {named} cannot be written to ({error.strerror}); "
            f"{os.environ[COMPILED]} is used",
            file=sys.stderr,
        )


def compiler_missing() -> str:
    """What torch.compile needs on a CPU and this machine lacks; '' where nothing is."""
    names = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"]
    if not any(shutil.which(name) for name in names):
        return "no C++ compiler (install g++)"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "no Python headers (install python3-dev)"
    return ""


def _say(reason: str) -> None:
    """Say, once a process, why nothing is compiled."""
    if not _said:
        _said.append(reason)
        print(f"{reason}: {EAGERLY}", file=sys.stderr)


def _fails_to_compile(error: BaseException) -> bool:
    """Whether an error is the compiler's, or the system's as it keeps and loads what it makes."""
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    return isinstance(error, TorchDynamoException | InductorError | OSError | ImportError)


def _reason(error: BaseException) -> str:
    """What a compiler complains of, in one line: the system's reason, or its own first error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    telling = ("error:", "Error:", "failed to map", "No space left", "denied", "Read-only")
    return next((line for line in lines if any(word in line for word in telling)), lines[0])[:200]


def compiled(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """`torch.compile` as one graph, or the function itself, said aloud, where that cannot be.

    That shows when it is first called: a compiler may fail, its cache may be full, or lie where
    nothing can be run from.
    """
    missing = compiler_missing() if device.type == "cpu" else ""
    if missing:
        _say(missing)
        return function
    use: Callable[..., Any] = torch.compile(function, fullgraph=True, dynamic=False)
    # Of all trainings of a process: a graph for each shape, for AuxK's sizes and rooms for pairs.
    torch._dynamo.config.recompile_limit = GRAPHS

    @wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        nonlocal use
        try:
            return use(*given, **named)
        except Exception as error:
            if use is function or not _fails_to_compile(error):
                raise
            # Nothing has been computed: compiling comes before a graph's first operation.
            _say(f"torch.compile: {_reason(error)}")
            use = function
        return use(*given, **named)

    return call
