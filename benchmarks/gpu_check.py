"""Does training work on a GPU, and how fast? One command of some minutes.

    python -m benchmarks.gpu_check                     one GPU; writes gpu_check.json
    python -m benchmarks.gpu_check --cpu               the same checks on the CPU, at a small size

Of each loss, gate and space:

    reference     loss and gradients against reference.py, in float64 eagerly and, on a GPU, in
                  float32 compiled
    no host sync  a step of the trainer with set_sync_debug_mode("error")       (GPU)
    no atomics    two trainings end alike, bit for bit, and a step runs with deterministic
                  algorithms alone. Kinds that are known to have atomics are named in ATOMICS
    one graph     the compiler makes no second one while shapes stay

and, on a GPU, of Pythia-160M's size (32 snapshots × 768, F 32,768, B 2,048, R 2,048) the time of a
step, its memory, and the encoder's product that bounds it. Last come the rates that `ontogeny plan`
reckons with, measured at that size: `ontogeny plan FILE --device gpu_check.json` reads them. The
exit status is 1 where a check fails, 2 where there is no GPU.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from ontogeny import devices, settings
from ontogeny.cost import bill
from ontogeny.crosscoder import model, reference, train
from ontogeny.crosscoder.ranks import Ranks
from ontogeny.settings import Crosscoder

KINDS: dict[str, dict[str, Any]] = {
    "batch_topk": {"activation": "batch_topk", "gate": "feature"},
    "batch_topk per snapshot": {"activation": "batch_topk", "gate": "snapshot"},
    "jumprelu": {"activation": "jumprelu", "gate": "feature"},
    "jumprelu per snapshot": {"activation": "jumprelu", "gate": "snapshot"},
    "penalty per snapshot": {
        "activation": "jumprelu", "gate": "snapshot", "penalty": "per_snapshot",
    },
    "refit": {"activation": "jumprelu", "gate": "snapshot", "refit": True},
    "relu": {"activation": "relu", "gate": "feature"},
}  # fmt: skip
SPACES = ("full", "hybrid", "principal")
ATOMICS: dict[str, str] = {}  # of kinds whose step has some, where; none is known
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
SPARSITY, BANDWIDTH, K = 0.3, 0.7, 2
PYTHIA = {"sites": 32, "width": 768, "R": 2048, "features": 32_768, "rows": 2048, "k": 40}
SMALL = {"sites": 4, "width": 8, "R": 16, "features": 64, "rows": 64, "k": 4}
TIMED = [
    ("principal", "batch_topk"),
    ("hybrid", "batch_topk per snapshot"),
    ("hybrid", "jumprelu per snapshot"),
]
BEHAVED = [
    *TIMED, ("full", "batch_topk"), ("full", "jumprelu per snapshot"), ("hybrid", "refit"),
    ("full", "relu"),
]  # fmt: skip
WARM, RUNS = 3, 15


class Data:
    """What the trainer asks of its data: one batch of random rows, again and again."""

    def __init__(self, space: str, sizes: dict[str, int], device: torch.device) -> None:
        n, self.width, rows = sizes["sites"], sizes["width"], sizes["rows"]
        self.space, self.device, self.digest = space, device, ""
        self.scales_in = self.scales_out = torch.ones(n)
        made = torch.Generator(device).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, device=device, generator=made)

        self.U, self.target = None, normal(n, rows, self.width)
        if space != "full":
            self.U = torch.linalg.qr(normal(n * self.width, sizes["R"])).Q
        flat = self.target.transpose(0, 1).flatten(1)
        self.x = flat if self.U is None else flat @ self.U
        if space == "principal":
            self.target = self.x[None]

    def batches(self, size: int, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(x, target) of steps [start, stop)."""
        return ((self.x, self.target) for _ in range(start, stop))


