"""The machine to run on: this one, measured in a few seconds, or a device of devices.yaml."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ontogeny import scratch as scratch_folder
from ontogeny.activations.sizes import FORWARD_TOKENS
from ontogeny.cost.terms import Work
from ontogeny.experiment import Experiment
from ontogeny.files import InputError
from ontogeny.settings import Crosscoder, Settings
from ontogeny.snapshots import sources
from ontogeny.snapshots.shape import Shape

DEVICES = Path(__file__).with_name("devices.yaml")
SECONDS = 0.25  # approximate duration of one measurement


@dataclass(frozen=True)
class Machine:
    """What a machine has, in bytes. device is 0 if no GPU is seen, None if nothing is known of it.

    scratch : where the folders named by `scratch_holds` are, if that is another file system than
    that of `folder`, and the free bytes there.
    """

    folder: Path
    disk: int
    host: int
    device: int | None
    device_name: str
    half: bool = True
    scratch: Path | None = None
    scratch_disk: int = 0
    scratch_holds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rates:
    """How fast a machine works.

    Attributes
    ----------
    name : of the device. how : where the numbers come from.
    forward, forward32, products, products32, pairs : FLOP/s by the kinds of terms.Work; on a CPU
        for one thread. moved, host_moved, read, write, fetch : bytes/s.
    memory : of the device; 0 for a CPU, None if unknown. bfloat16 : whether it supports that type.
    """

    name: str
    how: str
    forward: float
    forward32: float
    products: float
    products32: float
    pairs: float
    moved: float
    host_moved: float
    read: float
    write: float
    memory: int | None
    bfloat16: bool = True
    start: float = 0.0


@cache
def data() -> dict[str, Any]:
    """The contents of devices.yaml."""
    known: dict[str, Any] = yaml.safe_load(DEVICES.read_text(encoding="utf-8"))
    return known


def memory_of_host() -> int:
    """Bytes of memory that this machine has, or that its container allows."""
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            size = min(size, int((Path("/sys/fs/cgroup") / name).read_text()))
    return size


def _gpu(number: int) -> tuple[int, str, bool] | None:
    """(bytes, name, has bfloat16) of a GPU according to its driver's own tool, or None.

    torch gives the same answer, but takes seconds.
    """
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = "--query-gpu=memory.total,name,compute_cap"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    chosen = visible[number] if visible != [""] and number < len(visible) else str(number)
    try:
        said = subprocess.run(
            [tool, query, "--format=csv,noheader,nounits", "-i", chosen],
            capture_output=True, text=True, timeout=20, check=True,
        ).stdout  # fmt: skip
        memory, name, capability = (word.strip() for word in said.splitlines()[0].split(","))
        return int(float(memory)) << 20, name, float(capability) >= 8
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def nearest(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def machine(settings: Settings, results: str | Path) -> Machine:
    """Free disk for the results, the host's memory, and the GPU that `device` names."""
    home, storage = nearest(Path(results) / settings.name), settings.storage
    elsewhere: dict[str, Any] = {}
    if storage.scratch is not None:
        scratch = nearest(scratch_folder.expanded(storage.scratch))
        if scratch.stat().st_dev != home.stat().st_dev:
            elsewhere = {
                "scratch": scratch,
                "scratch_disk": shutil.disk_usage(scratch).free,
                "scratch_holds": tuple(storage.on_scratch),
            }
    device: tuple[int | None, str, bool] = (None, "a GPU that is not seen here", True)
    if settings.device != "cpu":
        device = _gpu(int(settings.device.partition(":")[2] or 0)) or device
    if settings.device == "cpu" or (settings.device == "auto" and device[0] is None):
        device = (0, "CPU", False)
    return Machine(home, shutil.disk_usage(home).free, memory_of_host(), *device, **elsewhere)


