"""The pairs of a training step in C++ (core.cpp): built at first use, loaded, called like a loss.

`core.cpp` is compiled by torch.utils.cpp_extension into a library of operators. It is kept in
torch's cache of extensions under a digest of its source, of the compiler's flags and of the
versions that it was built with. If it cannot be built, one line says so and the same losses run
in PyTorch (losses.py).

It serves trainings with one process on a CPU, in the full or the hybrid space, with jumprelu or
with batch_topk without AuxK. Adam updates each row of the decoder as soon as its gradient is known,
while the row is still in the cache, so that the gradient of the whole decoder never exists.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import cpp_extension

from ontogeny import devices
from ontogeny.crosscoder.losses import OMEGA_0, Out
from ontogeny.crosscoder.model import Weights, pre_activations
from ontogeny.settings import Crosscoder

SOURCE = Path(__file__).with_name("core.cpp")
VECTORS = {
    "AVX512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"],
    "AVX2": ["-mavx2", "-mfma"],
}
INSTEAD = "training runs in PyTorch, which is slower"


def _flags() -> list[str]:
    """The compiler's flags for this processor.

    Raises
    ------
    OSError : the core does not support this processor.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    if platform.machine() in ("x86_64", "AMD64") and capability not in VECTORS:
        raise OSError("this processor has no AVX2")
    flags = ["-O3", "-Wno-psabi", *VECTORS.get(capability, [])]
    return flags if sys.platform == "darwin" else [*flags, "-fopenmp"]


def _cached(flags: list[str]) -> Path:
    """Path of the library; its name is a digest of everything that it is built from."""
    made_from = [SOURCE.read_text(), *flags, torch.__version__, platform.platform()]
    digest = hashlib.sha256("\n".join(made_from).encode()).hexdigest()[:16]
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root()
    return Path(root) / f"ontogeny_core_{digest}.so"


@cache
def library() -> Any:
    """The operators, built if necessary; None, with one line that says why, if they are not
    available."""
    try:
        missing = devices.compiler_missing()
        if missing:
            raise OSError(missing)
        flags = _flags()
        kept = _cached(flags)
        if not _loaded(kept):
            _build(kept, flags)
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [repr(error)]
        reason = next((line for line in lines if "error:" in line), lines[0])
        print(f"crosscoder core: {reason}: {INSTEAD}", file=sys.stderr)
        return None
    return torch.ops.ontogeny_core


def _loaded(kept: Path) -> bool:
    """Load a library that was built before; False if there is none or it cannot be loaded."""
    try:
        torch.ops.load_library(str(kept))
    except OSError:
        return False
    return True


def _build(kept: Path, flags: list[str]) -> None:
    """Build and load the library in a separate folder, so that no incomplete library is kept."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".ontogeny_core_") as folder:
        print("crosscoder core: compiling it once, which takes about 10 seconds", file=sys.stderr)
        cpp_extension.load(
            kept.stem,
            [str(SOURCE)],
            extra_cflags=flags,
            extra_ldflags=[flag for flag in flags if flag == "-fopenmp"],
            build_directory=folder,
            is_python_module=False,
        )
        # torch adds a number to the name of a library that this process has tried to build before.
        next(Path(folder).glob("*.so")).replace(kept)


def serves(c: Crosscoder, device: torch.device, ranks: int) -> bool:
    """Whether the core has the losses of a training."""
    if device.type != "cpu" or ranks > 1 or c.basis == "principal":
        return False
    return c.activation == "jumprelu" or (c.activation == "batch_topk" and not c.aux)


class Core:
    """The loss and gradients of a step, and the decoder's Adam update.

    Parameters
    ----------
    operators : the library. sites : N.
    """

    def __init__(self, operators: Any, c: Crosscoder, sites: int) -> None:
        self._operators, self._c, self._sites = operators, c, sites
        self._r = torch.zeros(0)  # (S, F) norms of the decoder's rows after the last step
        self._seen = -1  # version of the decoder that they belong to
        self._cut = -1.0

    def __call__(
        self,
        W: Weights,
        G: Weights,
        x: Tensor,
        target: Tensor,
        sparsity: float,
        sample: Tensor,
        count: int,
        backward: bool,
        moments: tuple[Tensor, Tensor] | None = None,
        rates: tuple[float, float] | None = None,
    ) -> Out:
        """One step.

        Parameters
        ----------
        W, G : the weights, and buffers for the gradients; the decoder's buffer may be empty.
        x, target : (B, I), (S, B, D). sparsity : λ. sample, count : as in losses.py.
        backward : whether to compute gradients.
        moments, rates : of the decoder, (F, S, D) and from optimizer.corrected; None does not
            update it.
        """
        c, core, tokens = self._c, self._operators, len(x)
        W_dec = W.W_dec.transpose(0, 1)
        if self._seen != W.W_dec._version:
            self._r, self._seen = core.norms(W_dec), W.W_dec._version
        gates, share = self._r, 1.0
        if c.gate == "feature":
            gates = (self._r.square().sum(0, keepdim=True) / self._sites).sqrt()
            share = 1 / self._sites
        h = pre_activations(x, W.W_enc, W.b_enc)
        cut, penalty, chosen = h.new_zeros(()), [], None
        if c.activation == "batch_topk":
            cut = core.cut(h, gates, count, self._cut)
            self._cut = cut.item()
            below = np.nextafter(np.float32(self._cut), np.float32(0))
            t = torch.full_like(W.b_enc, float(below))
        else:
            t, chosen = W.log_threshold.exp(), sample
            penalty = [sparsity, OMEGA_0[c.penalty], c.bandwidth, c.penalty == "per_snapshot"]
        decoder = G.W_dec.transpose(0, 1) if len(G.W_dec) else None
        first, second = (m.transpose(0, 1) for m in moments) if moments else (None, None)
        errors, cost, opened, _ = core.step(
            h, x, target, W_dec, self._r, gates, W.b_dec, t, 2 / (tokens * self._sites), share,
            c.refit, backward, chosen, penalty, G.W_enc, G.b_enc, decoder, G.b_dec, G.log_threshold,
            first, second, *(rates or (0.0, 0.0)),
        )  # fmt: skip
        loss = errors.sum() / (tokens * self._sites) + sparsity * cost
        l0 = opened[: len(gates)].sum() / (tokens * len(gates))
        return Out(loss.float(), (errors / tokens).float(), l0, opened.sum(0) > 0, cut)
