"""One training over several processes (ranks): which features each holds, and what they exchange.

Of F features, rank i of R holds F/R, beginning with i·F/R: their rows of encoder and decoder,
thresholds, gradients and moments. All ranks read the same batch, so that pre-activations, gates and
gradients of features need no message. A step has two messages (losses.py):

    largest  each rank's largest scores and, of AuxK's features, the largest pre-activations of
             each token; all ranks then know the common cuts of BatchTopK and AuxK
    summed   the sum over ranks of the decoded parts, (B, O), also of AuxK's, of active tokens by
             feature and of the penalty; all ranks then have the same residual E

The derivative of E by a rank's part is 1, so each rank gets the gradients of its own features from
E alone. b_dec, the count of silent rows and BatchTopK's threshold are the same on all ranks, bit
for bit.

peers.py sends the messages. If rows are streamed, each rank runs a part of the snapshots
(activations/streamed.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ontogeny.crosscoder import pairs
from ontogeny.peers import Peers


class Ranks(Peers):
    """This process as one of the R ranks of a training.

    Attributes
    ----------
    room : number of candidates that a rank processes on devices other than a CPU, where shapes are
        fixed; any further candidates of a batch are dropped.
    """

    def __init__(self, rank: int = 0, size: int = 1, room: int = 0) -> None:
        super().__init__(rank, size)
        self.room = room
        self._full: Tensor | None = None  # () whether candidates were dropped since the last check

    def share(self, features: int) -> slice:
        """The slice of all features that this rank holds."""
        each = features // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def norm(self, own: Tensor) -> Tensor:
        """() norm of the decoder rows of all features together."""
        norm = own.norm()
        return norm if self.size == 1 else self.total(norm.square()).sqrt()

    def mine(
        self, dead: Tensor, is_dead: Tensor, features: int, slots: int
    ) -> tuple[Tensor, Tensor]:
        """AuxK's features on this rank: `slots` of its own, and a mask of those that are dead.

        Parameters
        ----------
        dead, is_dead : (A,) features out of all `features`, as for losses.batch_topk.
        """
        if self.size == 1 or not len(dead):
            return dead, is_dead
        among = torch.zeros(features, dtype=torch.bool, device=dead.device)
        own = among.scatter(0, dead, is_dead)[self.share(features)]
        chosen = torch.topk(own.to(torch.uint8), slots, sorted=False).indices
        return chosen, own[chosen]

    def largest(
        self, h: Tensor, r: Tensor, count: int, best: Tensor | None
    ) -> tuple[pairs.Candidates, Tensor, Tensor, Tensor | None, Tensor | None]:
        """This rank's pairs among the `count` largest h·r of all ranks, and what else is gathered.

        Scores that tie at the cut are all kept. NaN scores are also kept, so that the loss becomes
        NaN and is noticed.

        Parameters
        ----------
        h : (B, F/R). r : (F/R, G). best : (B, A) this rank's largest for AuxK, or None.

        Returns
        -------
        The candidates; their f, (P, G), 0 at closed gates; () the smallest score that is kept;
        (B, R·A) AuxK's largest of all ranks; () whether this rank may have dropped some, or None if
        that is impossible.
        """
        B, F = h.shape
        position, cut = pairs.largest(h, r, min(count, h.numel() * r.shape[1]), self.room)
        kept = pairs.Candidates.at(position, B, F)
        value = h.flatten()[position, None]
        score = value * r[kept.feature]
        if self.size > 1:
            sent = torch.ops.ontogeny.top(score.flatten(), count)
            if best is not None:
                sent = torch.cat([sent, best.flatten()])
            received = torch.ops.ontogeny.gather(sent, self.size)
            scores = received[:, :count].flatten()
            cut = torch.topk(scores, count, sorted=False).values.amin()
            if best is not None:
                best = received[:, count:].unflatten(1, best.shape).transpose(0, 1).flatten(1)
        f = torch.where(score < cut, 0.0, value.relu())
        full = (
            None
            if pairs.of_any_size(h.device)
            else (value[:, 0] * r.amax(1)[kept.feature]).amin() > cut
        )
        return kept, f, cut, best, full

    def summed(
        self, decoded: Tensor, active: Tensor, more: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
        """The sums of `decoded`, (B, O), and `more` over ranks, and all features' active tokens.

        Parameters
        ----------
        active : (F/R, N) active tokens of this rank's features; those of all are returned as
            (F, 1).
        """
        if self.size == 1:
            return decoded, active, more
        each = len(active)
        before, after = self.rank * each, (self.size - 1 - self.rank) * each
        active = torch.nn.functional.pad(active.sum(1, keepdim=True), (0, 0, before, after))
        decoded, active, *more = self._totals(decoded, active, *more)
        return decoded, active, more

    def _totals(self, *parts: Tensor) -> list[Tensor]:
        """The sums over all ranks of tensors of one type, in one message."""
        sums = self.total(torch.cat([part.flatten() for part in parts]))
        split = sums.split([part.numel() for part in parts])
        return [each.view(part.shape) for each, part in zip(split, parts, strict=True)]

    def note(self, full: Tensor | None) -> None:
        """Note whether this rank may have dropped some pairs in a step."""
        if full is not None:
            self._full = full if self._full is None else self._full | full

    def make_room(self, device: torch.device) -> None:
        """Make room for twice as many pairs if any rank has dropped some since the last call."""
        fits = self._full is None or not self._full.item()
        if self.room and not self.agree(fits, device):
            self.room, self._full = 2 * self.room, None


@torch.library.custom_op("ontogeny::top", mutates_args=())
def _top(values: Tensor, count: int) -> Tensor:
    """(count,): the largest of (P,) values, filled up with −∞ if there are fewer."""
    largest = torch.topk(values, min(count, len(values)), sorted=False).values
    return torch.nn.functional.pad(largest, (0, count - len(largest)), value=-torch.inf)


@_top.register_fake
def _(values: Tensor, count: int) -> Tensor:
    return values.new_empty(count)
