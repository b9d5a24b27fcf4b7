"""The losses and all their gradients in plain float64 NumPy: slow, but easy to check by eye.

Every gradient is written out by hand from the equations of method.md 3; nothing here uses autograd
or any other module of the package. Shapes follow the legend of model.py, except that W_dec is
(F, N, D), b_dec (N, D), target (B, N, D), x (B, I).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def step(
    W: dict[str, Array],
    x: Array,
    target: Array,
    *,
    activation: str,
    per_site: bool,
    k: int = 1,
    sparsity: float = 0.0,
    penalty: str = "pooled",
    refit: bool = False,
    bandwidth: float = 4.0,
    dead: NDArray[np.int64] | None = None,
    aux_k: int = 0,
    aux_weight: float = 0.0,
) -> tuple[float, dict[str, Array]]:
    """Loss and gradients of one step.

    Parameters
    ----------
    W : W_enc (F, I), b_enc (F,), W_dec (F, N, D), b_dec (N, D), log_threshold (F,).
    activation : batch_topk, jumprelu or relu. per_site : whether each site has its own gate.
    penalty : pooled or per_snapshot. refit : whether decoders learn at closed gates (jumprelu).
    dead : features that AuxK trains, or None.

    Returns
    -------
    The loss, and the gradient of each tensor of W.
    """
    B, N, _ = target.shape
    h = x @ W["W_enc"].T + W["b_enc"]  # (B, F)
    r = np.sqrt((W["W_dec"] ** 2).sum(2))  # (F, N)
    rms = np.sqrt((W["W_dec"] ** 2).sum((1, 2)) / N)  # (F,)
    gate_norm = r if per_site else np.repeat(rms[:, None], N, 1)  # (F, N)
    score = h[:, :, None] * gate_norm  # (B, F, N)
    t = np.exp(W["log_threshold"])[None, :, None]
    if activation == "batch_topk":
        seen = score if per_site else score[:, :, :1]
        count = k * B * (N if per_site else 1)
        cut = np.sort(seen.ravel())[-count]
        gate = (score >= cut) & (score > 0)
    elif activation == "jumprelu":
        gate = score > t
    else:
        gate = np.repeat(h[:, :, None] > 0, N, 2)
    f = h[:, :, None] * gate  # (B, F, N)
    reconstruction = np.einsum("bfn,fnd->bnd", f, W["W_dec"]) + W["b_dec"]
    E = reconstruction - target
    loss = (E**2).sum() / (B * N)

    dE = 2 * E / (B * N)
    grad = {name: np.zeros_like(value) for name, value in W.items()}
    grad["b_dec"] = dE.sum(0)
    grad["W_dec"] = np.einsum("bfn,bnd->fnd", f, dE)
    df = np.einsum("bnd,fnd->bfn", dE, W["W_dec"])

    if activation == "jumprelu":
        # If there is one gate per feature, its N copies are equal. As dz is divided by N, their sum
        # is that gate's gradient.
        z = f * gate_norm[None]
        omega = np.tanh(4 * z).mean(0)  # (F, N)
        omega_0 = 0.03
        if penalty == "pooled":
            omega, omega_0 = np.repeat(omega.mean(1, keepdims=True), N, 1), 0.01
        loss += sparsity * (omega * (1 + omega / omega_0)).mean(1).sum()
        slope = sparsity * (1 + 2 * omega / omega_0)  # (F, N)
        dz = slope[None] * 4 * (1 - np.tanh(4 * z) ** 2) / (B * N)
        df += dz * gate_norm[None]
        dr = (dz * f).sum(0)  # (F, N)
        if per_site:
            grad["W_dec"] += dr[:, :, None] * W["W_dec"] / r[:, :, None]
        else:
            grad["W_dec"] += (dr.sum(1) / (N * rms))[:, None, None] * W["W_dec"]
        if refit:  # E gets h W_dec added at the closed gates of a feature that is open elsewhere
            shut = h[:, :, None] * (~gate & gate.any(2, keepdims=True))
            grad["W_dec"] += np.einsum("bfn,bnd->fnd", shut, dE)
            grad["W_dec"] += 2 / (B * N) * (shut**2).sum(0)[:, :, None] * W["W_dec"]
        near = (np.abs(score - t) < bandwidth / 2) & (score > 0)
        grad["log_threshold"] = -(t[0, :, 0] / bandwidth) * (df * near).sum((0, 2))
    elif activation == "relu":
        mean_f = f[:, :, 0].mean(0)
        loss += sparsity * (mean_f * r.mean(1)).sum()
        df[:, :, 0] += sparsity * r.mean(1)[None] / B
        grad["W_dec"] += sparsity * (mean_f[:, None] / (N * r))[:, :, None] * W["W_dec"]

    dh = (df * gate).sum(2)  # (B, F)
    if activation == "batch_topk" and dead is not None and len(dead):
        left = target - reconstruction  # the error that AuxK reconstructs, treated as constant
        a = np.maximum(h[:, dead], 0)
        kth = np.sort(a, 1)[:, -aux_k][:, None]
        kept = (a >= kth) & (a > 0)
        a = a * kept
        E_aux = np.einsum("ba,and->bnd", a, W["W_dec"][dead]) - left
        loss += aux_weight * (E_aux**2).sum() / (B * N)
        dE_aux = aux_weight * 2 * E_aux / (B * N)
        grad["W_dec"][dead] += np.einsum("ba,bnd->and", a, dE_aux)
        dh[:, dead] += np.einsum("bnd,and->ba", dE_aux, W["W_dec"][dead]) * kept
    grad["b_enc"] = dh.sum(0)
    grad["W_enc"] = dh.T @ x
    return float(loss), grad