def table(name: str, precision: str = "high") -> Rates:
    """Rates of a device of devices.yaml, from its peaks and the assumed share of them.

    Parameters
    ----------
    name : of the device, or a file with measured rates that benchmarks/gpu_check.py wrote.
    precision : of the crosscoders' products on it: highest or high.

    Raises
    ------
    InputError : no such device, or no such file.
    """
    if name.endswith(".json"):
        return _of_file(Path(name), precision)
    devices, reached, host = (data()[key] for key in ("devices", "reached", "host"))
    known = {key.lower(): key for key in devices}
    if name.lower() not in known:
        raise InputError(f"--device: {name} is not known; use one of {', '.join(devices)}")
    device = devices[known[name.lower()]]
    half, single, bandwidth = device["half"], device["float32"], device["bandwidth"]
    products = {"highest": single, "high": device["tf32"]}[precision]
    if not device["bfloat16"]:  # torch then multiplies in float32
        half, products = single, device["tf32"] or single
    return Rates(
        name=known[name.lower()],
        how=f"from {DEVICES.name}, not measured ({device['source']})",
        forward=half * reached["forward"],
        forward32=single * reached["forward32"],
        products=products * reached["products"],
        products32=single * reached["products32"],
        pairs=bandwidth * reached["pairs"] / 2,  # 2 operations read 4 bytes
        moved=bandwidth * reached["moved"],
        host_moved=host["moved"],
        read=host["read"],
        write=host["write"],
        memory=int(device["memory"]),
        bfloat16=bool(device["bfloat16"]),
    )


def _of_file(path: Path, precision: str) -> Rates:
    """The rates in a machine file."""
    try:
        rates = Rates(**json.loads(path.read_text(encoding="utf-8"))["rates"])
    except OSError as error:
        raise InputError(f"--device: {path}: {error.strerror}; name a file that is there") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"--device: {path} has no rates of this version; make it again with "
            "python -m benchmarks.gpu_check"
        ) from None
    products = rates.products32 if precision == "highest" else rates.products
    how = rates.how.replace("measured here", f"measured ({path.name})")
    return replace(rates, products=products, how=how)


def seconds(work: Work, rates: Rates, threads: int = 1, on_host: bool = False) -> float:
    """Seconds that a job's work takes.

    Parameters
    ----------
    threads : of a CPU, whose rates are for one thread. on_host : NumPy computes the products.
    """
    known, reached = data()["host"], data()["reached"]
    on_cpu = rates.memory == 0
    speed = 1 + (threads - 1) * reached["threads"] if on_cpu else 1.0
    speed *= 1 + (work.ranks - 1) * reached["ranks"]
    products32 = rates.products32 if on_cpu or not on_host else known["products"]
    spent = (
        work.forward / rates.forward
        + work.forward32 / rates.forward32
        + work.products / rates.products
        + work.products32 / products32
        + work.pairs / rates.pairs
        + work.moved / rates.moved
    ) / speed
    spent += (
        work.host_moved / rates.host_moved + work.read / rates.read + work.written / rates.write
    )
    spent += work.fetched / known["fetch"] + work.compiled * known["compile"]
    return float(spent + work.starts * (rates.start or known["start"]))


