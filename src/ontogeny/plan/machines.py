"""What there is to run on: this machine, measured in some seconds, or a device of devices.yaml."""

from __future__ import annotations

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
from ontogeny.files import InputError
from ontogeny.plan import cost
from ontogeny.plan.cost import Dictionary
from ontogeny.settings import Settings
from ontogeny.snapshots import sources
from ontogeny.snapshots.shape import Shape

DEVICES = Path(__file__).with_name("devices.yaml")
SECONDS = 0.25  # that a measurement takes about


@dataclass(frozen=True)
class Machine:
    """What there is: bytes. device 0: no GPU is seen; None: one that nothing is known of.

    scratch : where the folders that `scratch_holds` names lie instead, if that is another file
    system than `folder`'s, and the bytes that are free there.
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
    """How fast things go.

    Attributes
    ----------
    name : of the device. how : where the numbers come from.
    forward, forward32, products, products32, pairs : FLOP/s by cost.Work's kinds; on a CPU of one
    thread. moved, host_moved, read, write, fetch : bytes/s.
    memory : of the device; 0 for a CPU, None if unknown. bfloat16 : whether it has that type.
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
    """devices.yaml."""
    found: dict[str, Any] = yaml.safe_load(DEVICES.read_text(encoding="utf-8"))
    return found


def memory_of_host() -> int:
    """Bytes of memory that this machine has, or that its container allows."""
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            limit = int((Path("/sys/fs/cgroup") / name).read_text())
        except (OSError, ValueError):
            continue
        found = min(found, limit)
    return found


def _gpu(number: int) -> tuple[int, str, bool] | None:
    """(bytes, name, has bfloat16) of a GPU as its driver's own tool says; None where it has none.

    torch would say the same, seconds later.
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


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest above it that there is."""
    return next(p for p in (folder, *folder.absolute().parents) if p.exists())


def machine(s: Settings, results: str | Path) -> Machine:
    """Free disk where the results lie, the host's memory, and the GPU that `device` names."""
    here = _machine(s, results)
    if s.storage.scratch is None:
        return here
    scratch = _nearest(scratch_folder.expanded(s.storage.scratch))
    if scratch.stat().st_dev == here.folder.stat().st_dev:
        return here
    free = shutil.disk_usage(scratch).free
    held = tuple(s.storage.on_scratch)
    return replace(here, scratch=scratch, scratch_disk=free, scratch_holds=held)


def _machine(s: Settings, results: str | Path) -> Machine:
    home = _nearest(Path(results) / s.name)
    free, host = shutil.disk_usage(home).free, memory_of_host()
    if s.device == "cpu":
        return Machine(home, free, host, 0, "CPU", False)
    found = _gpu(int(s.device.partition(":")[2] or 0))
    if found is not None:
        return Machine(home, free, host, *found)
    if s.device == "auto":
        return Machine(home, free, host, 0, "CPU", False)
    return Machine(home, free, host, None, "a GPU that is not seen here")


def table(name: str, precision: str = "high") -> Rates:
    """Rates of a device of devices.yaml, from its peaks and the shares assumed to be reached.

    Parameters
    ----------
    precision : of the crosscoders' products on it: highest, high or medium.

    Raises
    ------
    InputError : no such device.
    """
    devices, reached, host = (data()[key] for key in ("devices", "reached", "host"))
    known = {key.lower(): key for key in devices}
    if name.lower() not in known:
        raise InputError(f"--device: {name} is not known; use one of {', '.join(devices)}")
    chosen = known[name.lower()]
    d = devices[chosen]
    products = {"highest": d["float32"], "high": d["tf32"], "medium": d["half"]}[precision]
    if not d["bfloat16"]:  # then torch multiplies in float32
        products = d["tf32"] or d["float32"]
    half = d["half"] if d["bfloat16"] else d["float32"]
    return Rates(
        name=chosen,
        how=f"from {DEVICES.name}, not measured ({d['source']})",
        forward=half * reached["forward"],
        forward32=d["float32"] * reached["forward32"],
        products=products * reached["products"],
        products32=d["float32"] * reached["products32"],
        pairs=d["bandwidth"] * reached["pairs"] / 2,  # 4 bytes read for 2 operations
        moved=d["bandwidth"] * reached["moved"],
        host_moved=host["moved"],
        read=host["read"],
        write=host["write"],
        memory=int(d["memory"]),
        bfloat16=bool(d["bfloat16"]),
    )


