"""A crosscoder's weights, and how they are used.

Legend of tensor letters, here and in losses.py:

    B tokens of a batch   N sites   D width   F features   K active
    G gates per feature: one, or one per site
    R dimensions of a principal subspace
    I columns of an input: N·D of the input sites, or R
    S blocks of an output: its sites, or one block of R columns

The equations (method.md 3; Ge et al. 2025, arXiv 2509.17196), for normalised activations ã:

    h = ã W_encᵀ + b_enc                (B, F)      pre-activation, shared by all sites
    r = ‖W_dec‖ per site                (F, N)      decoder norm
    f = h · 1[h·r > t]                  (B, F, N)   gate per site; per feature: (B, F), r over all
    â = Σ_i f_i W_dec,i + b_dec         (B, N, D)

With a token table T, (N, M + 1, D), for M tokens and all others together, ã − T[x] replaces ã in h,
and T[x] is added to â.

A crosscoder is trained in one of three spaces (`basis`):

    full       it sees ã − μ and reconstructs it: I = N·D, S = N
    principal  it sees y = (ã − μ)U and reconstructs that: I = R, S = 1. Its decoder in all N·D
               dimensions is W_dec Uᵀ, its bias μ + b_dec Uᵀ
    hybrid     it sees y and reconstructs ã − μ: I = R, S = N
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ontogeny.activations.projection import projected
from ontogeny.activations.table import lookup
from ontogeny.crosscoder.sizes import DECODERS_AT_A_TIME
from ontogeny.files import InputError, one_line, whole, write_json

if TYPE_CHECKING:
    from ontogeny.crosscoder.pairs import Candidates

EVERY = slice(None)  # all features
Ids = Tensor | np.ndarray | None  # the token of each row


@dataclass
class Weights:
    """The trained tensors, in the space in which training happens."""

    W_enc: Tensor  # (F, I), with features first as in the decoder
    b_enc: Tensor  # (F,)
    W_dec: Tensor  # (F, S, D), contiguous by block, since a step goes through the blocks in turn
    b_dec: Tensor  # (S·D,)
    log_threshold: Tensor  # (F,) τ = log t; trained only by jumprelu

    def named(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def pre_activations(x: Tensor, W_enc: Tensor, b_enc: Tensor) -> Tensor:
    """h = x W_encᵀ + b_enc: (B, I) → (B, F)."""
    return torch.addmm(b_enc, x, W_enc.T)


def gate_norms(W_dec: Tensor, sites: int, per_site: bool) -> Tensor:
    """The factor of h in a gate: r, (F, N), or its root mean square over sites, (F, 1).

    Parameters
    ----------
    W_dec : (F, S, D). sites : N.
    """
    if per_site:
        return torch.linalg.vector_norm(W_dec, dim=2)
    return torch.linalg.vector_norm(W_dec, dim=(1, 2))[:, None] / sites**0.5


def by_block(W_dec: Tensor) -> Tensor:
    """The same tensor (F, S, D), contiguous by block."""
    return W_dec.transpose(0, 1).clone(memory_format=torch.contiguous_format).transpose(0, 1)


def initial(
    space: str,
    inputs: int,
    outputs: int,
    features: int,
    width: int,
    basis: Tensor | None,
    seed: int,
    share: slice = EVERY,
) -> Weights:
    """Weights before training: the encoder equals the decoder, whose rows have norm √N.

    Each feature has one random direction, the same at every site; train.py chooses the norm.

    Parameters
    ----------
    space : full, principal or hybrid. inputs, outputs : numbers of sites.
    basis : (N·D, R) principal directions, or None for all dimensions.
    share : the features to return.
    """
    generator = torch.Generator().manual_seed(seed)
    unit = torch.randn(features, width, generator=generator)
    unit /= unit.norm(dim=1, keepdim=True)
    unit = unit[share]
    if basis is None:
        W_in = unit.repeat(1, inputs)
    else:  # the product of the repeated rows and the basis, without repeating the rows
        W_in = unit @ basis.unflatten(0, (inputs, width)).sum(0).cpu()
    W_dec = W_in[:, None] if space == "principal" else unit[:, None].expand(-1, outputs, -1)
    return Weights(
        W_enc=W_in,
        b_enc=torch.zeros(len(unit)),
        W_dec=by_block(W_dec),
        b_dec=torch.zeros(W_dec[0].numel()),
        log_threshold=torch.full((len(unit),), float(np.log(0.1))),
    )


def random_directions(
    weights: Weights, seed: int, features: int, norm: Tensor, share: slice = EVERY
) -> Weights:
    """Replace each decoder row by a random direction of the whole training space.

    Parameters
    ----------
    weights : of a share of the features. features : F. norm : of all features' decoders together.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = weights.W_dec.shape
    W_dec = torch.randn(features, shape[1] * shape[2], generator=generator)
    W_dec *= norm / W_dec.norm()
    W_dec = W_dec[share]
    W_enc = W_dec.clone() if weights.W_enc.shape == W_dec.shape else weights.W_enc
    return replace(weights, W_enc=W_enc, W_dec=by_block(W_dec.view(-1, *shape[1:])))