def _rate(amount: float, run: Callable[[], Any], wait: Callable[[], Any]) -> float:
    """Amount per second: the median of calls during about SECONDS, after one warm-up call."""
    run()
    wait()
    spent: list[float] = []
    while len(spent) < 3 or (sum(spent) < SECONDS and len(spent) < 50):
        began = time.perf_counter()
        run()
        wait()
        spent.append(time.perf_counter() - began)
    return amount / sorted(spent)[len(spent) // 2]


def _one_block(architecture: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a model with one of its blocks."""
    layers = next(name for name in ("num_hidden_layers", "n_layer") if name in architecture)
    shrunk = {k: v for k, v in architecture.items() if k != "quantization_config"}
    for key, value in shrunk.items():  # lists with one entry per block
        if isinstance(value, list) and len(value) == architecture[layers]:
            shrunk[key] = value[:1]
    return shrunk | {layers: 1, "use_cache": False}


def measure(experiment: Experiment, shape: Shape, chosen: Crosscoder, columns: int) -> Rates:
    """Rates of this machine at the experiment's own sizes, in short runs of a few seconds.

    Parameters
    ----------
    shape : of the language model. chosen : the crosscoder with most weights. columns : that it
        reads.

    Measured are a forward pass through one block of the model, with random weights, at the
    experiment's context and in both precisions; an encoder's product and the decoder's active rows;
    a copy in memory; writing a file to the results' folder and reading it; starting a process.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from ontogeny import devices

    settings = experiment.settings
    context = settings.corpus.context
    device = devices.choose(settings.device)
    gpu = device.type == "cuda"
    precision = devices.precision(settings.activations.precision, device)
    config = AutoConfig.for_model(**_one_block(sources.architecture(settings, experiment.results)))

    def rate(amount: float, run: Callable[[], Any]) -> float:
        return _rate(amount, run, torch.cuda.synchronize if gpu else lambda: None)

    threads, forward = torch.get_num_threads(), {}
    try:
        torch.set_float32_matmul_precision("highest")
        if not gpu:
            torch.set_num_threads(1)
        ids = torch.zeros(max(1, FORWARD_TOKENS // context), context, dtype=torch.long).to(device)
        for dtype in {torch.float32, precision}:
            with torch.device(device), torch.no_grad():
                # weights are random
                model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
                run = functools.partial(model.base_model, input_ids=ids, use_cache=False)
                forward[dtype] = rate(ids.numel() * shape.flops_per_token(context, 0), run)
        B, width = min(chosen.batch_rows, 1024), min(columns, 2048)
        F = min(chosen.features, 1 << 15 if gpu else 1 << 12)
        x, W = torch.randn(B, width, device=device), torch.randn(F, width, device=device)
        products = products32 = rate(2.0 * B * width * F, lambda: x @ W.T)
        if gpu:
            torch.set_float32_matmul_precision(chosen.precision)
            products = rate(2.0 * B * width * F, lambda: x @ W.T)
            torch.set_float32_matmul_precision("highest")
        active = max(1, min(chosen.k, F))
        column, f = torch.randint(F, (B, active), device=device), torch.rand(B, active).to(device)
        kept = functools.partial(
            torch.nn.functional.embedding_bag, column, W, per_sample_weights=f, mode="sum"
        )
        pairs = rate(2.0 * B * active * width, kept)
        large, own = torch.empty(1 << 24, device=device), torch.empty(1 << 22)
        moved = rate(8.0 * large.numel(), lambda: large.mul_(1.0))
        host_moved = rate(4.0 * own.numel(), lambda: own.half().float())
    finally:
        torch.set_num_threads(threads)
    read, write = _disk_rates(nearest(experiment.folder))
    began = time.perf_counter()
    imports = "import torch, transformers.modeling_utils"
    words = [sys.executable, "-c", f"from ontogeny import process; process.begin(); {imports}"]
    subprocess.run(words, check=True)
    start = time.perf_counter() - began
    return Rates(
        name=torch.cuda.get_device_name(device) if gpu else "CPU",
        how="measured here: "
        f"forward {forward[precision] / 1e9:.0f} GFLOP/s, products {products / 1e9:.0f}, "
        f"pairs {pairs / 1e9:.1f}; memory {moved / 1e9:.1f} GB/s, disk written "
        f"{write / 1e9:.1f}, read {read / 1e9:.1f}; {start:.1f} s to start a process",
        forward=forward[precision],
        forward32=forward[torch.float32],
        products=products,
        products32=products32,
        pairs=pairs,
        moved=moved,
        host_moved=host_moved,
        read=read,
        write=write,
        memory=torch.cuda.get_device_properties(device).total_memory if gpu else 0,
        bfloat16=gpu and torch.cuda.is_bf16_supported(including_emulation=False),
        start=start,
    )


def _disk_rates(folder: Path, size: int = 1 << 27) -> tuple[float, float]:
    """(read, written) bytes/s of a file in the folder, read without the cache if possible."""
    path = folder / f".ontogeny-disk.{os.getpid()}.part"
    block = os.urandom(1 << 20)
    try:
        began = time.perf_counter()
        with open(path, "wb") as file:
            for _ in range(size >> 20):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            write = size / (time.perf_counter() - began)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, size, os.POSIX_FADV_DONTNEED)
        began = time.perf_counter()
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 20):
                pass
        return size / (time.perf_counter() - began), write
    finally:
        path.unlink(missing_ok=True)
