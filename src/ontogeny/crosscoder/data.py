"""What a training reads: its rows as inputs and targets, and the constants that they come with."""

from __future__ import annotations

import torch
from torch import Tensor

from ontogeny.activations import feed
from ontogeny.activations.rows import RowPaths, Rows
from ontogeny.activations.sites import Site
from ontogeny.activations.store import Stacks
from ontogeny.activations.subspace import Subspace
from ontogeny.files import InputError, digest_value
from ontogeny.settings import Crosscoder, Settings


class Data:
    """A training's rows, how they split into inputs and targets, and its constants.

    Attributes
    ----------
    source : the training rows: of the inputs, then, where they differ, of the outputs.
    U : (N·D, R) principal directions on the device, or None in all dimensions.
    scales_in, scales_out : (N,) normalisation constants by site.
    width : D. tokens : digest of the tokens that the rows are of.
    """

    def __init__(
        self,
        settings: Settings,
        c: Crosscoder,
        inputs: list[Site],
        outputs: list[Site],
        paths: RowPaths,
        device: torch.device,
    ) -> None:
        stacks = Stacks(paths.activations, inputs)
        self.device, self.width, self.tokens = device, stacks.width, stacks.tokens
        self.scales_in = torch.from_numpy(stacks.scales)
        self.scales_out = torch.from_numpy(Stacks(paths.activations, outputs).scales)
        self.source: Rows
        self.U: Tensor | None = None
        self._shift: Tensor | None = None
        self._same = inputs == outputs
        self._sites = inputs if self._same else inputs + outputs
        self._inputs, n_out = len(inputs) * self.width, len(outputs) * self.width
        if c.basis == "principal":
            assert paths.basis, "basis: principal needs --basis"
            subspace = Subspace(paths.basis)
            subspace.check_sites(inputs)
            self.source = feed.principal_rows(settings, inputs, subspace, paths, device)
            self.U = torch.from_numpy(subspace.U).to(device)
            self._mean_in = self._mean_out = torch.from_numpy(subspace.mean)
            return
        self.source = feed.site_rows(settings, self._sites, paths, device)
        mean = torch.zeros(len(self._sites) * self.width)
        if c.center:
            mean = torch.from_numpy(feed.mean_row(self.source))
            if not torch.isfinite(mean).all():
                steps = -(-self.source.rows // c.batch_rows)
                every = feed.batches(self.source, c.batch_rows, 0, steps, torch.device("cpu"))
                for step, batch in enumerate(every):
                    self.check(batch, step * c.batch_rows)
            self._shift = mean.to(device)
        self._mean_in, self._mean_out = mean[: self._inputs], mean[-n_out:]

    @property
    def digest(self) -> str:
        """Of the tokens, and of the scales and means that their activations have."""
        tensors = (self.scales_in, self.scales_out, self._mean_in, self._mean_out)
        return digest_value([self.tokens, *(t.tolist() for t in tensors)])

    def name_of(self, column: int) -> str:
        """' of stream.layer/step' for a column of a batch; '' where columns mix the sites."""
        return "" if self.U is not None else f" of {self._sites[column // self.width].name}"

    def check(self, batch: Tensor, first: int, where: str = "") -> None:
        """Raise InputError for a batch's first row, counted from `first`, that is not finite."""
        wrong = (~torch.isfinite(batch)).nonzero()
        if len(wrong):
            row, column = (int(index) for index in wrong[0])
            raise InputError(
                f"activations{self.name_of(column)}: not finite in row "
                f"{(first + row) % self.source.rows}{where}; make these activations again"
            )

    def split(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """(x, target) of a batch of rows: (B, I), (B, O)."""
        if self._shift is not None:
            batch = batch - self._shift
        if self._same:
            return batch, batch
        return batch[:, : self._inputs].contiguous(), batch[:, self._inputs :].contiguous()

    def explained_by_site(self, error: Tensor, target: Tensor) -> list[float]:
        """Explained variance of a batch by output site, within the training space."""
        centred = target - target.mean(0)
        if self.U is not None:
            error, centred = error @ self.U.T, centred @ self.U.T
        shape = (len(self.scales_out), -1)
        lost, there = (t.unflatten(1, shape).square().sum((0, 2)) for t in (error, centred))
        explained: list[float] = (1 - lost / there).tolist()
        return explained

    def constants(self) -> dict[str, Tensor]:
        """What a crosscoder needs of its data to be used: scales, means, principal directions."""
        tensors = {"scales_in": self.scales_in, "scales_out": self.scales_out}
        tensors |= {"mean_in": self._mean_in.clone(), "mean_out": self._mean_out.clone()}
        return tensors if self.U is None else tensors | {"basis": self.U.cpu()}