@dataclass(frozen=True)
class Description:
    """Everything except the tensors that is needed to use a crosscoder; saved as config.json."""

    activation: str
    gate: str
    features: int
    width: int
    inputs: list[tuple[int, int, str]]
    """(snapshot, layer, stream) of each input site."""
    outputs: list[tuple[int, int, str]]
    basis: str
    """full, principal or hybrid."""
    threshold: float
    """The gate of batch_topk at inference; 0 for the other activations."""
    seed: int
    settings: dict[str, Any]
    """The crosscoder's section of the configuration."""
    tokens: str
    """Digest of the tokens whose activations trained it."""
    ontogeny: str
    torch: str
    token_table: bool = False
    """Whether it has a token table: its features then describe activations minus the table."""


class TokenTable:
    """T[x] at a crosscoder's sites in normalised units, or 0 if it has no token table.

    Parameters
    ----------
    token : (M,) ids with an entry, or None. values : (N, M + 1, D); the last entry is for all
        others.
    """

    def __init__(self, token: Tensor | None, values: Tensor | None) -> None:
        self._values, self._entry = values, None
        if token is not None:
            self._entry = torch.from_numpy(lookup(token.cpu().numpy())).to(token.device)

    def __call__(self, ids: Ids) -> Tensor | float:
        """T[x] of tokens (B,) at every site, (B, N, D) float32.

        Raises
        ------
        ValueError : there is a table, but no ids are given.
        """
        if self._entry is None or self._values is None:
            return 0.0
        return self._values[:, self._of(ids)].transpose(0, 1).float()

    def at(self, site: int, ids: Ids) -> Tensor | float:
        """The same at one site, (B, D)."""
        if self._entry is None or self._values is None:
            return 0.0
        return self._values[site, self._of(ids)].float()

    def _of(self, ids: Ids) -> Tensor:
        assert self._entry is not None
        if ids is None:
            raise ValueError("this crosscoder has a token table; pass the token of each row as ids")
        known = torch.as_tensor(ids).to(self._entry.device).clamp(max=len(self._entry) - 1)
        return self._entry[known.long()]


