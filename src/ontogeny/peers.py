"""Processes that share one training, and the messages between them.

A process that works alone is number 0 of 1: every method then returns its argument, so that the
calling code needs no special case. Compiled graphs call the operators as opaque functions, since
Inductor (torch 2.13) performs the collectives that it knows in place, and readers of the sum may
then run before it is complete.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


class PeerLost(RuntimeError):
    """A message was lost, or another process has a fault that it reports itself."""


class Peers:
    """This process among those that share the work.

    Attributes
    ----------
    rank, size : number of this process, from 0, and number of all processes.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    def parts(self, count: int) -> list[slice]:
        """Consecutive parts of `count` items, one per process, as equal as possible."""
        stops = [count * (rank + 1) // self.size for rank in range(self.size)]
        return [slice(start, stop) for start, stop in zip([0, *stops], stops, strict=False)]

    def total(self, own: Tensor) -> Tensor:
        """The sum of the tensors of all processes, the same bits on each."""
        return own if self.size == 1 else torch.ops.ontogeny.total(own)

    def joined(self, own: Tensor, columns: Sequence[int]) -> Tensor:
        """(P, Σ columns, D): the tensors of all processes, concatenated.

        Parameters
        ----------
        own : (P, n, D). columns : n of each process.
        """
        if self.size == 1:
            return own
        padded = own.new_zeros(len(own), max(columns), own.shape[2])
        padded[:, : own.shape[1]] = own
        sent = padded.view(torch.uint8).flatten()  # NCCL and gloo support bytes, but not all types
        received = torch.ops.ontogeny.gather(sent, self.size)
        every = received.view(self.size, *padded.shape[:2], -1).view(own.dtype)
        return torch.cat([part[:, :n] for part, n in zip(every, columns, strict=True)], 1)

    def agree(self, here: bool, device: torch.device) -> bool:
        """Whether the value is true in all processes."""
        if self.size == 1:
            return here
        held = torch.tensor([not here], dtype=torch.float32, device=device)
        return torch.ops.ontogeny.total(held).item() == 0

    def gathered(self, own: Tensor) -> Tensor:
        """Rows of all processes, in order, in the host memory of the first; on others, own rows."""
        parts = [own.cpu()]
        with _peers():
            if self.rank:
                dist.send(own.contiguous(), 0)
            for other in range(1, 1 if self.rank else self.size):
                received = own.new_empty(own.shape)
                dist.recv(received, other)
                parts.append(received.cpu())
        return parts[0] if self.size == 1 else torch.cat(parts)


@contextmanager
def _peers() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise PeerLost(str(error)) from error


@torch.library.custom_op("ontogeny::total", mutates_args=())
def _total(values: Tensor) -> Tensor:
    """The sum of all processes' values, the same bits on each."""
    sums = values.clone()
    with _peers():
        dist.all_reduce(sums)
    return sums


@_total.register_fake
def _(values: Tensor) -> Tensor:
    return torch.empty_like(values)


@torch.library.custom_op("ontogeny::gather", mutates_args=())
def _gather(values: Tensor, size: int) -> Tensor:
    """(size, P): the (P,) values of all `size` processes, in order."""
    received = values.new_empty(size * len(values))
    with _peers():
        dist.all_gather_single(received, values)
    return received.view(size, -1)


@_gather.register_fake
def _(values: Tensor, size: int) -> Tensor:
    return values.new_empty(size, len(values))
