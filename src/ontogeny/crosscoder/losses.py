"""The training losses and their gradients, written out: one function of tensors each.

    B tokens of a batch   N sites   D width   F features   K active   I, O columns of x and target

Every loss is the mean over tokens and sites of ‖ã − â‖², plus what makes it sparse:

    batch_topk  keeps the B·K largest h·‖r‖/√N of a batch, or the B·K·N largest h·r
                (Bussmann et al. 2024, arXiv 2412.06410), with AuxK (Gao et al. 2024, 2406.04093)
    jumprelu    λ Σ_i ω_i (1 + ω_i/ω_0),  ω_i = mean over tokens and sites of tanh(4 f_i r_i)
                (Ge et al. 2025, arXiv 2509.17196; Circuits Updates, January 2025)
    relu        λ Σ_i of the mean of f_i r_i (Lindsey et al. 2024), which shrinks norms (Minder et
                al. 2025, arXiv 2504.02922): a baseline

With E = â − ã and c = 2/(B·N), the gradients that all share are, over the pairs that act alone:

    ∂L/∂W_dec = c fᵀ E      ∂L/∂b_dec = c Σ_b E      ∂L/∂f = c E W_decᵀ + (penalty's)
    ∂L/∂W_enc = dhᵀ x       ∂L/∂b_enc = Σ_b dh       dh = ∂L/∂f · gate

Each function is one graph for the compiler, without host syncs, and writes its gradients into
buffers that live as long as the training. reference.py has the same again in float64. All take

    W, G        the weights (model.py), and buffers for their gradients
    x, target   (B, I), (B, O)
    sites       N. per_site : whether each site has its own gate
    native      whether the CPU's own operators serve (pairs.py)
    ranks       this process among those that share the features (ranks.py). F is then its share,
                but for `Out.fired`, and what is reported is of all
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ontogeny.crosscoder import pairs
from ontogeny.crosscoder.model import Weights, decoder_norms, pre_activations
from ontogeny.crosscoder.ranks import Ranks

OMEGA_0 = 0.01
TANH_SCALE = 4.0
ALONE = Ranks()


class Out(NamedTuple):
    """What a step reports; all on the device."""

    loss: Tensor  # ()
    error: Tensor  # () mean over tokens and sites of ‖ã − â‖²
    l0: Tensor  # () mean active features of a token at a site
    fired: Tensor  # (F,) whether active anywhere in the batch
    cut: Tensor  # () smallest kept score (batch_topk)
    residual: Tensor  # (B, O) E = â − ã
    full: Tensor | None = None  # () whether a rank may have had no room for all of its pairs


def gate_norms(W_dec: Tensor, sites: int, per_site: bool) -> Tensor:
    """What a gate multiplies h by: r, (F, N), or its root mean square over sites, (F, 1)."""
    return decoder_norms(W_dec, sites) if per_site else decoder_norms(W_dec, 1) / sites**0.5


def _residual(
    acting: pairs.Every | pairs.Kept,
    f: Tensor,
    W: Weights,
    target: Tensor,
    sites: int,
    ranks: Ranks,
    more: Sequence[Tensor] = (),
) -> tuple[Out, Sequence[Tensor]]:
    """E and what is reported of it and of f; and `more`, summed over ranks in the same message."""
    decoded = acting.decode(f, W.W_dec, len(target))
    active = acting.sums((f > 0).to(f.dtype))  # (F, N), or (F, 1) for one gate per feature
    gates = active.shape[1]
    decoded, active, more = ranks.summed(decoded, active, more)
    E = decoded + W.b_dec - target
    error = E.square().sum() / (len(target) * sites)
    l0 = active.sum() / (len(target) * gates)
    return Out(error, error, l0, active.sum(1) > 0, torch.zeros_like(error), E), more


def _gradients(
    acting: pairs.Every | pairs.Kept,
    G: Weights,
    x: Tensor,
    f: Tensor,
    df: Tensor,
    E: Tensor,
    sites: int,
) -> None:
    """Set G's encoder, decoder and biases from ∂L/∂f, df."""
    c = 2 / (len(x) * sites)
    dh = torch.where(f > 0, df, 0.0)
    acting.encoder_gradient(G.W_enc, dh, x)
    G.b_enc.copy_(acting.sums(dh).sum(1))
    acting.decoder_gradient(G.W_dec, c * f, E)
    G.b_dec.copy_(c * E.sum(0))