class Checks:
    """What was found: checks that hold or not, and numbers."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.began = device, time.monotonic()
        self.checks: dict[str, bool] = {}
        self.numbers: dict[str, float] = {}
        self.notes: dict[str, str] = {}
        self.rates: dict[str, Any] = {}

    def check(self, name: str, holds: bool, note: str = "") -> None:
        """Note whether something holds."""
        self.checks[name] = bool(holds)
        self._say(name, "yes" if holds else "NO", note)

    def number(self, name: str, value: float, note: str = "") -> None:
        """Note a number."""
        self.numbers[name] = value
        self._say(name, f"{value:.4g}", note)

    def _say(self, name: str, value: str, note: str) -> None:
        if note:
            self.notes[name] = note
        click.echo(f"{time.monotonic() - self.began:5.0f} s  {name}: {value}  {note}")

    def guarded(self, name: str, part: Callable[[], None]) -> None:
        """Run a part; an error of it is a check that fails, and ends no other."""
        try:
            part()
        except Exception as error:
            traceback.print_exc()
            self.check(name, False, f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")

    def write(self, output: Path) -> None:
        """Write JSON."""
        about = {"device": str(self.device), "torch": torch.__version__}
        if self.device.type == "cuda":
            about["name"] = torch.cuda.get_device_name(self.device)
        about["seconds"] = f"{time.monotonic() - self.began:.0f}"
        found = {"checks": self.checks, "numbers": self.numbers, "notes": self.notes}
        found["rates"] = self.rates
        output.write_text(json.dumps({"about": about} | found, indent=1) + "\n", encoding="utf-8")


def section(kind: str, space: str, sizes: dict[str, int], **changes: Any) -> Crosscoder:
    """The settings of a training of a kind and space."""
    return Crosscoder.model_validate(
        {"inputs": {"layers": [0]}, "basis": space, "features": sizes["features"], "k": sizes["k"],
         "batch_rows": sizes["rows"], "steps": 100_000, "dead_after_rows": 10_000_000}
        | KINDS[kind] | changes
    )  # fmt: skip


def gap(
    kind: str, space: str, dtype: torch.dtype, compiled: bool, device: torch.device, dead: bool
) -> float:
    """Largest relative distance of loss and gradients from the reference's."""
    sites, features, rows, width = 3, 16, 12, 5
    rng = np.random.default_rng(len(kind) + len(space))
    blocks, wide = (1, 4) if space == "principal" else (sites, width)
    inputs = sites * width if space == "full" else 4
    arrays = {
        "W_enc": rng.normal(size=(features, inputs)) / inputs**0.5,
        "b_enc": 0.1 * rng.normal(size=features),
        "W_dec": rng.normal(size=(features, blocks, wide)),
        "b_dec": 0.1 * rng.normal(size=(blocks, wide)),
        "log_threshold": np.log(rng.uniform(0.05, 0.8, features)),
    }
    x, target = rng.normal(size=(rows, inputs)), rng.normal(size=(rows, blocks, wide))
    name = str(dtype).removeprefix("torch.")
    arrays = {n: a.astype(name).astype(float) for n, a in arrays.items()}
    x, target = (a.astype(name).astype(float) for a in (x, target))

    def put(array: np.ndarray) -> Tensor:
        return torch.tensor(array, dtype=dtype, device=device)

    tensors = {n: put(a) for n, a in arrays.items()}
    tensors["W_dec"] = model.by_block(tensors["W_dec"])
    tensors["b_dec"] = tensors["b_dec"].flatten()
    W = model.Weights(**tensors)
    G = model.Weights(**{n: torch.full_like(t, 7.0) for n, t in W.named().items()})
    sizes = SMALL | {"features": features, "rows": rows}
    own = {"bandwidth": BANDWIDTH, "aux_k": 2, "aux_weight": 0.5}
    c = section(kind, space, sizes, **own)
    per_site = c.gate == "snapshot"
    ranks = Ranks(room=features * rows)
    loss = train.make_loss(c, blocks, ranks)
    if compiled:
        torch.compiler.reset()
        loss = devices.compiled(loss, device)
    gone = np.array([1, 4, 6, 7] if dead else [], int)
    dead_t = torch.tensor(gone, device=device)
    out = loss(
        W, G, put(x), put(target).transpose(0, 1), dead_t, dead_t >= 0, put(np.array(SPARSITY)),
        torch.arange(rows, device=device), K * rows * (blocks if per_site else 1),
    )  # fmt: skip
    wanted, gradients = reference.step(
        arrays, x, target, activation=c.activation, per_site=per_site, k=K, sparsity=SPARSITY,
        penalty=c.penalty, refit=c.refit, bandwidth=BANDWIDTH, dead=gone, aux_k=2, aux_weight=0.5,
    )  # fmt: skip
    if c.activation != "jumprelu":
        del gradients["log_threshold"]
    gaps = [abs(out.loss.item() - wanted) / abs(wanted)]
    for tensor, gradient in gradients.items():
        found = getattr(G, tensor).cpu().double().numpy().reshape(gradient.shape)
        gaps.append(np.abs(found - gradient).max() / max(np.abs(gradient).max(), 1e-12))
    return float(np.nan_to_num(np.max(gaps), nan=np.inf))


def references(found: Checks) -> None:
    """Losses and gradients of all kinds against the reference."""
    torch.set_float32_matmul_precision("highest")
    for space in SPACES:
        for kind, c in KINDS.items():
            if space == "principal" and (c["gate"] == "snapshot" or kind == "relu"):
                continue
            for dead in (False, True) if kind == "batch_topk" else (False,):
                name = f"{kind}{', AuxK' if dead else ''}, {space}"
                ways = [(torch.float64, False)]
                if found.device.type == "cuda":
                    ways.append((torch.float32, True))
                for dtype, compiled in ways:
                    how = "compiled in float32" if compiled else "in float64"
                    check = f"reference: {name}, {how}"

                    def part(
                        check: str = check, dtype: torch.dtype = dtype, compiled: bool = compiled,
                        kind: str = kind, space: str = space, dead: bool = dead,
                    ) -> None:  # fmt: skip
                        distance = gap(kind, space, dtype, compiled, found.device, dead)
                        found.check(check, distance < TOLERANCE[dtype], f"{distance:.1e}")

                    found.guarded(check, part)


