"""How well a crosscoder describes each site, on held-out text (method.md 3).

    EV^θ = 1 − Σ‖ã − â‖² / Σ‖ã − mean ã‖²     (NaN, an empty cell, where a site is constant)
    loss recovered = 1 − (CE with â spliced in − CE) / (CE with the site mean-ablated − CE)

The tables also give EV for three baselines: PCA with as many coefficients, the token table, and the
token pair table. A crosscoder with a token table reconstructs T[x] plus the residual, and so does
its PCA baseline.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ontogeny import devices
from ontogeny.activations import feed
from ontogeny.activations.rows import HeldOut, RowPaths, pieces
from ontogeny.activations.sites import Site
from ontogeny.activations.subspace import Subspace
from ontogeny.activations.table import Table, of_sites
from ontogeny.corpus.build import Tokens
from ontogeny.crosscoder.model import EVERY, Crosscoder
from ontogeny.crosscoder.pairs import Candidates
from ontogeny.crosscoder.sizes import BATCH_TOKENS, PCA_ROWS, PIECE_ENTRIES, PIECE_ROWS
from ontogeny.features.held_out import inputs_of
from ontogeny.files import write_table
from ontogeny.progress import bar
from ontogeny.settings import Settings
from ontogeny.snapshots import sites as model_sites


def _held_out(crosscoder: Crosscoder, activations: str | Path) -> tuple[HeldOut, HeldOut]:
    """Held-out rows of the crosscoder's inputs and outputs."""
    inputs, scales = inputs_of(crosscoder, activations), crosscoder.scales_out.cpu().numpy()
    return inputs, HeldOut(activations, _outputs(crosscoder), scales)


def _outputs(crosscoder: Crosscoder) -> list[Site]:
    return [Site(*site) for site in crosscoder.about.outputs]


def _mean(rows: HeldOut) -> Tensor:
    """Mean of the rows by site, (N, D)."""
    total = torch.zeros(rows.shape, dtype=torch.float64)
    for _, piece in pieces(rows, PIECE_ROWS):
        total += torch.from_numpy(piece).double().sum(0)
    return (total / rows.rows).float()


