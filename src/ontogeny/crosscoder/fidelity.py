"""How well a crosscoder describes each site, on held-out text (METHOD.md 3).

    EV^θ = 1 − Σ‖ã − â‖² / Σ‖ã − mean ã‖²
    loss recovered = 1 − (CE with â spliced in − CE) / (CE with the site mean-ablated − CE)

and beside EV what PCA with as many coefficients reaches.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cross_entropy

from ontogeny import devices
from ontogeny.activations.store import Site, Stacks
from ontogeny.basis.principal import Projected
from ontogeny.corpus.build import Tokens
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.files import InputError, write_table
from ontogeny.progress import bar
from ontogeny.settings import Settings
from ontogeny.snapshots import sites as model_sites

PIECE_ROWS = 2048
PCA_ROWS = 8192


def _stacks(crosscoder: Crosscoder, activations: str | Path) -> tuple[Stacks, Stacks]:
    """Readers of the crosscoder's inputs and outputs."""
    inputs = Stacks(activations, [Site(*s) for s in crosscoder.about.inputs])
    outputs = Stacks(activations, [Site(*s) for s in crosscoder.about.outputs])
    if inputs.tokens != crosscoder.about.tokens:
        raise InputError(
            f"{activations}: activations of other tokens than the crosscoder was trained on; "
            "train it again"
        )
    return inputs, outputs


def explained(
    crosscoder: Crosscoder, activations: str | Path, floor: float, basis: Path | None = None
) -> tuple[pd.DataFrame, pd.DataFrame, torch.Tensor]:
    """Explained variance, L0 and density on the held-out rows.

    Parameters
    ----------
    basis : the crosscoder's basis file, whose rows then serve for PCA; None reads training rows.

    Returns
    -------
    by site : explained_variance, pca_explained_variance (PCA of the stacked training rows with
        as many coefficients as the mean L0), l0, l0_present (of features whose normalised
        strength at the site is at least `floor`).
    by feature : density (share of held-out tokens on which it is active at any site), dead.
    f : (rows, F) or (rows, F, N) feature activations, on the CPU.
    """
    inputs, outputs = _stacks(crosscoder, activations)
    total = torch.zeros(len(outputs.sites), outputs.width, dtype=torch.float64)
    for _, piece in outputs.pieces(PIECE_ROWS, "held_out"):
        total += torch.from_numpy(piece).double().sum(0)
    mean = (total / outputs.held_out_rows).float()
    strength = crosscoder.strength
    present = (strength >= floor * strength.amax(1, keepdim=True)).float()  # (F, N)
    sites = len(outputs.sites)
    lost, there, active, active_present = (torch.zeros(sites) for _ in range(4))
    kept = []
    both = zip(
        inputs.pieces(PIECE_ROWS, "held_out"), outputs.pieces(PIECE_ROWS, "held_out"), strict=True
    )
    for (_, x), (_, y) in both:
        a, target = torch.from_numpy(x), torch.from_numpy(y)
        f = crosscoder.encode(a)
        kept.append(f)
        lost += (target - crosscoder.decode(f)).square().sum((0, 2))
        there += (target - mean).square().sum((0, 2))
        on = (f > 0).float()
        active += on.sum((0, 1)) if on.ndim == 3 else on.sum()
        active_present += (on * present).sum((0, 1)) if on.ndim == 3 else (on @ present).sum(0)
    f = torch.cat(kept)
    rows = outputs.held_out_rows
    l0 = (active / rows).numpy()
    by_site = pd.DataFrame(
        {
            "explained_variance": (1 - lost / there).numpy(),
            "pca_explained_variance": pca(outputs, mean, round(float(l0.mean())), basis),
            "l0": l0,
            "l0_present": (active_present / rows).numpy(),
        }
    )
    anywhere = (f > 0) if f.ndim == 2 else (f > 0).any(2)
    by_feature = pd.DataFrame(
        {"density": anywhere.float().mean(0).numpy(), "dead": crosscoder.dead.numpy()}
    )
    return by_site, by_feature, f


def pca(outputs: Stacks, held_out_mean: torch.Tensor, count: int, basis: Path | None) -> np.ndarray:
    """Explained variance by site, (N,), of PCA with `count` components.

    Fitted to the first training rows (they are shuffled), as they are or as the basis file has
    them: its subspace holds the leading components. Scored on held-out rows.
    """
    count = max(1, count)
    if basis is None:
        x = torch.from_numpy(outputs.read(0, min(PCA_ROWS, outputs.rows))).flatten(1)
    else:
        file = Projected(basis)
        x = torch.from_numpy(file.read(0, min(PCA_ROWS, file.rows)) @ file.basis.T + file.mean)
    centre = x.mean(0)
    torch.manual_seed(0)
    _, _, V = torch.svd_lowrank(x - centre, q=min(count + 8, *x.shape), niter=4)
    V = V[:, :count]
    shape = (len(outputs.sites), outputs.width)
    lost, there = torch.zeros(shape[0]), torch.zeros(shape[0])
    for _, piece in outputs.pieces(PIECE_ROWS, "held_out"):
        y = torch.from_numpy(piece).flatten(1) - centre
        lost += (y - y @ V @ V.T).unflatten(1, shape).square().sum((0, 2))
        there += (torch.from_numpy(piece) - held_out_mean).square().sum((0, 2))
    return (1 - lost / there).numpy()


