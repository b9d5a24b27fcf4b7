"""One training over several processes (ranks): which features each holds, and their messages.

Of F features rank i of R has F/R, from i·F/R on: their rows of encoder and decoder, thresholds,
gradients and moments. All read the same batch, so that pre-activations, gates and all gradients of
features need no message. A step has two (losses.py):

    largest  each rank's largest scores, and of AuxK's features the largest pre-activations of each
             token: all ranks then know the one cut of BatchTopK, and of AuxK
    summed   the sum over ranks of the decoded parts, (B, O), of AuxK's, of active tokens by feature
             and of the penalty: all ranks then have the one residual E

E's derivative by a rank's part is 1, so each has the gradients of its own features from E alone.
b_dec, the count of silent rows and BatchTopK's threshold are alike on all ranks, bit for bit.

A process that trains alone is rank 0 of 1: every method then hands back what it is given, so that
the training itself knows no ranks. Both messages are operators that the compiler calls as they are
and cannot look into: collectives that Inductor knows (torch 2.13) are made in place, and readers of
the sum may run before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from ontogeny.crosscoder import pairs


class PeerLost(RuntimeError):
    """A message did not come through: another rank has ended."""


class Ranks:
    """This process among those of one training.

    Attributes
    ----------
    rank, size : number of this one, from 0, and how many there are, R.
    room : pairs that a rank sends scores of; 0 for as many as a batch may keep. Elsewhere than on a
        CPU shapes are fixed, and a rank with more of a batch's largest than it has room for leaves
        some out.
    """

    def __init__(self, rank: int = 0, size: int = 1, room: int = 0) -> None:
        self.rank, self.size, self.room = rank, size, room
        self._full: Tensor | None = None  # () whether some were left out since the last look

    def share(self, features: int) -> slice:
        """Which of all features are this rank's."""
        each = features // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def norm(self, own: Tensor) -> Tensor:
        """() norm of the rows of all features."""
        norm = own.norm()
        return norm if self.size == 1 else total(norm.square())[0].sqrt()

    def mine(
        self, dead: Tensor, is_dead: Tensor, features: int, slots: int
    ) -> tuple[Tensor, Tensor]:
        """AuxK's features on this rank: `slots` of its own, and which of them are among the dead.

        Parameters
        ----------
        dead, is_dead : (A,) of all `features`, as for losses.batch_topk.
        """
        if self.size == 1 or not len(dead):
            return dead, is_dead
        among = torch.zeros(features, dtype=torch.bool, device=dead.device)
        own = among.scatter(0, dead, is_dead)[self.share(features)]
        chosen = torch.topk(own.to(torch.uint8), slots, sorted=False).indices
        return chosen, own[chosen]

    def largest(
        self, h: Tensor, r: Tensor, count: int, native: bool, best: Tensor | None
    ) -> tuple[pairs.Kept, Tensor, Tensor, Tensor | None, Tensor | None]:
        """This rank's pairs among the `count` largest h·r of all ranks, and what else is gathered.

        Scores of several ranks that tie at the cut are all kept. A score that is no number is too:
        the loss then tells.

        Parameters
        ----------
        h : (B, F/R). r : (F/R, N), or (F/R, 1). best : (B, A) AuxK's largest of this rank, or None.

        Returns
        -------
        The pairs; their f, 0 where there was room for more than are kept; () the smallest score
        that is kept; (B, R·A) AuxK's largest of all ranks; () whether this rank may have left some
        out, or None where it cannot.
        """
        F, N = r.shape
        if self.size == 1:
            position, cut = pairs.largest(h, r, count, native)
            kept = pairs.Kept.at(position, F, N, native)
            return kept, kept.take(h).relu(), cut, best, None
        room = min(self.room or count, h.numel() * N)
        position, _ = pairs.largest(h, r, room, native)
        row, feature = position // F, position % F
        score = h.flatten()[row // N * F + feature] * r.flatten()[feature * N + row % N]
        sent = score if best is None else torch.cat([score, best.flatten()])
        received = torch.ops.ontogeny.gather(sent, self.size)
        scores = received[:, :room].flatten()
        if best is not None:
            best = received[:, room:].unflatten(1, best.shape).transpose(0, 1).flatten(1)
        if native:
            position, cut = torch.ops.ontogeny.reaching(position, score, scores, count)
            kept = pairs.Kept.at(position, F, N, native)
            return kept, kept.take(h).relu(), cut, best, None
        cut = torch.topk(scores, count, sorted=False).values.amin()
        kept = pairs.Kept.at(position, F, N, native)
        f = torch.where(score < cut, 0.0, kept.take(h).relu())
        return kept, f, cut, best, score.amin() >= cut if room < count else None

    def summed(
        self, decoded: Tensor, active: Tensor, more: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
        """The sums over ranks of `decoded`, (B, O), and of `more`; and all features' active tokens.

        Parameters
        ----------
        active : (F/R, N) active tokens of this rank's features, which become (F, 1).
        """
        if self.size == 1:
            return decoded, active, more
        each = len(active)
        before, after = self.rank * each, (self.size - 1 - self.rank) * each
        active = torch.nn.functional.pad(active.sum(1, keepdim=True), (0, 0, before, after))
        decoded, active, *more = total(decoded, active, *more)
        return decoded, active, more

    def note(self, full: Tensor | None) -> None:
        """Note whether this rank may have left some pairs out in a step."""
        if full is not None:
            self._full = full if self._full is None else self._full | full

    def make_room(self, device: torch.device) -> None:
        """Make room for twice as many pairs, if any rank has left some out since the last time."""
        fits = self._full is None or not self._full.item()
        if self.room and not self.agree(fits, device):
            self.room, self._full = 2 * self.room, None

    def agree(self, here: bool, device: torch.device) -> bool:
        """Whether it is so on all ranks."""
        if self.size == 1:
            return here
        held = torch.tensor([not here], dtype=torch.float32, device=device)
        return torch.ops.ontogeny.total(held).item() == 0

    def gathered(self, own: Tensor) -> Tensor:
        """Rows of all ranks, one after the other, in rank 0's host memory; the others' own."""
        parts = [own.cpu()]
        with _peers():
            if self.rank:
                dist.send(own.contiguous(), 0)
            for other in range(1, 1 if self.rank else self.size):
                received = torch.empty_like(own)
                dist.recv(received, other)
                parts.append(received.cpu())
        return parts[0] if self.size == 1 else torch.cat(parts)


@contextmanager
def _peers() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise PeerLost(str(error)) from error


def total(*parts: Tensor) -> list[Tensor]:
    """The sums over all ranks of some tensors of one type, in one message."""
    sums = torch.ops.ontogeny.total(torch.cat([part.flatten() for part in parts]))
    split = sums.split([part.numel() for part in parts])
    return [each.view(part.shape) for each, part in zip(split, parts, strict=True)]


@torch.library.custom_op("ontogeny::total", mutates_args=())
def _total(values: Tensor) -> Tensor:
    """The sum of all ranks' values, the same bits on each."""
    sums = values.clone()
    with _peers():
        dist.all_reduce(sums)
    return sums


@_total.register_fake
def _(values: Tensor) -> Tensor:
    return torch.empty_like(values)


@torch.library.custom_op("ontogeny::gather", mutates_args=())
def _gather(values: Tensor, size: int) -> Tensor:
    """(size, P): all `size` ranks' (P,) values, in their order."""
    received = values.new_empty(size * len(values))
    with _peers():
        dist.all_gather_single(received, values)
    return received.view(size, -1)


@_gather.register_fake
def _(values: Tensor, size: int) -> Tensor:
    return values.new_empty(size, len(values))


@torch.library.custom_op("ontogeny::reaching", mutates_args=())
def _reaching(position: Tensor, score: Tensor, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The positions whose score is among the `count` largest scores, and the smallest of these."""
    cut = pairs.largest_but(scores.numpy(), count - 1)
    chosen = ~(score.numpy() < cut)
    return torch.from_numpy(position.numpy()[chosen]), torch.tensor(cut, dtype=score.dtype)


@_reaching.register_fake
def _(position: Tensor, score: Tensor, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    size = torch.library.get_ctx().new_dynamic_size()
    return position.new_empty(size), score.new_empty(())