def explained(
    crosscoder: Crosscoder, activations: str | Path, floor: float, keep_rows: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame, list[Tensor]]:
    """Explained variance, L0 and density on the held-out rows.

    Parameters
    ----------
    keep_rows : number of rows whose feature activations are returned.

    Returns
    -------
    by site : explained_variance, l0, l0_present (counts only features whose normalised strength at
        the site is at least `floor`).
    by feature : density (share of held-out tokens on which it is active at any site), dead (silent
        at the end of training, or on all held-out rows).
    f : feature activations, sparse (keep_rows, F) on the CPU: one tensor, or one per site if each
        site has its own gate.
    """
    inputs, outputs = _held_out(crosscoder, activations)
    device = crosscoder.device
    sites, rows = len(outputs.sites), outputs.rows
    mean = _mean(outputs).to(device)
    strength = crosscoder.strength
    present = (strength >= floor * strength.amax(1, keepdim=True)).float()  # (F, N)
    F, gates = crosscoder.about.features, sites if crosscoder.about.gate == "snapshot" else 1
    lost, there, active, active_present = (torch.zeros(sites, device=device) for _ in range(4))
    density = torch.zeros(F, device=device)
    kept: list[list[Tensor]] = [[] for _ in range(gates)]
    step = max(1, min(PIECE_ROWS, PIECE_ENTRIES // (F * gates)))
    both = zip(pieces(inputs, step), pieces(outputs, step), strict=True)
    for (start, x), (_, y) in both:
        a, target = torch.from_numpy(x).to(device), torch.from_numpy(y).to(device)
        ids = inputs.tokens_at(start, start + len(x))[:, 1]
        peak = crosscoder.encode_peak(a, ids).flatten()
        position = peak.nonzero()[:, 0]
        chosen = Candidates.at(position, len(x), F)
        f = crosscoder.at_sites(peak[position], chosen.feature)  # (P, gates)
        first = min(len(x), keep_rows - start)  # number of rows to keep
        for n in range(gates) if first > 0 else ():
            open_here = (f[:, n] > 0) & (chosen.token < first)
            where = torch.stack([chosen.token[open_here], chosen.feature[open_here]])
            each = torch.sparse_coo_tensor(
                where, f[open_here, n], (first, F), is_coalesced=True, check_invariants=False
            )
            kept[n].append(each.cpu())
        rebuilt = crosscoder.decode_pairs(chosen, f) + crosscoder.b_dec + crosscoder.table(ids)
        lost += (target - rebuilt).square().sum((0, 2))
        there += (target - mean).square().sum((0, 2))
        on = (f > 0).float()
        active += on.sum(0)
        active_present += (on * present[chosen.feature]).sum(0)
        density += torch.bincount(chosen.feature, minlength=F)
    by_site = pd.DataFrame(
        {
            "explained_variance": (1 - lost / there).cpu().numpy(),
            "l0": (active / rows).cpu().numpy(),
            "l0_present": (active_present / rows).cpu().numpy(),
        }
    )
    dead = crosscoder.dead | (density == 0)
    by_feature = pd.DataFrame(
        {"density": (density / rows).cpu().numpy(), "dead": dead.cpu().numpy()}
    )
    return by_site, by_feature, [torch.cat(parts) for parts in kept if parts]


def pca(settings: Settings, crosscoder: Crosscoder, paths: RowPaths, count: int) -> np.ndarray:
    """Explained variance of the held-out rows by site, (N,), of PCA with `count` components.

    The components are the leading directions of the basis file if there is one; otherwise PCA is
    fitted to the first training rows, which are shuffled. With a token table, PCA is fitted to the
    rows minus the table.
    """
    device = crosscoder.device
    _, outputs = _held_out(crosscoder, paths.activations)
    if paths.basis is not None:
        subspace = Subspace(paths.basis)
        centre = torch.from_numpy(subspace.mean)
        V = torch.from_numpy(subspace.leading(min(count, subspace.dimensions)))
    else:
        # One site at a time, so that with streamed rows only one snapshot is on the device.
        parts = []
        for site, scale in zip(outputs.sites, outputs.scales, strict=True):
            table = None
            if crosscoder.about.token_table:
                assert paths.tables is not None, "a token table needs the token tables"
                table = Table(paths.tables, [site], np.array([scale]))
            rows = feed.site_rows(settings, [site], paths, device, table)
            parts.append(torch.from_numpy(rows.read(0, min(PCA_ROWS, rows.rows)))[:, 0])
        x = torch.cat(parts, 1)
        centre = x.mean(0)
        torch.manual_seed(0)
        V = torch.svd_lowrank(x - centre, q=min(count + 8, *x.shape), niter=4)[2][:, :count]
    centre, V, mean = centre.to(device), V.to(device), _mean(outputs).to(device)
    lost, there = (torch.zeros(len(outputs.sites), device=device) for _ in range(2))
    for start, piece in pieces(outputs, PIECE_ROWS):
        x = torch.from_numpy(piece).to(device)
        ids = outputs.tokens_at(start, start + len(x))[:, 1]
        y = (x - crosscoder.table(ids)).flatten(1) - centre
        lost += (y - y @ V @ V.T).unflatten(1, mean.shape).square().sum((0, 2))
        there += (x - mean).square().sum((0, 2))
    return (1 - lost / there).cpu().numpy()


def spliced_rows(settings: Settings, data: Tokens, outputs: HeldOut) -> tuple[int, int]:
    """The number of held-out blocks that are spliced, and the number of held-out rows in them."""
    first, last = data.splits["held_out"]
    count = min(settings.analysis.spliced_blocks, last - first)
    return count, int((outputs.position[:, 0] < first + count).sum())


@torch.no_grad()
def spliced_losses(
    crosscoder: Crosscoder,
    f: list[Tensor],
    settings: Settings,
    activations: str | Path,
    snapshots: str | Path,
    tokens: str | Path,
    device: torch.device,
) -> pd.DataFrame:
    """Cross-entropy of each output site's model: unchanged, with â, and with the mean in its place.

    Parameters
    ----------
    f : feature activations on the rows of the spliced blocks, in text order, from `explained`.

    Returns
    -------
    One row per site, as `recovered` makes it. Positions whose activations are not stored (end of
    text) are unchanged in all three.
    """
    data = Tokens(tokens)
    _, outputs = _held_out(crosscoder, activations)
    context = data.context
    first = data.splits["held_out"][0]
    count, rows = spliced_rows(settings, data, outputs)
    position = outputs.position[:rows].astype(np.int64)
    flat = torch.from_numpy((position[:, 0] - first) * context + position[:, 1]).to(device)
    blocks = data.take(np.arange(first, first + count)).astype(np.int64)
    ids = torch.from_numpy(blocks).to(device)
    step = max(1, BATCH_TOKENS // context)
    model: Any = None
    loaded = -1
    results = []

    def by_block(batch: Tensor) -> np.ndarray:
        """Cross-entropy of the model in its present state, summed over each block."""
        logits = model(input_ids=batch).logits[:, :-1]
        losses = cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none")
        return losses.double().sum(1).cpu().numpy()

    with bar("fidelity: splice", len(outputs.sites), "sites") as progress:
        for n, site in enumerate(outputs.sites):
            if site.snapshot != loaded:
                folder = Path(snapshots) / f"step{site.snapshot}"
                remote = settings.snapshots.remote_code
                model = model_sites.load_model(folder, device, torch.float32, remote)
                loaded = site.snapshot
            key = (site.layer, site.stream)
            own_rows = HeldOut(activations, [site], outputs.scales[n : n + 1])
            scale = float(own_rows.scales[0])
            own = torch.from_numpy(own_rows.read(0, rows))[:, 0]
            if not scale:  # the mean of a constant site reconstructs it fully
                raw = HeldOut(activations, [site], np.ones(1, np.float32)).read(0, rows)
                own, scale = torch.from_numpy(raw)[:, 0], 1.0
            each = f[0] if len(f) == 1 else f[n]
            W, b = crosscoder.decoders_at(n, EVERY).cpu(), crosscoder.b_dec[n].cpu()
            rebuilt = (torch.sparse.mm(each, W) + b).to(device)
            rebuilt = (rebuilt + crosscoder.table.at(n, outputs.tokens_at(0, rows)[:, 1])) / scale
            mean = (own.mean(0) / scale).to(device).expand_as(rebuilt)
            if not outputs.scales[n]:
                rebuilt = mean
            losses: list[list[np.ndarray]] = [[], [], []]
            for start in range(0, count, step):
                batch = ids[start : start + step]
                losses[0].append(by_block(batch))
                base = model_sites.read(model, batch, [key])[key]
                inside = (flat >= start * context) & (flat < (start + len(batch)) * context)
                for value, found in ((rebuilt, losses[1]), (mean, losses[2])):
                    changed = base.flatten(0, 1).clone()
                    changed[flat[inside] - start * context] = value[inside].to(changed)
                    changed = changed.view(len(batch), context, -1)
                    with model_sites.continued(model, *key, changed):
                        found.append(by_block(batch))
            loss, spliced, ablated = (np.concatenate(found) for found in losses)
            results.append(recovered(loss, spliced, ablated, context - 1, settings))
            progress.update()
    return pd.DataFrame(results)


def recovered(
    loss: np.ndarray, spliced: np.ndarray, ablated: np.ndarray, tokens: int, settings: Settings
) -> dict[str, float]:
    """Losses and loss recovered of one site, with a bootstrap over blocks.

    Parameters
    ----------
    loss, spliced, ablated : (blocks,) cross-entropy, summed over the `tokens` tokens of a block,
        of the unchanged model, with â, and with the mean.

    Returns
    -------
    loss, loss_spliced, loss_ablated : nats per token. loss_recovered, with its 2.5% and 97.5%
    quantiles as _low and _high.
    """
    blocks, analysis = len(loss), settings.analysis
    rng = np.random.default_rng(analysis.seed)
    times = rng.multinomial(blocks, np.full(blocks, 1 / blocks), analysis.bootstrap)
    lost, damage = spliced - loss, ablated - loss
    with np.errstate(divide="ignore", invalid="ignore"):  # ablation may have no effect
        low, high = np.quantile(1 - (times @ lost) / (times @ damage), [0.025, 0.975])
        whole = 1 - lost.sum() / damage.sum()
    means = [float(each.mean() / tokens) for each in (loss, spliced, ablated)]
    return {
        **dict(zip(("loss", "loss_spliced", "loss_ablated"), means, strict=True)),
        "loss_recovered": float(whole),
        "loss_recovered_low": float(low),
        "loss_recovered_high": float(high),
    }


def measure(
    settings: Settings,
    crosscoder: str | Path,
    paths: RowPaths,
    sites_table: str | Path,
    features_table: str | Path,
) -> None:
    """Write a crosscoder's fidelity by site and its features' densities.

    Parameters
    ----------
    crosscoder : folder. paths : of its rows, including snapshots and tokens.
    sites_table : CSV with snapshot_index, step, layer, stream, then the measures.
    features_table : Parquet with feature, density, dead.
    """
    device = devices.choose(settings.device)
    trained = Crosscoder.load(crosscoder, device)
    assert paths.snapshots is not None, "fidelity needs --snapshots"
    assert paths.tokens is not None, "fidelity needs --tokens"
    assert paths.tables is not None, "fidelity needs the token tables"
    activations, tokens = paths.activations, paths.tokens
    _, outputs = _held_out(trained, activations)
    _, rows = spliced_rows(settings, Tokens(tokens), outputs)
    floor = settings.analysis.direction_floor
    by_site, by_feature, f = explained(trained, activations, floor, rows)
    count = max(1, round(float(by_site["l0"].mean())))
    by_site.insert(1, "pca_explained_variance", pca(settings, trained, paths, count))
    by_token, by_pair = (
        np.array(list(of_sites(paths.tables, outputs.sites, name)))
        for name in ("explained", "explained_by_pairs")
    )
    beyond = 1 - (1 - by_site["explained_variance"]) / (1 - by_token)
    by_site.insert(1, "explained_variance_beyond", beyond)
    by_site.insert(3, "token_explained_variance", by_token)
    by_site.insert(4, "pair_explained_variance", by_pair)
    losses = spliced_losses(trained, f, settings, activations, paths.snapshots, tokens, device)
    where = pd.DataFrame(
        {
            "snapshot_index": [settings.snapshots.number(site.snapshot) for site in outputs.sites],
            "step": [site.snapshot for site in outputs.sites],
            "layer": [site.layer for site in outputs.sites],
            "stream": [site.stream for site in outputs.sites],
        }
    )
    by_feature.insert(0, "feature", range(len(by_feature)))
    write_table(features_table, by_feature)
    write_table(sites_table, pd.concat([where, by_site, losses], axis=1))
