"""Reading single features from single sites, where not all sites' activations fit in memory.

A pre-activation is a sum over input sites, after subtracting a centre and any token table
(model.py):

    h_i = Σ_θ (ã^θ − T^θ[x] − μ^θ) · E_i^θ + b_enc,i

with E = W_enc, or W_enc Uᵀ in a principal subspace, so that snapshots can be run one after another,
and only h is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ontogeny.crosscoder.model import Crosscoder, Ids


class Readout:
    """The parts of a crosscoder's encoder that S features apply to each of its input sites.

    It keeps nothing of the crosscoder's decoders, which are its largest tensors.

    Parameters
    ----------
    features : (S,) numbers of features.

    Attributes
    ----------
    inputs : (snapshot, layer, stream) of each input site.
    scales : (N_in,) normalisation constants, which multiply raw activations.
    """

    def __init__(self, crosscoder: Crosscoder, features: Tensor) -> None:
        about, weights = crosscoder.about, crosscoder.weights
        features = features.to(weights.W_enc.device)
        shape = (len(about.inputs), about.width)
        self._W = weights.W_enc[features]  # (S, I)
        self._b = weights.b_enc[features]
        self._mean = crosscoder._mean.unflatten(0, shape)
        self._table = crosscoder.table
        basis = crosscoder._basis
        self._basis = None if basis is None else basis.unflatten(0, shape)  # (N_in, D, R)
        self.inputs = about.inputs
        self.scales = crosscoder.scales_in
        # If each snapshot has its own gate, the gate of the strongest snapshot opens first.
        self._r = crosscoder._gate_norms().amax(1)[features]
        if about.activation == "relu":
            self._r = torch.ones_like(self._r)
        if about.activation == "jumprelu":
            self._t = weights.log_threshold.exp()[features]
        else:
            gate = about.threshold if about.activation == "batch_topk" else 0.0
            self._t = torch.full_like(self._r, gate)

    def weights(self, site: int) -> Tensor:
        """E of an input site, (S, D)."""
        D = self._mean.shape[1]
        if self._basis is None:
            return self._W[:, site * D : (site + 1) * D]
        return self._W @ self._basis[site].T

    def centre(self, site: int, ids: Ids = None) -> Tensor:
        """What is subtracted before E applies at an input site: (D,), or (B, D) with a token table.

        Parameters
        ----------
        ids : (B,) the token of each row, as for `Crosscoder.encode`.
        """
        return self._mean[site] + self._table.at(site, ids)

    def activations(self, sums: Tensor, which: Tensor) -> Tensor:
        """Feature activations, (…, P): the largest over snapshots if each has its own gate.

        Parameters
        ----------
        sums : (…, P) of (ã^θ − T^θ[x] − μ^θ)·E^θ over all input sites.
        which : (P,) index of each value's feature among the features of this object.
        """
        h = sums + self._b[which]
        score = h * self._r[which]
        return h * ((score > self._t[which]) & (score > 0))
