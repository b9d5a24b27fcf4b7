"""Runs in llamascopium's environment: what the library makes of exported folders.

    python llamascopium_reads.py FOLDER ...

Each FOLDER holds raw.npy, (B, N, D); beside it go f.npy (B, N, F), reconstruction.npy
and saved/, the library's own folder of the same.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from llamascopium.models.sparse_dictionary import SparseDictionary

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
