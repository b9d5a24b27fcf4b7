"""The training losses and their gradients, written out: one function on tensors for each.

    B tokens of a batch   F features   G gates per feature: one, or one per site   K active
    N sites   S blocks of the decoder, D wide: the sites, or one block in a principal subspace

Every loss is the mean over tokens and sites of ‖ã − â‖², plus a term or rule that makes it sparse:

    batch_topk  keeps the B·K·G largest h·r of a batch (Bussmann et al. 2024, arXiv 2412.06410),
                with AuxK (Gao et al. 2024, 2406.04093)
    jumprelu    λ Σ_i ω_i (1 + ω_i/ω_0),  ω_i = mean over tokens and gates of tanh(4 f_i r_i)
                (Ge et al. 2025, arXiv 2509.17196; Circuits Updates, January 2025); or the mean over
                gates of the same with each gate's own ω_i
    relu        λ Σ_i of the mean of f_i r_i (Lindsey et al. 2024), which shrinks norms (Minder et
                al. 2025, arXiv 2504.02922): a baseline

With E = â − ã and c = 2/(B·N), all losses have these gradients, summed over active pairs only:

    ∂L/∂W_dec = c fᵀ E      ∂L/∂b_dec = c Σ_b E      ∂L/∂f = c E W_decᵀ + (penalty's)
    ∂L/∂W_enc = dhᵀ x       ∂L/∂b_enc = Σ_b dh       dh = Σ over gates of ∂L/∂f · gate

Each function is one graph for the compiler, without host syncs, and writes its gradients into
buffers that exist as long as the training. reference.py repeats the losses in float64, and core.cpp
in C++ for a CPU. All functions take

    W, G        the weights (model.py), and buffers for their gradients
    x, target   (B, I), (S, B, D)
    sites       N. per_site : whether each site has its own gate
    ranks       this process among those that share the features (ranks.py). F is then its share,
                except in `Out.fired`; what is reported covers all features
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ontogeny.crosscoder import pairs
from ontogeny.crosscoder.model import Weights, gate_norms, pre_activations
from ontogeny.crosscoder.ranks import Ranks

OMEGA_0 = {"pooled": 0.01, "per_snapshot": 0.03}  # by the setting `penalty`
TANH_SCALE = 4.0
ALONE = Ranks()


class Out(NamedTuple):
    """What a step reports; every tensor is on the device."""

    loss: Tensor  # ()
    errors: Tensor  # (S,) a block's ‖ã − â‖², mean over tokens
    l0: Tensor  # () mean number of active features per token and site
    fired: Tensor  # (F,) whether active anywhere in the batch
    cut: Tensor  # () smallest kept score (batch_topk)
    residual: Tensor | None = None  # (S, B, D) E = â − ã
    full: Tensor | None = None  # () whether candidates may be missing for lack of room


def _residual(
    decoded: Tensor,
    active: Tensor,
    W: Weights,
    target: Tensor,
    sites: int,
    ranks: Ranks,
    more: Sequence[Tensor] = (),
) -> tuple[Out, Tensor, Sequence[Tensor]]:
    """E, its report and that of f; and `more`, summed over ranks in the same message.

    Parameters
    ----------
    decoded : (S, B, D). active : (F, G) number of tokens on which this rank's features are active.
    """
    blocks, tokens, width = decoded.shape
    gates = active.shape[1]
    decoded, active, more = ranks.summed(decoded, active, more)
    E = decoded + (W.b_dec.view(blocks, 1, width) - target)
    errors = E.square().sum((1, 2)) / tokens
    loss = errors.sum() / sites
    l0 = active.sum() / (tokens * gates)
    out = Out(loss, errors, l0, active.sum(1) > 0, torch.zeros_like(loss), E)
    return out, E, more


def _gradients(
    acting: pairs.Candidates,
    G: Weights,
    x: Tensor,
    f: Tensor,
    df: Tensor,
    E: Tensor,
    sites: int,
    refitted: Tensor | None = None,
) -> None:
    """Write the gradients of encoder, decoder and biases into G, from ∂L/∂f.

    Parameters
    ----------
    f : (P, G). df : (P, G).
    refitted : (P, G) f, with h in place of f at closed gates that are refitted.
    """
    c = 2 / (len(x) * sites)
    dh = torch.where(f > 0, df, 0.0).sum(1)
    acting.encoder_gradient(G.W_enc, dh, x)
    G.b_enc.copy_(acting.sums(dh[:, None])[:, 0])
    acting.decoder_gradient(G.W_dec, c * (f if refitted is None else refitted), E)
    G.b_dec.copy_(c * E.sum(1).flatten())


def _of_gates(acting: pairs.Candidates, E: Tensor, W_dec: Tensor, f: Tensor) -> Tensor:
    """E W_decᵀ, (P, G); if there is one gate, summed over blocks."""
    df = acting.gradient(E, W_dec, f)
    return df if f.shape[1] > 1 else df.sum(1, keepdim=True)


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
    count: int,
    aux_k: int,
    aux_weight: float,
    ranks: Ranks = ALONE,
) -> Out:
    """BatchTopK with AuxK.

    Parameters
    ----------
    dead : (A,) this rank's features that were silent longest. is_dead : (A,) bool, which of them
        count as dead. A = 0 turns AuxK off.
    count : number of scores to keep, B·K·G. aux_k : most dead features per token that AuxK trains.
    """
    c = 2 / (len(x) * sites)
    h = pre_activations(x, W.W_enc, W.b_enc)
    r = gate_norms(W.W_dec, sites, per_site)
    h_dead = best = None
    if len(dead):
        h_dead = torch.where(is_dead, h[:, dead], 0.0).relu()
        best = torch.topk(h_dead, min(aux_k, len(dead)), dim=1, sorted=False).values
    kept, f, cut, best, full = ranks.largest(h, r, count, best)
    decoded, active = kept.decode(f, W.W_dec), kept.sums((f > 0).to(f.dtype))
    if h_dead is None or best is None:
        out, E, _ = _residual(decoded, active, W, target, sites, ranks)
        _gradients(kept, G, x, f, c * _of_gates(kept, E, W.W_dec, f), E, sites)
        return out._replace(cut=cut, full=full)
    # Dead features alone reconstruct the living ones' error: at most aux_k of them for each token.
    if best.shape[1] > aux_k:
        best = torch.topk(best, aux_k, dim=1, sorted=False).values
    f_dead = h_dead * (h_dead >= best.amin(1, keepdim=True))
    W_dead = W.W_dec[dead]
    more = (torch.einsum("ba,asd->sbd", f_dead, W_dead), is_dead.sum().to(f.dtype))
    out, E, (decoded, number) = _residual(decoded, active, W, target, sites, ranks, more)
    _gradients(kept, G, x, f, c * _of_gates(kept, E, W.W_dec, f), E, sites)
    E_dead = decoded + E
    aux = E_dead.square().sum() / (len(x) * sites)
    dE_dead = E_dead * (aux_weight * 2 / (len(x) * sites))
    dh_dead = torch.where(f_dead > 0, torch.einsum("sbd,asd->ba", dE_dead, W_dead), 0.0)
    G.W_dec[dead] += torch.einsum("ba,sbd->asd", f_dead, dE_dead)
    G.W_enc[dead] += dh_dead.T @ x
    G.b_enc[dead] += dh_dead.sum(0)
    loss = out.loss + aux_weight * torch.where(number > 0, aux, 0.0)
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
    penalty: str,
    bandwidth: float,
    refit: bool,
    ranks: Ranks = ALONE,
) -> Out:
    """JumpReLU with the tanh-quad penalty.

    The gradient of τ = log t is the straight-through estimate −(t/ε) Σ ∂L/∂f over all pairs with
    |h·r − t| < ε/2 and h·r > 0, active or not. It is estimated from a sample of the tokens.

    Parameters
    ----------
    sparsity : () λ at this step. sample : (M,) tokens from which the threshold's gradient is taken.
    penalty : pooled [paper], or per_snapshot. bandwidth : ε.
    refit : whether a decoder also learns at sites where its gate is closed while another gate of
        the feature is open. Its gradient is that of adding h there: c·h(E + h W_dec).
    """
    tokens, c = len(x), 2 / (len(x) * sites)
    h = pre_activations(x, W.W_enc, W.b_enc)
    r = gate_norms(W.W_dec, sites, per_site)  # (F, G)
    gates = r.shape[1]
    t = W.log_threshold.exp()
    acting = pairs.Candidates.at(pairs.above(h, r, t, ranks.room), *h.shape)
    value, own = h.flatten()[acting.token * len(t) + acting.feature, None], r[acting.feature]
    score = value * own
    f = torch.where(score <= t[acting.feature, None], 0.0, value)  # (P, G)
    squashed = torch.tanh(TANH_SCALE * f * own)
    omega = acting.sums(squashed) / tokens  # (F, G)
    if penalty == "pooled":
        omega = omega.mean(1, keepdim=True)
    omega_0 = OMEGA_0[penalty]
    cost = (omega * (1 + omega / omega_0)).mean(1).sum()
    active = acting.sums((f > 0).to(f.dtype))
    decoded = acting.decode(f, W.W_dec)
    out, E, (cost,) = _residual(decoded, active, W, target, sites, ranks, (cost,))

    slope = sparsity * (1 + 2 * omega / omega_0) * TANH_SCALE / (tokens * gates)
    slope = slope.expand_as(r)
    dz = slope[acting.feature] * (1 - squashed.square())
    df = c * _of_gates(acting, E, W.W_dec, f) + dz * own
    refitted = None
    per_norm = acting.sums(dz * f) / (r if per_site else r * sites)  # (F, G)
    if refit:
        shut = (f == 0) & (f > 0).any(1, keepdim=True)
        refitted = torch.where(shut, value, f)
        per_norm = per_norm + c * acting.sums(torch.where(shut, value.square(), 0.0))
    _gradients(acting, G, x, f, df, E, sites, refitted)
    G.W_dec.add_(per_norm[:, :, None] * W.W_dec)

    # The threshold's gradient is dense over the sampled tokens, computed a few blocks at a time.
    # The penalty's slope is 1 − tanh² at open gates and 1 elsewhere; the tanh part needs candidates
    # only.
    chosen = torch.zeros_like(x[:, 0]).index_fill(0, sample, 1.0)[acting.token, None]
    near = _near(score, t[acting.feature, None], bandwidth)
    opened = acting.sums(chosen * near * squashed.square())  # (F, G)
    E, W_dec, h = E[:, sample], W.W_dec.transpose(0, 1), h[sample]  # (S, M, D), (S, F, D), (M, F)
    total = torch.zeros_like(t)
    close = torch.zeros_like(r)
    at_once = max(1, tokens // len(sample))
    for s in range(0, len(E), at_once):
        part = slice(s, s + at_once) if per_site else slice(None)
        near = _near(h * r.T[part, None], t, bandwidth)  # (blocks or 1, M, F)
        close[:, part] = near.sum(1).T.to(t.dtype)
        df = torch.bmm(E[s : s + at_once], W_dec[s : s + at_once].transpose(1, 2))
        total += c * (df * near).sum((0, 1))
    total += (slope * r * (close - opened)).sum(1)
    G.log_threshold.copy_(-(t / bandwidth) * total * (tokens / len(sample)))
    full = None
    if not pairs.of_any_size(h.device):
        full = (value[:, 0] * own.amax(1) > t[acting.feature]).all()
    return out._replace(loss=out.loss + sparsity * cost, full=full)


def _near(score: Tensor, t: Tensor, bandwidth: float) -> Tensor:
    return ((score - t).abs() < bandwidth / 2) & (score > 0)


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
    """ReLU with L1 on f·r. The step is dense, since most features act. sparsity : () λ."""
    c = 2 / (len(x) * sites)
    f = pre_activations(x, W.W_enc, W.b_enc).relu()
    r = gate_norms(W.W_dec, sites, per_site=True)
    mean_f, mean_r = f.mean(0), r.mean(1)
    active = (f > 0).to(f.dtype).sum(0)[:, None]
    decoded = torch.einsum("bf,fsd->sbd", f, W.W_dec)
    more = ((mean_f * mean_r).sum(),)
    out, E, (cost,) = _residual(decoded, active, W, target, sites, ranks, more)
    df = c * torch.einsum("sbd,fsd->bf", E, W.W_dec) + sparsity * mean_r / len(x)
    dh = torch.where(f > 0, df, 0.0)
    torch.mm(dh.T, x, out=G.W_enc)
    G.b_enc.copy_(dh.sum(0))
    G.b_dec.copy_(c * E.sum(1).flatten())
    per_norm = sparsity * mean_f[:, None] / (sites * r)
    G.W_dec.copy_(torch.einsum("bf,sbd->fsd", c * f, E) + per_norm[:, :, None] * W.W_dec)
    return out._replace(loss=out.loss + sparsity * cost)