def steps_of(
    kind: str, space: str, sizes: dict[str, int], device: torch.device
) -> tuple[train.Training, Callable[[], Any], Any]:
    """A training that has begun, what takes a step of it, and its progress."""
    data = Data(space, sizes, device)
    c = section(kind, space, sizes)
    training = train.Training(c, data, sizes["sites"], Ranks())  # type: ignore[arg-type]
    now = training.begin(0)
    return training, lambda: training.advance(now, data.x, data.target, 1e-5), now


def behaviour(found: Checks, kind: str, space: str, sizes: dict[str, int]) -> None:
    """Host syncs, atomics and graphs of a step; and that its weights stay finite."""
    name = f"{kind}, {space}"
    torch.compiler.reset()
    _, step, now = steps_of(kind, space, sizes, found.device)
    for _ in range(WARM):
        step()
    counters = torch._dynamo.utils.counters
    graphs = counters["stats"]["unique_graphs"]
    if found.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
            found.check(f"no host sync: {name}", True)
        except RuntimeError as error:
            found.check(f"no host sync: {name}", False, str(error).splitlines()[0])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    step()
    one = counters["stats"]["unique_graphs"] == graphs and not counters["graph_break"]
    found.check(f"one graph: {name}", one)
    found.check(f"finite: {name}", now.finite)
    found.check(f"no atomics: {name}, two trainings", same(kind, space, sizes, found.device))
    torch.compiler.reset()
    torch.use_deterministic_algorithms(True)
    try:
        step()
        found.check(f"no atomics: {name}, deterministic", True)
    except RuntimeError as error:
        stated = ATOMICS.get(kind)
        note = stated or str(error).splitlines()[0]
        found.check(f"no atomics: {name}, deterministic", bool(stated), note)
    finally:
        torch.use_deterministic_algorithms(False)


def same(kind: str, space: str, sizes: dict[str, int], device: torch.device) -> bool:
    """Whether two trainings of a few steps end with the same bits."""
    ends = []
    for _ in range(2):
        _, step, now = steps_of(kind, space, sizes, device)
        for _ in range(WARM):
            step()
        ends.append(now.weights.named())
    return all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


def milliseconds(call: Callable[[], Any]) -> float:
    """Median of a call on the GPU."""
    for _ in range(WARM):
        call()
    times = []
    for _ in range(RUNS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def timing(found: Checks, kind: str, space: str) -> None:
    """Time and memory of a step at Pythia-160M's size, and the bound of its encoder's product."""
    name = f"Pythia-160M's size, {kind}, {space}"
    torch.compiler.reset()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    torch.set_float32_matmul_precision("high")
    training, step, now = steps_of(kind, space, PYTHIA, found.device)
    rows, W, x = PYTHIA["rows"], now.weights, training.data.x  # type: ignore[attr-defined]
    taken = milliseconds(step)
    found.number(f"{name}: ms a step", taken, f"{1e3 * rows / taken:,.0f} rows/s")
    bound = milliseconds(lambda: torch.addmm(W.b_enc, x, W.W_enc.T))
    found.number(f"{name}: ms of the encoder's product", bound, f"a step is {taken / bound:.1f}")
    found.number(f"{name}: GB at most", torch.cuda.max_memory_allocated() / 1e9)
    found.check(f"finite: {name}", now.finite)


def rates(found: Checks) -> None:
    """What `ontogeny plan` reckons with, at Pythia-160M's size."""
    given = settings.load(Path(__file__).parents[1] / "experiments" / "pythia-160m.yaml")
    given = given.model_copy(update={"device": found.device.type})
    with tempfile.TemporaryDirectory() as results:
        measured = bill.measure(given, results)
    found.rates = asdict(measured)
    found.check("rates for ontogeny plan", measured.forward > 0, measured.how)


@click.command()
@click.option("--cpu", is_flag=True, help="The same checks on the CPU, at a small size.")
@click.option("--output", default="gpu_check.json", type=click.Path(path_type=Path))
def main(cpu: bool, output: Path) -> None:
    """Check training on a GPU, and time it."""
    if not cpu and not torch.cuda.is_available():
        click.echo(
            "gpu_check: there is no CUDA GPU here; --cpu runs its checks without one", err=True
        )
        sys.exit(2)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic products ask for it
    device = torch.device("cpu" if cpu else "cuda")
    found = Checks(device)
    references(found)
    for space, kind in TIMED[1:] if cpu else BEHAVED:
        name = f"behaviour: {kind}, {space}"
        found.guarded(name, lambda kind=kind, space=space: behaviour(found, kind, space, SMALL))
    if not cpu:
        for space, kind in TIMED:
            name = f"timing: {kind}, {space}"
            found.guarded(name, lambda kind=kind, space=space: timing(found, kind, space))
    found.guarded("rates for ontogeny plan", lambda: rates(found))
    found.write(output)
    failed = [name for name, holds in found.checks.items() if not holds]
    click.echo(f"{len(found.checks)} checks, {len(failed)} failed; {output}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
