"""What formulas of cost give: the work of a job, and its peak memory in named terms.

The formulas are kept with what they describe: snapshots/cost.py, activations/cost.py,
crosscoder/cost.py; scales.py has those of declared costs. None of these modules imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path

Terms = dict[str, float]
"""Bytes by what they are for, so that a bill that does not fit says which setting weighs most."""


@dataclass(frozen=True)
class Work:
    """What a job does, by the rate that it runs at.

    Attributes
    ----------
    forward : floating point operations of the language model in its own precision.
    forward32 : the same in float32. products : of dense products of the crosscoder, in its
        precision. products32 : of dense products in float32.
    pairs : of products over the pairs at which features are active.
    moved, host_moved : bytes through the device's memory, and through the host's.
    read, written, fetched : bytes from disk, to disk, from the network.
    compiled : graphs that the compiler makes. starts : of processes; half a one without
        transformers. ranks : processes that share it, a device each. flops : all operations.
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
    """One process, or several that share its work: that work, and the terms of peak memory.

    `host` is of all of them, `device` of each one's. Where there is no GPU, what the devices would
    hold is in the host's memory too, and `device` is of all of them.
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
    """What a process with torch and transformers takes, on host and device, before any work."""
    host = 2.5e9 if gpu else 1.0e9 if built_for_cuda() else 0.65e9
    return {"Python and torch": host}, ({"CUDA": 0.8e9} if gpu else {})


def job(gpu: bool, work: Work, host: Terms, device: Terms) -> Job:
    """A job whose process has torch, and CUDA where there is a GPU."""
    of_host, of_device = base(gpu)
    return Job(work, of_host | host, of_device | device)


def launcher() -> Terms:
    """What the process takes that starts several ranks and waits for them."""
    return {"launcher": base(False)[0]["Python and torch"]}


def merged(*terms: Terms) -> Terms:
    """Sums of terms of the same name."""
    names = dict.fromkeys(name for each in terms for name in each)
    return {name: sum(each.get(name, 0.0) for each in terms) for name in names}