def batch_topk(
    W: Weights,
    G: Weights,
    x: Tensor,
    target: Tensor,
    dead: Tensor,
    is_dead: Tensor,
    *,
    sites: int,
    per_site: bool,
    k: int,
    aux_k: int,
    aux_weight: float,
    native: bool,
    ranks: Ranks = ALONE,
) -> Out:
    """BatchTopK with AuxK.

    Parameters
    ----------
    dead : (A,) features longest silent, of this rank. is_dead : (A,) bool, those that count as
        dead. A = 0 leaves AuxK out.
    k : K. aux_k : the most dead features of a token that AuxK trains.
    """
    c = 2 / (len(x) * sites)
    h = pre_activations(x, W.W_enc, W.b_enc)
    r = gate_norms(W.W_dec, sites, per_site)
    h_dead = best = None
    if len(dead):
        h_dead = torch.where(is_dead, h[:, dead], 0.0).relu()
        best = torch.topk(h_dead, min(aux_k, len(dead)), dim=1, sorted=False).values
    kept, f, cut, best, full = ranks.largest(h, r, k * len(x) * r.shape[1], native, best)
    if h_dead is None or best is None:
        out, _ = _residual(kept, f, W, target, sites, ranks)
        _gradients(kept, G, x, f, kept.gradient(out.residual, W.W_dec) * c, out.residual, sites)
        return out._replace(cut=cut, full=full)
    # What the living leave over, from the dead alone: at most aux_k of them for each token.
    if best.shape[1] > aux_k:
        best = torch.topk(best, aux_k, dim=1, sorted=False).values
    f_dead = h_dead * (h_dead >= best.amin(1, keepdim=True))
    W_dead = W.W_dec[dead]
    more = (f_dead @ W_dead, is_dead.sum().to(f.dtype))
    out, (decoded, number) = _residual(kept, f, W, target, sites, ranks, more)
    _gradients(kept, G, x, f, kept.gradient(out.residual, W.W_dec) * c, out.residual, sites)
    E_dead = decoded + out.residual
    aux = E_dead.square().sum() / (len(x) * sites)
    dE_dead = E_dead * (aux_weight * 2 / (len(x) * sites))
    dh_dead = torch.where(f_dead > 0, dE_dead @ W_dead.T, 0.0)
    G.W_dec.index_add_(0, dead, f_dead.T @ dE_dead)
    G.W_enc.index_add_(0, dead, dh_dead.T @ x)
    G.b_enc.index_add_(0, dead, dh_dead.sum(0))
    loss = out.error + aux_weight * torch.where(number > 0, aux, 0.0)
    return out._replace(loss=loss, cut=cut, full=full)


def jumprelu(
    W: Weights,
    G: Weights,
    x: Tensor,
    target: Tensor,
    sparsity: Tensor,
    sample: Tensor,
    *,
    sites: int,
    per_site: bool,
    bandwidth: float,
    native: bool,
    ranks: Ranks = ALONE,
) -> Out:
    """JumpReLU with the tanh-quad penalty.

    The gradient of τ = log t is the straight-through estimate −(t/ε) Σ ∂L/∂f over all pairs with
    |h·r − t| < ε/2 and h·r > 0, active or not; it is estimated from some tokens.

    Parameters
    ----------
    sparsity : () λ at this step. sample : (S,) tokens that the threshold's gradient is taken from.
    bandwidth : ε.
    """
    c = 2 / (len(x) * sites)
    h = pre_activations(x, W.W_enc, W.b_enc)
    r = gate_norms(W.W_dec, sites, per_site)
    t = W.log_threshold.exp()
    acting: pairs.Every | pairs.Kept
    if native or per_site:
        acting = pairs.Kept.at(pairs.above(h, r, t), len(t), r.shape[1], native)
        f = acting.take(h)
    else:
        acting = pairs.Every()
        f = h * (h * r.T > t)
    tokens = len(x) * r.shape[1]
    z = TANH_SCALE * f * acting.of_feature(r)
    omega = acting.sums(torch.tanh(z)).sum(1) / tokens  # (F,)
    penalty = (omega * (1 + omega / OMEGA_0)).sum()
    out, (penalty,) = _residual(acting, f, W, target, sites, ranks, (penalty,))

    slope = sparsity * (1 + 2 * omega / OMEGA_0) * TANH_SCALE / tokens
    slopes = slope[:, None].expand_as(r)
    dz = acting.of_feature(slopes) * (1 - torch.tanh(z).square())
    df = acting.gradient(out.residual, W.W_dec) * c + dz * acting.of_feature(r)
    _gradients(acting, G, x, f, df, out.residual, sites)
    dr = acting.sums(dz * f)  # (F, N) or (F, 1)
    per_norm = dr / r if per_site else dr / (r * sites)
    G.W_dec.view(*r.shape, -1).add_(per_norm[:, :, None] * W.W_dec.view(*r.shape, -1))

    # The threshold's gradient: dense over the sampled tokens, a few sites at a time.
    E, W_dec = (
        a.view(len(a), r.shape[1], -1).transpose(0, 1) for a in (out.residual[sample], W.W_dec)
    )  # (N, S, D), (N, F, D)
    h = h[sample]
    total = torch.zeros_like(t)
    at_once = max(1, len(x) // len(sample))
    for n in range(0, r.shape[1], at_once):
        norm = r.T[n : n + at_once, None]  # (sites, 1, F)
        score = h * norm
        near = ((score - t).abs() < bandwidth / 2) & (score > 0)
        df = torch.bmm(E[n : n + at_once], W_dec[n : n + at_once].transpose(1, 2)) * c
        df += slope * (1 - torch.tanh(TANH_SCALE * score * (score > t)).square()) * norm
        total += (df * near).sum((0, 1))
    G.log_threshold.copy_(-(t / bandwidth) * total * (len(x) / len(sample)))
    return out._replace(loss=out.error + sparsity * penalty)


def relu(
    W: Weights,
    G: Weights,
    x: Tensor,
    target: Tensor,
    sparsity: Tensor,
    *,
    sites: int,
    ranks: Ranks = ALONE,
) -> Out:
    """ReLU with L1 on f·r. Dense: most features act. sparsity : () λ at this step."""
    acting = pairs.Every()
    f = pre_activations(x, W.W_enc, W.b_enc).relu()
    r = decoder_norms(W.W_dec, sites)
    mean_f, mean_r = f.mean(0), r.mean(1)
    out, (penalty,) = _residual(acting, f, W, target, sites, ranks, ((mean_f * mean_r).sum(),))
    c = 2 / (len(x) * sites)
    df = acting.gradient(out.residual, W.W_dec) * c + sparsity * mean_r / len(x)
    _gradients(acting, G, x, f, df, out.residual, sites)
    per_norm = sparsity * mean_f[:, None] / (sites * r)
    G.W_dec.view(*r.shape, -1).add_(per_norm[:, :, None] * W.W_dec.view(*r.shape, -1))
    return out._replace(loss=out.error + sparsity * penalty)
