"""The results of cost formulas: the work of a job, and its peak memory as named terms.

The formulas are next to what they describe: snapshots/cost.py, activations/cost.py,
crosscoder/cost.py; scales.py has those of declared costs. None of these modules imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path

Terms = dict[str, float]
"""Bytes by purpose, so that a bill that does not fit can name the setting with most effect."""


@dataclass(frozen=True)
class Work:
    """The work of a job, by the kind of rate that applies.

    Attributes
    ----------
    forward : floating point operations of the language model in its own precision.
    forward32 : the same in float32. products : of the crosscoder's dense products, in its
        precision. products32 : of dense products in float32.
    pairs : of products over pairs at which features are active.
    moved, host_moved : bytes through the device's memory, and through the host's.
    read, written, fetched : bytes from disk, to disk, from the network.
    compiled : graphs to compile. starts : of processes; without transformers one counts half.
    ranks : processes that share the job, with one device each. flops : all operations.
    """

    forward: float = 0
    forward32: float = 0
    products: float = 0
    products32: float = 0
    pairs: float = 0
    moved: float = 0
    host_moved: float = 0
    read: float = 0
    written: float = 0
    fetched: float = 0
    compiled: float = 0
    starts: float = 1
    ranks: int = 1

    @property
    def flops(self) -> float:
        return self.forward + self.forward32 + self.products + self.products32 + self.pairs


@dataclass(frozen=True)
class Job:
    """One process, or several that share its work, with the terms of its peak memory.

    `host` is the memory of all processes together, `device` that of each device. If there is no
    GPU, what the devices would hold is in host memory as well, and `device` counts all of them.
    """

    work: Work = Work()
    host: Terms = field(default_factory=dict)
    device: Terms = field(default_factory=dict)


@cache
def built_for_cuda() -> bool:
    """Whether the installed torch is a CUDA build, which takes more memory even without a GPU."""
    found = find_spec("torch")
    folder = Path(found.origin).with_name("lib") if found and found.origin else Path()
    return any(folder.glob("libtorch_cuda*"))


def base(gpu: bool) -> tuple[Terms, Terms]:
    """Memory of a process with torch and transformers, on host and device, before any work."""
    host = 2.5e9 if gpu else 1.0e9 if built_for_cuda() else 0.65e9
    return {"Python and torch": host}, ({"CUDA": 0.8e9} if gpu else {})


def job(gpu: bool, work: Work, host: Terms, device: Terms) -> Job:
    """A job in a process with torch, and with CUDA if there is a GPU."""
    of_host, of_device = base(gpu)
    return Job(work, of_host | host, of_device | device)


def launcher() -> Terms:
    """Memory of the process that starts several ranks and waits for them."""
    return {"launcher": base(False)[0]["Python and torch"]}


def merged(*terms: Terms) -> Terms:
    """Sums of terms of the same name."""
    names = dict.fromkeys(name for each in terms for name in each)
    return {name: sum(each.get(name, 0.0) for each in terms) for name in names}
