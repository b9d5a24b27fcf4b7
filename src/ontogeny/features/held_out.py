"""Features on the held-out text, and how much of their activation a grouping explains.

Shapes: f (N, F) are activations at N held-out positions in text order.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy import sparse

from ontogeny.activations.rows import HeldOut, pieces
from ontogeny.activations.sites import Site
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.files import InputError

PIECE_ENTRIES = 1 << 27  # feature activations in memory at a time
MOST_POSITIONS = 1 << 16  # first held-out positions; a limit that keeps permutations to minutes


def inputs_of(crosscoder: Crosscoder, activations: str | Path) -> HeldOut:
    """The activations that a crosscoder reads.

    Raises
    ------
    InputError : they belong to other tokens than those it was trained on.
    """
    scales = crosscoder.scales_in.cpu().numpy()
    inputs = HeldOut(activations, [Site(*site) for site in crosscoder.about.inputs], scales)
    if inputs.tokens != crosscoder.about.tokens:
        raise InputError(
            f"{activations}: made from other tokens than the crosscoder was trained on; train it "
            "again"
        )
    return inputs


def held_out(
    crosscoder: Crosscoder, activations: str | Path, most: int = MOST_POSITIONS
) -> tuple[sparse.csr_array, np.ndarray]:
    """Feature activations at the first held-out positions, and (N, 2) block and offset of each.

    With a gate per snapshot, an activation is the largest over snapshots.

    Parameters
    ----------
    most : maximum number of positions.
    """
    about, inputs = crosscoder.about, inputs_of(crosscoder, activations)
    step = max(1, min(2048, PIECE_ENTRIES // about.features))
    device = crosscoder.device
    parts = []
    for start, piece in pieces(inputs, step, stop=most):
        ids = inputs.tokens_at(start, start + len(piece))[:, 1]
        f = crosscoder.encode_peak(torch.from_numpy(piece).to(device), ids)
        parts.append(sparse.csr_array(f.cpu().numpy()))
    return sparse.vstack(parts, format="csr"), inputs.position[:most]


def own_activations(crosscoder: Crosscoder, f: sparse.csr_array, site: int) -> sparse.csr_array:
    """Activations at a site, (N, F), computed from those at each feature's peak.

    If one gate serves all sites, they are the same. If each site has its own gate, an activation
    passes where its score there exceeds the threshold. The peak has the largest norm, so it passes
    whatever passes at any site.
    """
    if crosscoder.about.gate == "feature":
        return f
    r = crosscoder.strength[:, site].cpu().numpy()
    if crosscoder.about.activation == "jumprelu":
        t = crosscoder.weights.log_threshold.exp().cpu().numpy()
    else:
        t = np.full_like(r, crosscoder.about.threshold)
    there = f.data * r[f.indices] > t[f.indices]
    return sparse.csr_array((f.data * there, f.indices, f.indptr), f.shape)


def membership(groups: np.ndarray) -> sparse.csr_array:
    """Indicator matrix (G, N): 1 where a position belongs to a group."""
    N = len(groups)
    return sparse.csr_array((np.ones(N), (groups, np.arange(N))), (int(groups.max()) + 1, N))


def group_sums(f: sparse.csr_array, groups: np.ndarray) -> sparse.csr_array:
    """Sums of f by group, (G, F)."""
    return membership(groups) @ f


def between_groups(sums: sparse.csr_array, sizes: np.ndarray) -> np.ndarray:
    """Σ_g S_g² / n_g of each feature, (F,)."""
    weights = sparse.diags_array(1 / sizes)
    return np.asarray((weights @ sums.power(2)).sum(0)).ravel()


def explained(f: sparse.csr_array, groups: np.ndarray) -> np.ndarray:
    """ε² of each feature's activation on a grouping, (F,): 1 − mean square within / overall.

    This is η² corrected for chance: it is 0 on average if the groups explain nothing, however many
    there are. It is 0 for a feature that does not vary.
    """
    N, G = len(groups), int(groups.max()) + 1
    sizes = np.bincount(groups)
    squares = np.asarray(f.power(2).sum(0)).ravel()
    total = squares - np.asarray(f.sum(0)).ravel() ** 2 / N
    within = squares - between_groups(group_sums(f, groups), sizes)
    share = (within / max(1, N - G)) / np.maximum(total / (N - 1), 1e-30)
    return np.where(total > 1e-12 * squares, 1 - share, 0.0)