class Crosscoder:
    """A trained crosscoder for use, in all N·D dimensions whatever space it was trained in.

    Attributes
    ----------
    about : the description. weights : as trained, with W_dec as (F, S·D).
    W_dec : (F, N, D) full decoders, computed at first use. b_dec : (N, D). Both are in normalised
        units. device : of the tensors.
    table : T[x] of tokens; 0 if there is no token table.
    scales : (N_in,) and (N_out,) dataset-wise normalisation constants: √D over the mean norm of the
        rows, which are centred or not (activations.scale), or have the token table subtracted. The
        constant of a constant site is 0; features are absent there, and its rows, decoders and
        b_dec are 0.
    """

    def __init__(self, about: Description, tensors: dict[str, Tensor]) -> None:
        self.about = about
        self.weights = Weights(**{n: tensors[n] for n in Weights.__dataclass_fields__})
        self.scales_in = tensors["scales_in"]
        self.scales_out = tensors["scales_out"]
        self._mean = tensors["mean_in"]  # (I,) in the space before any basis
        self._basis = tensors.get("basis")  # (N·D, R)
        b = self.weights.b_dec
        self._turned = self._basis if about.basis == "principal" else None  # rotates the decoders
        if self._turned is not None:
            b = b @ self._turned.T
        self._shape = (len(about.outputs), about.width)
        self.b_dec = (b + tensors["mean_out"]).unflatten(0, self._shape)
        self.device = self.b_dec.device
        self._tensors = tensors
        table = (tensors["token"], tensors["token_table"]) if about.token_table else (None, None)
        self.table = TokenTable(*table)

    @cached_property
    def W_dec(self) -> Tensor:
        return self.decoders(EVERY)

    def decoders(self, features: slice | np.ndarray) -> Tensor:
        """(F', N, D): the full decoders of some features, without computing any others."""
        chosen = torch.tensor(features) if isinstance(features, np.ndarray) else features
        W = self.weights.W_dec[chosen]
        if self._turned is not None:
            W = W @ self._turned.T
        return W.unflatten(1, self._shape)

    def decoders_at(self, site: int, features: slice | np.ndarray) -> Tensor:
        """(F', D): the decoders of some features at the `site`-th output site alone."""
        chosen = torch.tensor(features) if isinstance(features, np.ndarray) else features
        columns = slice(site * self.about.width, (site + 1) * self.about.width)
        if self._turned is None:
            return self.weights.W_dec[chosen, columns]
        return self.weights.W_dec[chosen] @ self._turned[columns].T

    @property
    def dead(self) -> Tensor:
        """(F,) features silent over the last `dead_after_rows` rows of training, or over all."""
        span = self.about.settings["dead_after_rows"]
        return self._tensors["silent_rows"] >= min(span, self._trained_rows or span)

    @property
    def _trained_rows(self) -> int:
        """Number of rows that it was trained on; 0 if an imported crosscoder does not say."""
        settings = self.about.settings
        return int(settings.get("steps", 0) * settings.get("batch_rows", 0))

    @property
    def strength(self) -> Tensor:
        """(F, N): s = r, the decoder norm of every feature at every output site."""
        step = DECODERS_AT_A_TIME
        parts = (slice(start, start + step) for start in range(0, self.about.features, step))
        return torch.cat([self.decoders(part).norm(dim=2) for part in parts])

    @property
    def divisors(self) -> Tensor:
        """(N,) divisors that bring a decoder to the model's units: the output scales, 1 for 0."""
        return torch.where(self.scales_out > 0, self.scales_out, 1.0)

    def _gate_norms(self) -> Tensor:
        """(F, N) decoder norms that the gate sees; (F, 1) for one gate per feature."""
        if self.about.gate == "snapshot":
            return self.strength
        W = self.weights.W_dec
        return W.norm(dim=1, keepdim=True) / int((self.scales_out > 0).sum()) ** 0.5

    @torch.no_grad()
    def pre_activations(self, activations: Tensor, ids: Ids = None) -> Tensor:
        """h, (B, F), from normalised activations (B, N_in, D); ids as for `encode`."""
        if self.about.token_table:
            activations = activations - self.table(ids)
        x = projected(activations, self._mean, self._basis)
        return pre_activations(x, self.weights.W_enc, self.weights.b_enc)

    @torch.no_grad()
    def encode(self, activations: Tensor, ids: Ids = None) -> Tensor:
        """Feature activations f from normalised activations (B, N_in, D).

        Parameters
        ----------
        ids : (B,) the token of each row; required if there is a token table, otherwise ignored.

        Returns
        -------
        (B, F) if one gate serves all sites, (B, F, N_out) if each site has its own.
        """
        h = self.pre_activations(activations, ids)
        if self.about.activation == "relu":
            return h.relu()
        f = self._gated(h[:, :, None], self._gate_norms(), self._thresholds())
        return f if self.about.gate == "snapshot" else f[:, :, 0]

    @torch.no_grad()
    def encode_peak(self, activations: Tensor, ids: Ids = None) -> Tensor:
        """The largest activation of each feature over sites, (B, F); arguments as for `encode`.

        It is the activation at the site of the feature's largest norm, whose gate opens first.
        """
        if self.about.activation == "relu":
            return self.encode(activations, ids)
        h, r = self.pre_activations(activations, ids), self._gate_norms().amax(1, keepdim=True)
        return self._gated(h[:, :, None], r, self._thresholds())[:, :, 0]

    @torch.no_grad()
    def at_sites(self, f: Tensor, feature: Tensor) -> Tensor:
        """Activations at every site, (P, N_out), or (P, 1) if one gate serves all.

        Parameters
        ----------
        f, feature : (P,) activations of some features as `encode_peak` gives them.
        """
        if self.about.gate != "snapshot" or self.about.activation == "relu":
            return f[:, None]
        return self._gated(f[:, None], self._gate_norms()[feature], self._thresholds()[feature])

    def _thresholds(self) -> Tensor:
        """t, (F, 1)."""
        if self.about.activation == "jumprelu":
            return self.weights.log_threshold.exp()[:, None]
        return self.b_dec.new_full((self.about.features, 1), self.about.threshold)

    def _gated(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
        score = h * r
        return h * ((score > t) & (score > 0))

    @torch.no_grad()
    def decode(self, f: Tensor, ids: Ids = None) -> Tensor:
        """Normalised reconstructions (B, N_out, D) from f (B, F) or (B, F, N_out).

        Parameters
        ----------
        ids : as for `encode`.
        """
        rest = self.b_dec + self.table(ids)
        if f.ndim == 2:
            return (f @ self.W_dec.flatten(1)).unflatten(1, self.W_dec.shape[1:]) + rest
        return torch.einsum("bfn,fnd->bnd", f, self.W_dec) + rest

    def decode_pairs(self, active: Candidates, f: Tensor) -> Tensor:
        """(B, N, D): what active features write, without b_dec and token table, from f (P, G).

        In a subspace, no full decoders are computed.
        """
        if self._turned is None:
            return active.decode(f, self.W_dec).transpose(0, 1)
        y = active.decode(f, self.weights.W_dec[:, None])[0]
        return (y @ self._turned.T).unflatten(1, self._shape)

    def save(self, folder: str | Path) -> None:
        """Write config.json and crosscoder.safetensors, each atomically."""
        folder = Path(folder)
        with whole(folder / "crosscoder.safetensors") as draft:
            save_file({k: v.detach().contiguous().cpu() for k, v in self._tensors.items()}, draft)
        write_json(folder / "config.json", asdict(self.about))

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> Crosscoder:
        """Read a crosscoder folder onto a device.

        Raises
        ------
        InputError : files are missing, damaged, or of another version.
        """
        file = Path(folder) / "config.json"
        try:
            about = Description(**json.loads(file.read_text()))
            file = Path(folder) / "crosscoder.safetensors"
            return cls(about, load_file(file, device=str(device)))
        except Exception as error:
            raise InputError(
                f"{file}: not a crosscoder of this version; delete {folder} to train it again "
                f"({one_line(error, 200)})"
            ) from None
