"""What a training reads: its rows as inputs and targets, and the constants that they come with."""

from __future__ import annotations

import torch

from ontogeny.activations.store import Site, Stacks
from ontogeny.basis.principal import Subspace
from ontogeny.crosscoder import feed
from ontogeny.files import InputError, digest_value
from ontogeny.settings import Crosscoder, Settings


class Data:
    """What a training reads: its rows, how they split into inputs and targets, its constants.

    Attributes
    ----------
    source : the training rows.
    U : (N·D, R) principal directions on the device, or None in all dimensions.
    scales_in, scales_out : (N,) normalisation constants by site.
    """

    def __init__(
        self,
        s: Settings,
        c: Crosscoder,
        inputs: list[Site],
        outputs: list[Site],
        places: feed.Places,
        device: torch.device,
    ) -> None:
        stacks = Stacks(places.activations, inputs)
        self.device = device
        self.width = stacks.width
        self.tokens = stacks.tokens
        self.scales_in = torch.from_numpy(stacks.scales)
        self.scales_out = torch.from_numpy(Stacks(places.activations, outputs).scales)
        self.source: feed.Source
        self.U: torch.Tensor | None = None
        self._same = inputs == outputs
        self._sites = inputs if self._same else inputs + outputs
        self._inputs, n_out = len(inputs) * self.width, len(outputs) * self.width
        self._shift: torch.Tensor | None = None
        if c.basis == "principal":
            assert places.basis, "basis: principal needs --basis"
            space = Subspace(places.basis)
            space.check_sites(inputs)
            self.source = feed.principal_source(s, inputs, space, places, device)
            self.U = torch.from_numpy(space.U).to(device)
            self._mean_in = self._mean_out = torch.from_numpy(space.mean)
            return
        self.source = feed.FullSource(feed.training_rows(s, self._sites, places, device))
        mean = torch.zeros(self._inputs + (0 if self._same else n_out))
        if c.center:
            mean = torch.from_numpy(feed.mean_row(self.source))
            if not torch.isfinite(mean).all():
                for start in range(0, self.source.rows, c.batch_rows):
                    stop = min(start + c.batch_rows, self.source.rows)
                    self.check(torch.from_numpy(self.source.read(start, stop)), start)
            self._shift = mean.to(device)
        self._mean_in, self._mean_out = mean[: self._inputs], mean[-n_out:]

    @property
    def digest(self) -> str:
        """Of the tokens, and of the scales and means that their activations have."""
        found = (self.scales_in, self.scales_out, self._mean_in, self._mean_out)
        return digest_value([self.tokens, *(t.tolist() for t in found)])

    def name_of(self, place: int) -> str:
        """' of stream.layer/step' for a column of a batch; '' where columns mix the sites."""
        if self.U is not None:
            return ""
        site = self._sites[place // self.width]
        return f" of {site.stream}.{site.layer}/step{site.snapshot}"

    def check(self, batch: torch.Tensor, first: int, where: str = "") -> None:
        """Raise InputError for a batch's first row, counted from `first`, that is not finite."""
        wrong = ~torch.isfinite(batch)
        if wrong.any():
            row = int(wrong.any(1).nonzero()[0])
            site = self.name_of(int(wrong[row].nonzero()[0]))
            raise InputError(
                f"activations{site}: not finite in row {(first + row) % self.source.rows}{where}; "
                "make these activations again"
            )

    def split(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(x, target) of a batch of rows: (B, I), (B, O)."""
        if self._shift is not None:
            batch = batch - self._shift
        if self._same:
            return batch, batch
        return batch[:, : self._inputs].contiguous(), batch[:, self._inputs :].contiguous()

    def explained_by_site(self, error: torch.Tensor, target: torch.Tensor) -> list[float]:
        """Explained variance of a batch by output site, within the training space."""
        centred = target - target.mean(0)
        if self.U is not None:
            error, centred = error @ self.U.T, centred @ self.U.T
        shape = (len(self.scales_out), -1)
        lost = error.unflatten(1, shape).square().sum((0, 2))
        there = centred.unflatten(1, shape).square().sum((0, 2))
        found: list[float] = (1 - lost / there).tolist()
        return found

    def constants(self) -> dict[str, torch.Tensor]:
        """What a crosscoder needs of its data to be used: scales, means, principal directions."""
        tensors = {"scales_in": self.scales_in, "scales_out": self.scales_out}
        tensors |= {"mean_in": self._mean_in.clone(), "mean_out": self._mean_out.clone()}
        return tensors if self.U is None else tensors | {"basis": self.U.cpu()}
