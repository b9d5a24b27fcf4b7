"""What a training reads: its rows, as inputs and targets, and the constants that belong to them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import xxhash
from torch import Tensor

from ontogeny.activations import feed
from ontogeny.activations.rows import RowPaths, Rows
from ontogeny.activations.sites import Site, expand
from ontogeny.activations.store import Stacks, check_varies
from ontogeny.activations.streamed import Stream, Streamed
from ontogeny.activations.subspace import Subspace
from ontogeny.crosscoder.losses import Out
from ontogeny.files import InputError, digest_value
from ontogeny.peers import Peers
from ontogeny.settings import Crosscoder, Settings


def varying(paths: RowPaths, sites: list[Site]) -> tuple[list[Site], Tensor]:
    """The sites whose rows are not all equal, and a mask of them, (N,) bool.

    Raises
    ------
    InputError : no site varies, or as for Stacks.
    """
    scales = Stacks(paths.activations, sites).scales
    check_varies(sites, scales)
    chosen = [site for site, scale in zip(sites, scales, strict=True) if scale]
    return chosen, torch.from_numpy(scales > 0)


def spread(tensor: Tensor, there: Tensor, dim: int = 0) -> Tensor:
    """Put some sites' parts along `dim` into a tensor of all sites, with zeros for the others.

    Parameters
    ----------
    there : (N,) bool, which sites the tensor covers.
    """
    if there.all():
        return tensor
    parts = tensor.unflatten(dim, (int(there.sum()), -1))
    shape = list(parts.shape)
    shape[dim] = len(there)
    whole = tensor.new_zeros(shape)
    whole.index_copy_(dim, there.nonzero()[:, 0].to(tensor.device), parts)
    return whole.flatten(dim, dim + 1)


class Data:
    """A training's rows, how they split into inputs and targets, and its constants.

    Parameters
    ----------
    like : the data of another crosscoder on the same stream; the stream and subspace are shared.
    peers : the processes that share the stream, if it is created here.

    Attributes
    ----------
    c : the crosscoder's settings. every_input, every_output : its sites.
    inputs, outputs : the N sites that vary. A training never sees a constant site: features are
        absent there, and `complete` adds it again with zeros.
    sources : the training rows, minus the token table if the crosscoder has one: coordinates in
        the subspace if there is one; otherwise activations of the inputs and, if they differ, of
        the outputs.
    space : full, principal or hybrid. subspace : the principal subspace of the varying inputs, or
        None. U : its (N·D, R) directions on the device, or None.
    scales_in, scales_out : (N,) normalisation constants by site.
    width : D. tokens : digest of the tokens that the rows belong to.

    Raises
    ------
    InputError : damaged or foreign files, or no site that varies.
    """

    def __init__(
        self,
        settings: Settings,
        c: Crosscoder,
        paths: RowPaths,
        device: torch.device,
        like: Data | None = None,
        peers: Peers | None = None,
    ) -> None:
        steps = settings.snapshots.chosen
        every_input = expand(c.inputs, steps)
        every_output = every_input if c.outputs is None else expand(c.outputs, steps)
        self.c, self.every_input, self.every_output = c, every_input, every_output
        inputs, self._there_in = varying(paths, every_input)
        outputs, self._there_out = varying(paths, every_output)
        self.inputs, self.outputs = inputs, outputs
        stacks = Stacks(paths.activations, inputs)
        self.device, self.width, self.tokens = device, stacks.width, stacks.tokens
        self._table = table = feed.table_of(c, inputs, paths)
        self.scales_in = torch.from_numpy(table.scales if table else stacks.scales)
        self.scales_out = self.scales_in.clone()
        if every_input != every_output:
            self.scales_out = torch.from_numpy(Stacks(paths.activations, outputs).scales)
        self.space = c.basis
        self.sources: list[Rows] = []
        self.subspace: Subspace | None = None if like is None else like.subspace
        stream = None if like is None else like.stream
        self.U: Tensor | None = None
        self._shift: Tensor | None = None
        self._same = every_input == every_output
        self._sites = inputs if self._same else inputs + outputs
        self._inputs, n_out = len(inputs) * self.width, len(outputs) * self.width
        mean = torch.zeros(len(self._sites) * self.width)
        if c.basis != "full":
            assert paths.basis, f"basis: {c.basis} needs --basis"
            if self.subspace is None:
                whole = Subspace(paths.basis)
                whole.check_sites(every_input)
                self.subspace = whole.only(inputs)
            self.U, mean = self.subspace.on(device)
            mean = mean.cpu()
            # A hybrid's streamed rows are projected later, in `_split`.
            if c.basis == "principal" or settings.activations.mode == "cached":
                given = settings, inputs, self.subspace, paths, device, table, stream, peers
                self.sources = [feed.principal_rows(*given)]
        if c.basis != "principal":
            rows = feed.site_rows(settings, self._sites, paths, device, table, stream, peers)
            self.sources.append(rows)
            if c.basis == "full" and c.center:
                mean = self._mean_of(rows, c.batch_rows)
            self._shift = mean.view(len(self._sites), -1).to(device)
        self._mean_in, self._mean_out = mean[: self._inputs], mean[-n_out:]

    def _mean_of(self, rows: Rows, size: int) -> Tensor:
        """The mean row. Raises InputError if a value is not finite."""
        mean = torch.from_numpy(feed.mean_row(rows))
        if not torch.isfinite(mean).all():
            steps = -(-rows.rows // size)
            every = feed.batches([rows], size, 0, steps, torch.device("cpu"))
            for step, (batch,) in enumerate(every):
                self.check(batch.flatten(1), step * size)
        return mean

    def batches(self, size: int, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(x, target) of steps [start, stop) on the device: (size, I), (S, size, D)."""
        for parts in feed.batches(self.sources, size, start, stop, self.device):
            yield self._split(parts)

    def stored(self, size: int, step: int) -> Tensor:
        """The rows of a step in the stored type, (size, columns), in host memory."""
        host = torch.device("cpu")
        return next(feed.batches(self.sources[-1:], size, step, step + 1, host))[0].flatten(1)

    @property
    def rows(self) -> int:
        """Number of training rows."""
        return self.sources[0].rows

    @property
    def stream(self) -> Stream | None:
        """The stream that the rows come from, or None if they are not streamed."""
        (source, *_) = self.sources
        return source.stream if isinstance(source, Streamed) else None

    @property
    def digest(self) -> str:
        """Digest of the tokens, and of the scales, means and token table of their activations."""
        tensors = (self.scales_in, self.scales_out, self._mean_in, self._mean_out)
        table = self._table and xxhash.xxh3_64_hexdigest(self._table.values.data)
        return digest_value([self.tokens, *(t.tolist() for t in tensors), table])

    def name_of(self, column: int) -> str:
        """' of stream.layer/step' for a column of a batch; '' if columns mix sites."""
        return "" if self.space == "principal" else f" of {self._sites[column // self.width].name}"

    def check(self, batch: Tensor, first: int, where: str = "") -> None:
        """Raise InputError for the first row that is not finite; rows are counted from `first`."""
        wrong = (~torch.isfinite(batch)).nonzero()
        if len(wrong):
            row, column = (int(index) for index in wrong[0])
            raise InputError(
                f"activations{self.name_of(column)}: a value in row "
                f"{(first + row) % self.rows}{where} is not finite; make these activations again"
            )

    def fault(self, key: str, step: int, stays: str) -> InputError:
        """An error about a step, counted from 1, whose loss or weights are not finite.

        It names the rows, the site and the remedy.

        Parameters
        ----------
        key : the setting to lower. stays : text to add about the state that is kept.
        """
        size, rows = self.c.batch_rows, self.rows
        batch, first = self.stored(size, step - 1), (step - 1) * size % rows
        self.check(batch, first, f", at step {step}")
        x, _ = next(self.batches(size, step - 1, step))
        wrong = (~torch.isfinite(x)).any(1).nonzero()
        if len(wrong):
            row = (first + int(wrong[0])) % rows
            return InputError(
                f"activations: training row {row} has a principal coordinate that is too large for "
                "float16; look for an outlier there, or set basis: full"
            )
        row, column = divmod(int(batch.abs().argmax()), batch.shape[1])
        return InputError(
            f"{key}: the loss is not finite at step {step} (rows {first} to "
            f"{(first + size - 1) % rows}; the largest activation is in row "
            f"{(first + row) % rows}{self.name_of(column)}); lower it{stays}"
        )

    def _split(self, parts: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """(x, target) from one batch of each source."""
        if self.space == "principal":
            return parts[0], parts[0][None]
        rows = parts[-1]  # (B, N, D), contiguous by site
        if self._shift is not None:
            rows -= self._shift
        blocks = rows.transpose(0, 1)
        if self.space == "full":
            n_in, n_out = len(self.scales_in), len(self.scales_out)
            return blocks[:n_in].transpose(0, 1).flatten(1), blocks[-n_out:]
        if len(parts) > 1:
            return parts[0], blocks
        assert self.U is not None
        return (rows.flatten(1) @ self.U).half().float(), blocks  # rounded as stored rows are

    def explained_by_site(self, out: Out, target: Tensor) -> list[float]:
        """Explained variance of a batch by output site, within the training space."""
        centred, lost = target - target.mean(1, keepdim=True), out.errors * target.shape[1]
        if self.space == "principal":
            assert out.residual is not None
            assert self.U is not None
            U = self.U.unflatten(0, (len(self.scales_out), -1)).transpose(1, 2)  # (N, R, D)
            centred, lost = centred @ U, (out.residual @ U).square().sum((1, 2))
        explained: list[float] = (1 - lost / centred.square().sum((1, 2))).tolist()
        return explained

    def constants(self) -> dict[str, Tensor]:
        """What a crosscoder in use needs of its data: scales, means, directions, token table."""
        there_in, there_out = self._there_in, self._there_out
        tensors = {
            "scales_in": spread(self.scales_in, there_in),
            "scales_out": spread(self.scales_out, there_out),
            "mean_in": spread(self._mean_in.clone(), there_in),
            "mean_out": spread(self._mean_out.clone(), there_out),
        }
        if self.U is not None:
            tensors["basis"] = spread(self.U.cpu(), there_in)
        if self._table is not None:
            tensors["token"] = torch.from_numpy(self._table.token)
            values = torch.from_numpy(self._table.values).half()
            tensors["token_table"] = spread(values, there_in)
        return tensors

    def complete(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Trained weights, W_dec as (F, S·D), with zeros at constant sites."""
        whole = dict(weights)
        if self.space == "full":
            whole["W_enc"] = spread(weights["W_enc"], self._there_in, dim=1)
        if self.space != "principal":
            whole["W_dec"] = spread(weights["W_dec"], self._there_out, dim=1)
            whole["b_dec"] = spread(weights["b_dec"], self._there_out)
        return whole

    @property
    def numbers(self) -> list[int]:
        """The number of each output site, counted from 1 over all sites, constant ones too."""
        return [n for n, there in enumerate(self._there_out.tolist(), start=1) if there]
