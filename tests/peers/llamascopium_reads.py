"""Runs in llamascopium's environment: what the library makes of exported folders.

    python llamascopium_reads.py FOLDER ...

Each FOLDER holds raw.npy, (B, N, D); beside it go f.npy (B, N, F), reconstruction.npy
and saved/, the library's own folder of the same. Where it holds sparsity.npy, λ, loss.npz has the
library's loss of the rows, by its penalty, and the gradients of its weights.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from llamascopium.models.sparse_dictionary import SparseDictionary


def axes_of_any(axes):
    """Their axes of a loss, and those of one number, which `tanh-quad` is and they refuse."""
    return lambda loss: axes(loss) if loss.ndim else ()


for folder in map(Path, sys.argv[1:]):
    coder = SparseDictionary.from_pretrained(str(folder))
    raw = torch.from_numpy(np.load(folder / "raw.npy"))
    batch = dict(zip(coder.cfg.hook_points, raw.unbind(1), strict=True))
    scaled, factors = coder.normalize_activations(batch, return_scale_factor=True)
    with torch.no_grad():
        f = coder.encode(coder.prepare_input(scaled)[0])
        heads = dict(zip(coder.cfg.hook_points, coder.decode(f).unbind(1), strict=True))
    again = coder.denormalize_activations(heads, factors)
    stacked = torch.stack([again[name] for name in coder.cfg.hook_points], 1)
    np.save(folder / "f.npy", f.numpy())
    np.save(folder / "reconstruction.npy", stacked[..., : raw.shape[2]].numpy())
    coder.save_pretrained(folder / "saved")
    coder.cfg.save_hyperparameters(folder / "saved")
    if (folder / "sparsity.npy").exists():
        coder.specs.loss = staticmethod(axes_of_any(coder.specs.loss))
        kept = {}
        for penalty in ("tanh", "tanh-quad"):
            coder.zero_grad()
            out = coder.compute_loss(
                scaled | {"tokens": torch.zeros(len(raw), dtype=torch.long)},
                sparsity_loss_type=penalty,
                tanh_stretch_coefficient=4.0,
                l1_coefficient=float(np.load(folder / "sparsity.npy")),
            )
            loss = out["loss"].mean()  # over heads
            loss.backward()
            kept[f"{penalty} loss"] = loss.detach().numpy()
            for name, weight in coder.named_parameters():
                kept[f"{penalty} {name}"] = weight.grad.numpy()
        np.savez(folder / "loss.npz", **kept)
