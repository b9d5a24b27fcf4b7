"""Runs in SAELens's environment: what the library makes of exported folders.

    python saelens_reads.py FOLDER ...

Each FOLDER holds raw.npy, (B, d_in); beside it go f.npy (B, F), reconstruction.npy and class.txt.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from sae_lens import SAE

for folder in map(Path, sys.argv[1:]):
    sae = SAE.load_from_disk(folder)
    with torch.no_grad():
        f = sae.encode(torch.from_numpy(np.load(folder / "raw.npy")))
        np.save(folder / "reconstruction.npy", sae.decode(f).numpy())
    np.save(folder / "f.npy", f.numpy())
    (folder / "class.txt").write_text(type(sae).__name__)
