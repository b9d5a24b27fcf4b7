"""The training losses, written to be compiled: one function of tensors each, no host syncs.

Every loss is the mean over tokens and sites of ‖ã − â‖², plus what makes it sparse:

    batch_topk  keep the B·k largest h·‖r‖ of a batch, or the B·k·N largest h·r    [B], AuxK [T]
    jumprelu    λ Σ_i ω_i (1 + ω_i/ω_0),  ω_i = mean of tanh(4 f_i r_i)            [paper], [J]
    relu        λ Σ_i of the mean of f_i r_i                                        [C]

Shapes as in model.py; `sites` is N, and a (B, F, N) tensor is kept as (N, B, F), for batched
products.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ontogeny.crosscoder.model import Weights, decoder_norms, pre_activations

OMEGA_0 = 0.01
TANH_SCALE = 4.0


class Out(NamedTuple):
    """What a step reports beside its loss; all on the device, none with a gradient."""

    loss: torch.Tensor  # () to differentiate
    error: torch.Tensor  # () mean over tokens and sites of ‖ã − â‖²
    l0: torch.Tensor  # () mean active features a token and site
    fired: torch.Tensor  # (F,) whether active anywhere in the batch
    cut: torch.Tensor  # () smallest kept score (batch_topk)
    reconstruction: torch.Tensor  # (B, O)


class Jump(torch.autograd.Function):
    """f = h · 1[h·r > t], its gradient to τ = log t the straight-through estimate of [J]:

    ∂f/∂τ ≈ −(t/ε) · 1[|h·r − t| < ε/2, h·r > 0];   ∂f/∂h = the gate;   none to r.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        h: torch.Tensor, r: torch.Tensor, log_threshold: torch.Tensor, bandwidth: float
    ) -> torch.Tensor:
        """h (…, B, F), r (…, 1, F), τ (F,)."""
        return h * (h * r > log_threshold.exp())

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        h, r, log_threshold, ctx.bandwidth = inputs
        ctx.save_for_backward(h, r, log_threshold)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        h, r, log_threshold = ctx.saved_tensors
        t = log_threshold.exp()
        score = h * r
        grad_h = grad * (score > t)
        near = ((score - t).abs() < ctx.bandwidth / 2) & (score > 0)
        grad_tau = -(t / ctx.bandwidth) * (grad * near).flatten(0, -2).sum(0)
        while grad_h.ndim > 2:
            grad_h = grad_h.sum(0)
        return grad_h, None, grad_tau, None


def _decode(f: torch.Tensor, W_dec: torch.Tensor, b_dec: torch.Tensor) -> torch.Tensor:
    """â (B, O) from f (B, F), or (N, B, F) with a gate per site."""
    if f.ndim == 2:
        return torch.addmm(b_dec, f, W_dec)
    per_site = W_dec.unflatten(1, (f.shape[0], -1)).transpose(0, 1)  # (N, F, D)
    return torch.bmm(f, per_site).transpose(0, 1).flatten(1) + b_dec


def _gate_norms(W_dec: torch.Tensor, sites: int, per_site: bool) -> torch.Tensor:
    """What the gate multiplies h by: r, (N, 1, F), or its root mean square over sites, (1, F)."""
    if per_site:
        return decoder_norms(W_dec, sites).T[:, None, :]
    return decoder_norms(W_dec, 1).T / sites**0.5


def _out(
    target: torch.Tensor, f: torch.Tensor, W: Weights, sites: int, cut: torch.Tensor
) -> tuple[torch.Tensor, Out]:
    """Reconstruction error (with gradient) and the report, from feature activations."""
    reconstruction = _decode(f, W.W_dec, W.b_dec)
    error = (target - reconstruction).square().sum() / (target.shape[0] * sites)
    active = f.detach() > 0
    fired = active.flatten(0, -2).any(0)
    l0 = active.sum() / (active.numel() // active.shape[-1])
    return error, Out(error, error.detach(), l0, fired, cut, reconstruction.detach())


def batch_topk(
    W: Weights,
    x: torch.Tensor,
    target: torch.Tensor,
    dead: torch.Tensor,
    is_dead: torch.Tensor,
    *,
    sites: int,
    per_site: bool,
    k: int,
    aux_k: int,
    aux_weight: float,
) -> Out:
    """BatchTopK [B] with AuxK [T].

    Parameters
    ----------
    x : (B, I). target : (B, O).
    dead : (A,) features longest silent. is_dead : (A,) bool, those that count as dead.
    """
    h = pre_activations(x, W.W_enc, W.b_enc)
    score = (h * _gate_norms(W.W_dec, sites, per_site)).detach()
    count = k * (score.numel() // score.shape[-1])
    cut = torch.topk(score.flatten(), count, sorted=False).values.min()
    f = h * ((score >= cut) & (score > 0))
    error, out = _out(target, f, W, sites, cut)
    if dead.shape[0] == 0:
        return out
    # What the living leave over, from the dead alone: at most aux_k of them a token.
    left = target - out.reconstruction
    h_dead = torch.where(is_dead, h[:, dead], 0.0).relu()
    kth = torch.topk(h_dead.detach(), aux_k, dim=1, sorted=False).values.amin(1, keepdim=True)
    f_dead = h_dead * (h_dead >= kth)
    left_error = (left - f_dead @ W.W_dec[dead]).square().sum() / (target.shape[0] * sites)
    aux = torch.where(is_dead.any(), left_error, 0.0)
    return out._replace(loss=error + aux_weight * aux)


def jumprelu(
    W: Weights,
    x: torch.Tensor,
    target: torch.Tensor,
    sparsity: torch.Tensor,
    *,
    sites: int,
    per_site: bool,
    bandwidth: float,
) -> Out:
    """JumpReLU with the tanh-quad penalty [paper]. sparsity : () λ at this step."""
    h = pre_activations(x, W.W_enc, W.b_enc)
    r = _gate_norms(W.W_dec, sites, per_site)
    f = Jump.apply(h, r.detach(), W.log_threshold, bandwidth)
    error, out = _out(target, f, W, sites, torch.zeros_like(sparsity))
    omega = torch.tanh(TANH_SCALE * f * r).flatten(0, -2).mean(0)
    return out._replace(loss=error + sparsity * (omega * (1 + omega / OMEGA_0)).sum())


def relu(
    W: Weights, x: torch.Tensor, target: torch.Tensor, sparsity: torch.Tensor, *, sites: int
) -> Out:
    """ReLU with L1 on f·r, the baseline of [C] that [M] criticises."""
    f = pre_activations(x, W.W_enc, W.b_enc).relu()
    error, out = _out(target, f, W, sites, torch.zeros_like(sparsity))
    norms = decoder_norms(W.W_dec, sites).mean(1)
    return out._replace(loss=error + sparsity * (f.mean(0) * norms).sum())
