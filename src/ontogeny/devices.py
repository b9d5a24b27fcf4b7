"""Device, threads and compiler, which differ between machines."""

from __future__ import annotations

import ctypes
import logging
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

from ontogeny import gpus
from ontogeny.files import InputError

COMPILED = "TORCHINDUCTOR_CACHE_DIR"
EAGERLY = "training runs eagerly, which is slower"
GRAPHS = 64  # most graphs to which one function may be compiled in a process
_said: list[str] = []
# When imported, it warns of a CUDA toolkit without a GPU, which a login node may have.
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


# Oldest driver for a CUDA version (NVIDIA, CUDA Toolkit release notes, minor version
# compatibility).
LEAST_DRIVER = {11: 450, 12: 525, 13: 580}


def choose(device: str) -> torch.device:
    """The device that a setting names; 'auto' is CUDA if there is a GPU, otherwise the CPU.

    Raises
    ------
    InputError : torch cannot use the GPU that is named, or that seems to be present.
    """
    if device == "cpu":
        return torch.device(device)
    if torch.cuda.is_available():
        chosen = torch.device("cuda" if device == "auto" else device)
        count = torch.cuda.device_count()
        if (chosen.index or 0) >= count:
            raise InputError(
                f"device: {device} is not there; the GPUs here are cuda:0 to cuda:{count - 1}"
            )
        return chosen
    sign = gpus.sign()
    if device == "auto" and not sign:
        return torch.device("cpu")
    raise InputError(
        f"device: {device}: {f'there is a GPU ({sign})' if sign else 'a GPU is asked for'} that "
        f"torch cannot use: {_why_unusable()}, or set device: cpu to run on the processor"
    )


def _why_unusable() -> str:
    """Why torch sees no GPU, and how to correct it."""
    version = torch.version.cuda
    if version is None:
        return f"torch {torch.__version__} has no CUDA; install a wheel that has (docs/cluster.md)"
    least, driver = LEAST_DRIVER.get(int(version.partition(".")[0])), gpus.driver()
    needs = "" if least is None else f", which needs an NVIDIA driver of {least} or later"
    here = f"the driver here is {driver}" if driver else "no driver answers here"
    mend = "ask for a newer driver, or install a wheel for an older CUDA (docs/cluster.md)"
    if driver and least is not None and int(driver.partition(".")[0]) >= least:
        mend = f"see what nvidia-smi says{_cuda_says()}"
    return f"torch {torch.__version__} has CUDA {version}{needs}; {here}; {mend}"


def _cuda_says() -> str:
    """The first line of CUDA's error message when it starts."""
    try:
        torch.cuda.init()
    except Exception as error:  # RuntimeError, AssertionError or one of CUDA's classes
        return f" (CUDA: {str(error).splitlines()[0]})"
    return ""


def about(device: str, model: str, products: str) -> str:
    """A line about the devices that a run here would use.

    Parameters
    ----------
    device : from the settings. model : activations.precision. products : of the primary crosscoder.

    Raises
    ------
    InputError : as for `choose`.
    """
    chosen = choose(device)
    run_in = str(precision(model, chosen)).removeprefix("torch.")
    name, inside = "the processor", "float32"
    if chosen.type == "cuda":
        name = torch.cuda.get_device_name(chosen)
        has_tf32 = torch.cuda.get_device_capability(chosen)[0] >= 8
        inside = "TF32" if products == "high" and has_tf32 else "float32"
    return f"{chosen} ({name}): models run in {run_in}, crosscoders' products are in {inside}"


def precision(name: str, device: torch.device) -> torch.dtype:
    """The type in which a model runs; 'auto' is bfloat16 if the GPU has it, else float32."""
    if name == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        name = "bfloat16" if fast else "float32"
    found: torch.dtype = getattr(torch, name)
    return found


def sent(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """Copy an array to the device. A GPU copies in the background, from pinned memory."""
    tensor = torch.from_numpy(values)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def use_threads(threads: int) -> None:
    """Fix the number of CPU threads, so that sums have one order and runs repeat exactly."""
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)


def keep_memory() -> None:
    """Let the C library reuse freed blocks of any size, if it supports this (glibc).

    By default it returns each large tensor to the system and pays for fresh pages at every step.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        mmap_threshold, trim_threshold = -3, -1
        library.mallopt(mmap_threshold, 1 << 30)
        library.mallopt(trim_threshold, (1 << 31) - 1)


def find_compiled() -> None:
    """Make sure that torch has a folder for compiled code, which it needs when it is loaded."""
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
    """What torch.compile needs on a CPU but this machine lacks; '' if nothing."""
    names = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"]
    if not any(shutil.which(name) for name in names):
        return "no C++ compiler (install g++)"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "no Python headers (install python3-dev)"
    return ""


def _say(reason: str) -> None:
    """Report, once per process, why nothing is compiled."""
    if not _said:
        _said.append(reason)
        print(f"{reason}: {EAGERLY}", file=sys.stderr)


def _fails_to_compile(error: BaseException) -> bool:
    """Whether an error comes from the compiler, or from storing or loading what it makes."""
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    return isinstance(error, TorchDynamoException | InductorError | OSError | ImportError)


def _reason(error: BaseException) -> str:
    """A compiler's complaint in one line: the system's reason, or its own first error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    telling = ("error:", "Error:", "failed to map", "No space left", "denied", "Read-only")
    return next((line for line in lines if any(word in line for word in telling)), lines[0])[:200]


def compiled(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """`torch.compile` as one graph, or the function itself, with a message, if compiling fails.

    A failure shows only at the first call: a compiler may fail, its cache may be full, or be in a
    folder from which nothing can be run.
    """
    missing = compiler_missing() if device.type == "cpu" else ""
    if missing:
        _say(missing)
        return function
    use: Callable[..., Any] = torch.compile(function, fullgraph=True, dynamic=False)
    # Over all trainings of a process: one graph per shape, size of AuxK and room for pairs.
    torch._dynamo.config.recompile_limit = GRAPHS

    @wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        nonlocal use
        try:
            return use(*given, **named)
        except Exception as error:
            if use is function or not _fails_to_compile(error):
                raise
            # Compiling comes before a graph's first operation, so nothing has been computed yet.
            _say(f"torch.compile: {_reason(error)}")
            use = function
        return use(*given, **named)

    return call