def _repeated(function: Callable[[], Any], wait: Callable[[], Any]) -> float:
    """Seconds of a call: the median over about SECONDS, after one that does not count."""
    function()
    wait()
    found: list[float] = []
    began = time.perf_counter()
    while len(found) < 3 or (time.perf_counter() - began < SECONDS and len(found) < 50):
        at = time.perf_counter()
        function()
        wait()
        found.append(time.perf_counter() - at)
    return sorted(found)[len(found) // 2]


def measure(s: Settings, results: str | Path, model_shape: Shape, largest: Dictionary) -> Rates:
    """Rates of this machine at the experiment's own sizes, cut down: some seconds.

    Parameters
    ----------
    model_shape : of the language model. largest : the crosscoder that has most weights.

    A forward pass through one block of the model, with random weights, at the experiment's context
    and in both precisions; an encoder's product and the decoder's kept rows; a copy in memory; a
    file written to the results' folder and read again; the start of a process.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from ontogeny import devices

    device = devices.choose(s.device)
    gpu = device.type == "cuda"

    def wait() -> None:
        if gpu:
            torch.cuda.synchronize(device)

    here = machine(s, results)
    config = dict(sources.architecture(s, results)) | {"use_cache": False}
    layers = next(n for n in ("num_hidden_layers", "n_layer") if n in config)
    shrunk = config | {layers: 1}
    for key in [k for k, v in config.items() if isinstance(v, list) and len(v) == config[layers]]:
        shrunk[key] = config[key][:1]
    known = AutoConfig.for_model(**{k: v for k, v in shrunk.items() if k != "quantization_config"})
    threads = torch.get_num_threads()
    try:
        if not gpu:
            torch.set_num_threads(1)
        else:
            torch.set_float32_matmul_precision("highest")
        forward = {}
        for dtype in {torch.float32, devices.precision(s.activations.precision, device)}:
            with torch.device(device):
                # from_config knows any architecture; weights are as they come
                model: Any = AutoModelForCausalLM.from_config(known, dtype=dtype).eval()
            ids = torch.zeros(1, s.corpus.context, dtype=torch.long, device=device)
            ids = ids.expand(max(1, cost.FORWARD_TOKENS // s.corpus.context), -1)
            inner = model.base_model

            @torch.no_grad()
            def run(inner: Any = inner, ids: Any = ids) -> None:
                inner(input_ids=ids, use_cache=False)

            token = model_shape.flops_per_token(s.corpus.context, 0)
            forward[dtype] = ids.numel() * token / _repeated(run, wait)
            del model, inner
        c = largest.c
        B, width = min(c.batch_rows, 1024), min(largest.I, 2048)
        F = min(c.features, 1 << 15 if gpu else 1 << 12)
        x = torch.randn(B, width, device=device)
        W = torch.randn(F, width, device=device)
        products32 = 2.0 * B * width * F / _repeated(lambda: x @ W.T, wait)
        products = products32
        if gpu:
            torch.set_float32_matmul_precision(c.precision)
            products = 2.0 * B * width * F / _repeated(lambda: x @ W.T, wait)
            torch.set_float32_matmul_precision("highest")
        active = max(1, min(c.k, F))
        column = torch.randint(F, (B, active), device=device)
        f = torch.rand(B, active, device=device)
        seconds = _repeated(
            lambda: torch.nn.functional.embedding_bag(column, W, per_sample_weights=f, mode="sum"),
            wait,
        )
        pairs = 2.0 * B * active * width / seconds
        big = torch.empty(1 << 24, device=device)
        moved = 8.0 * big.numel() / _repeated(lambda: big.mul_(1.0), wait)
        own = torch.empty(1 << 22)
        host_moved = 8.0 * own.numel() / _repeated(lambda: own.half().float(), lambda: None) / 2
    finally:
        torch.set_num_threads(threads)
    read, write = _disk_rates(here.folder)
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch, transformers.modeling_utils"], check=True)
    start = time.perf_counter() - began
    name = torch.cuda.get_device_name(device) if gpu else "CPU"
    memory = torch.cuda.get_device_properties(device).total_memory if gpu else 0
    chosen = devices.precision(s.activations.precision, device)
    half = gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    return Rates(
        name=name,
        how="measured here: "
        f"forward {forward[chosen] / 1e9:.0f} GFLOP/s, products {products / 1e9:.0f}, "
        f"pairs {pairs / 1e9:.1f}; memory {moved / 1e9:.1f} GB/s, disk written "
        f"{write / 1e9:.1f}, read {read / 1e9:.1f}; {start:.1f} s to start a process",
        forward=forward[chosen],
        forward32=forward[torch.float32],
        products=products,
        products32=products32,
        pairs=pairs,
        moved=moved,
        host_moved=host_moved,
        read=read,
        write=write,
        memory=memory,
        bfloat16=bool(half),
        start=start,
    )


def _disk_rates(folder: Path, size: int = 1 << 27) -> tuple[float, float]:
    """(read, written) bytes/s of a file in the folder; read past the cache if that may be."""
    path = folder / f".ontogeny-disk.{os.getpid()}.part"
    data = os.urandom(1 << 20)
    try:
        began = time.perf_counter()
        with open(path, "wb") as file:
            for _ in range(size >> 20):
                file.write(data)
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