@torch.no_grad()
def spliced_losses(
    crosscoder: Crosscoder,
    f: torch.Tensor,
    settings: Settings,
    activations: str | Path,
    snapshots: str | Path,
    tokens: str | Path,
    device: torch.device,
) -> pd.DataFrame:
    """Cross-entropy of every output site's model as it is, with â, and with the mean in its place.

    Parameters
    ----------
    f : feature activations of all held-out rows, in text order.

    Returns
    -------
    One row a site: loss, loss_spliced, loss_ablated, loss_recovered. Positions whose activations
    are not kept (end of text) stay as they are in all three.
    """
    data = Tokens(tokens)
    _, outputs = _stacks(crosscoder, activations)
    context = data.blocks.shape[1]
    first = data.splits["held_out"][0]
    position = outputs.position("held_out").astype(np.int64)
    count = min(settings.analysis.spliced_blocks, data.splits["held_out"][1] - first)
    rows = int((position[:, 0] < first + count).sum())
    flat = torch.from_numpy((position[:rows, 0] - first) * context + position[:rows, 1])
    ids = torch.from_numpy(data.split("held_out")[:count].astype(np.int64)).to(device)
    model = None
    loaded = -1
    results = []
    with bar("fidelity: splice", len(outputs.sites), "sites") as progress:
        for n, site in enumerate(outputs.sites):
            if site.snapshot != loaded:
                folder = Path(snapshots) / f"step{site.snapshot}"
                model = model_sites.load_model(folder, device, torch.float32)
                loaded = site.snapshot
            one = Stacks(activations, [site])
            own = torch.from_numpy(one.read(0, rows, "held_out"))[:, 0]
            each = f[:rows] if f.ndim == 2 else f[:rows, :, n]
            rebuilt = (each @ crosscoder.W_dec[:, n] + crosscoder.b_dec[n]) / one.scales[0]
            mean = (own.mean(0) / one.scales[0]).expand_as(rebuilt)
            values = {"loss": None, "loss_spliced": rebuilt, "loss_ablated": mean}
            row = {}
            for name, value in values.items():
                total = torch.zeros(())
                for start in range(0, count, 16):
                    batch = ids[start : start + 16]
                    if value is None:
                        logits = model(input_ids=batch).logits  # type: ignore[misc]
                    else:
                        key = (site.layer, site.stream)
                        base = model_sites.read(model, batch, [key])[key]  # type: ignore[arg-type]
                        base = base.flatten(0, 1).clone()
                        inside = (flat >= start * context) & (flat < (start + len(batch)) * context)
                        base[flat[inside] - start * context] = value[inside].to(base)
                        base = base.view(len(batch), context, -1)
                        with model_sites.replaced(model, *key, base):  # type: ignore[arg-type]
                            logits = model(input_ids=batch).logits  # type: ignore[misc]
                    loss = cross_entropy(
                        logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"
                    )
                    total += loss.cpu()
                row[name] = total.item() / (count * (context - 1))
            row["loss_recovered"] = 1 - (row["loss_spliced"] - row["loss"]) / (
                row["loss_ablated"] - row["loss"]
            )
            results.append(row)
            progress.update()
    return pd.DataFrame(results)


def measure(
    settings: Settings,
    crosscoder: str | Path,
    activations: str | Path,
    snapshots: str | Path,
    tokens: str | Path,
    sites_table: str | Path,
    features_table: str | Path,
    basis: Path | None = None,
) -> None:
    """Write a crosscoder's fidelity by site and its features' densities.

    Parameters
    ----------
    crosscoder : folder. activations, snapshots : folders of the experiment. tokens : tokens.h5.
    sites_table : CSV; snapshot_index, step, layer, stream, then the measures.
    features_table : Parquet; feature, density, dead.
    """
    device = devices.choose(settings.device)
    trained = Crosscoder.load(crosscoder)
    by_site, by_feature, f = explained(
        trained, activations, settings.analysis.direction_floor, basis
    )
    losses = spliced_losses(trained, f, settings, activations, snapshots, tokens, device)
    steps = settings.pretrain.snapshots
    where = pd.DataFrame(
        {
            "snapshot_index": [steps.index(s[0]) + 1 for s in trained.about.outputs],
            "step": [s[0] for s in trained.about.outputs],
            "layer": [s[1] for s in trained.about.outputs],
            "stream": [s[2] for s in trained.about.outputs],
        }
    )
    by_feature.insert(0, "feature", range(len(by_feature)))
    write_table(features_table, by_feature)
    write_table(sites_table, pd.concat([where, by_site, losses], axis=1))
