"""The logit lens: which tokens a direction of the residual stream promotes and suppresses.

Between its last block and its output embedding W_U, a model has a norm with gain γ:

    N(x) = γ ⊙ x / rms(x) + β              RMSNorm
    N(x) = γ ⊙ (x − x̄) / std(x) + β        LayerNorm, x̄ the mean over the width

With the denominator held fixed, adding a direction v to x adds to the logits

    ℓ(v) = W_U (γ ⊙ v) · E[1 / rms(x)]      or, for LayerNorm, with v − v̄ and std

averaged over the positions of some text. The result is ℓ minus its mean over the vocabulary, which
the softmax ignores. This is only the direct path: later blocks, which may also read the direction,
are left out (nostalgebraist 2020, interpreting GPT: the logit lens).

γ and the type of norm are not looked up by name. They are inferred by replacing the last block's
output and observing the input of the output embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from ontogeny.activations.sites import Site
from ontogeny.analyses.contexts.settings import Contexts
from ontogeny.corpus.build import Tokens
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.files import InputError
from ontogeny.progress import bar
from ontogeny.settings import Settings
from ontogeny.snapshots import sites

LARGE = 1e3  # size of the probes, for which the norm's ε is negligible
TOLERANCE = 1e-3
TEXT_BLOCKS = 8  # blocks of held-out text over which the final norm's denominator is averaged
PIECE_ENTRIES = 1 << 25  # features × tokens of the vocabulary in memory at a time


@dataclass(frozen=True)
class Unembedding:
    """The map from directions to logits, on the model's device.

    matrix : (V, d) γ ⊙ W_U · E[1 / rms(x)], minus its mean over the vocabulary. centred : whether
    the norm subtracts a direction's mean over the width.
    """

    matrix: torch.Tensor
    centred: bool

    def logits(self, directions: torch.Tensor) -> torch.Tensor:
        """ℓ of directions (P, d) in the model's own units, (P, V)."""
        if self.centred:
            directions = directions - directions.mean(1, keepdim=True)
        return directions @ self.matrix.T

    def extremes(self, directions: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The k tokens that each direction promotes and suppresses most, the strongest first.

        Returns
        -------
        ids and ℓ, both (P, 2, k): promoted, then suppressed. They are on the CPU.
        """
        step = max(1, PIECE_ENTRIES // len(self.matrix))
        ids, values = [], []
        for start in range(0, len(directions), step):
            logits = self.logits(directions[start : start + step])
            up, down = logits.topk(k, 1), logits.topk(k, 1, largest=False)
            ids.append(torch.stack([up.indices, down.indices], 1).cpu())
            values.append(torch.stack([up.values, down.values], 1).cpu())
        return torch.cat(ids), torch.cat(values)


@dataclass(frozen=True)
class Norm:
    """gain γ and bias β, each (d,), and whether it subtracts the mean over the width."""

    gain: torch.Tensor
    bias: torch.Tensor
    centred: bool


def _before_head(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """The input of the output embedding for ids (B, T): (B, T, d)."""
    seen: list[torch.Tensor] = []
    handle = _head(model).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        cast(Any, model)(input_ids=ids, use_cache=False)
    finally:
        handle.remove()
    return seen[0].float()


@torch.no_grad()
def final_norm(model: nn.Module) -> Norm | None:
    """The norm after a model's last block; None if there is none.

    Raises
    ------
    InputError : it is neither an RMSNorm nor a LayerNorm.
    """
    d = sites.width(model)
    device = next(model.parameters()).device
    # With mean 0 and no zeros, so that both norms divide it by the same number.
    alternating = 1.0 - 2.0 * (torch.arange(d, device=device) % 2)
    alternating = alternating - alternating.mean()
    noise = torch.randn(d, generator=torch.Generator().manual_seed(0)).to(device)
    even = torch.ones_like(noise) / LARGE  # a LayerNorm leaves only its rounding error
    probes = torch.stack([alternating, even, noise, 0 * noise])[None] * LARGE
    ids = torch.zeros(probes.shape[:2], dtype=torch.long, device=device)
    with sites.replaced(model, len(sites.blocks(model)) - 1, "residual", probes):
        seen = _before_head(model, ids)
    if seen.shape == probes.shape:
        if torch.allclose(seen, probes, rtol=TOLERANCE, atol=0):
            return None
        bias = seen[0, 3]
        changes = seen[0] - bias
        gain = changes[0] * alternating.square().mean().sqrt() / alternating
        centred = bool(changes[1].norm() < 0.5 * gain.norm())
        expected = noise - noise.mean() if centred else noise
        expected = gain * expected / expected.square().mean().sqrt()
        if (changes[2] - expected).norm() <= TOLERANCE * expected.norm():
            return Norm(gain, bias, centred)
    raise InputError(
        f"{type(model).__name__}: the part between its last block and its output embedding is "
        "neither an RMSNorm nor a LayerNorm, so the logit lens is not defined; set "
        "contexts.lens_snapshots: 0"
    )


def _head(model: nn.Module) -> nn.Module:
    """The model's output embedding."""
    head = cast(Any, model).get_output_embeddings()
    if head is None or getattr(head, "weight", None) is None:
        raise InputError(
            f"{type(model).__name__}: has no output embedding, and so no logit lens; set "
            "contexts.lens_snapshots: 0"
        )
    return cast(nn.Module, head)


@torch.no_grad()
def inverse_spread(model: nn.Module, norm: Norm, ids: torch.Tensor) -> torch.Tensor:
    """E[1 / rms(x)], or E[1 / std(x)], over the positions of some text (B, T), with the norm's ε.

    It follows from the norm's output: N(x) − β = γ ⊙ x / rms(x).
    """
    last = len(sites.blocks(model)) - 1
    inverse = []
    for block in ids:
        x = sites.read(model, block[None], [(last, "residual")])[last, "residual"].float()
        x = norm.gain * (x - x.mean(2, keepdim=True) if norm.centred else x)
        normed = _before_head(model, block[None]) - norm.bias
        inverse.append((normed * x).sum(2) / x.square().sum(2))
    return torch.stack(inverse).mean()


def unembedding(model: nn.Module, vocabulary: int, ids: torch.Tensor) -> Unembedding:
    """The model's unembedding for the first `vocabulary` ids, without rows that are padding.

    A tokenizer may know more ids than the model has rows, for example an added padding token. No
    text contains these (snapshots/held_out.py), and nothing promotes them.

    Parameters
    ----------
    ids : (B, T) text, on the model's device, over which the norm's denominator is averaged.

    Raises
    ------
    InputError : as for `final_norm`.
    """
    norm = final_norm(model)
    weight = cast(torch.Tensor, _head(model).weight).detach().float()
    matrix = weight[:vocabulary] - weight[:vocabulary].mean(0)
    if norm is None:
        return Unembedding(matrix, False)
    return Unembedding(matrix * norm.gain * inverse_spread(model, norm, ids), norm.centred)


def of_features(
    settings: Settings,
    crosscoder: Crosscoder,
    living: np.ndarray,
    snapshots: Path,
    tokens: Tokens,
) -> dict[str, np.ndarray]:
    """The logit lens of living features (L,), as fields of their records (features/contexts.py).

    Empty if no lens is configured or no site has one: an MLP's input is not part of the residual
    stream.
    """
    section = settings.section(Contexts)
    places = [Site(*site) for site in crosscoder.about.outputs]
    able = [i for i, site in enumerate(places) if site.stream != "mlp_in"]
    if not able or not section.lens_snapshots or not len(living):
        return {}
    device = crosscoder.device
    count = min(section.lens_snapshots, len(able))
    spread = [able[i] for i in np.unique(np.linspace(0, len(able) - 1, count).round().astype(int))]
    strength = crosscoder.strength.cpu().numpy()[living]
    peak = np.array(able)[strength[:, able].argmax(1)]
    site = np.c_[np.tile(spread, (len(living), 1)), peak]  # (L, P) numbers of sites
    k = min(section.lens_tokens, tokens.vocabulary)
    first, last = tokens.splits["held_out"]
    text = tokens.take(np.arange(first, min(first + TEXT_BLOCKS, last))).astype(np.int64)
    ids = torch.from_numpy(text).to(device)
    token = np.zeros((*site.shape, 2, k), np.uint32)
    value = np.zeros(token.shape, np.float32)
    scales = crosscoder.divisors.cpu().numpy()
    wanted = sorted(set(site.ravel()), key=lambda i: (places[i].snapshot, i))
    loaded, head = -1, None
    with bar("contexts: logit lens", len(wanted), "sites") as progress:
        for i in wanted:
            if places[i].snapshot != loaded:
                loaded = places[i].snapshot
                folder, remote = snapshots / f"step{loaded}", settings.snapshots.remote_code
                model = sites.load_model(folder, device, torch.float32, remote)
                head = unembedding(model, tokens.vocabulary, ids)
                del model
            assert head is not None
            features, column = np.nonzero(site == i)
            which, own = np.unique(features, return_inverse=True)
            own_decoders = crosscoder.decoders_at(i, living[which])
            best, logits = head.extremes(own_decoders / float(scales[i]), k)
            token[features, column] = best.numpy()[own]
            value[features, column] = logits.numpy()[own]
            progress.update()
    largest = np.maximum(strength.max(1, keepdims=True), 1e-30)
    return {
        "lens_site": site,
        "lens_strength": np.take_along_axis(strength, site, 1) / largest,
        "lens_token": token,
        "lens_value": value,
    }
