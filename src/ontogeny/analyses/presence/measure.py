"""Does the norm show presence? Latent scaling and linear probes compared with decoder norms.

A crosscoder may set a decoder norm to zero although the concept is present, because its penalty
makes that cheap or because other features replace it. Two tests do not depend on the norm: latent
scaling (scaling.py) and linear probes of the activations (probes.py). verdicts.py reports where
they disagree with the norm.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from ontogeny import devices
from ontogeny.activations.rows import HeldOut
from ontogeny.activations.sites import Site
from ontogeny.analyses.presence.probes import Probes, control_task, stratified
from ontogeny.analyses.presence.scaling import Bags, Regressor, fold_order
from ontogeny.analyses.presence.settings import Presence
from ontogeny.analyses.presence.verdicts import COLUMNS, Resampled, correlations, find_verdicts
from ontogeny.corpus.build import Tokens
from ontogeny.crosscoder.model import EVERY, Crosscoder
from ontogeny.features.held_out import explained, held_out, own_activations
from ontogeny.features.histories import normalise, snapshot_numbers
from ontogeny.files import InputError, read_table, write_table
from ontogeny.progress import bar
from ontogeny.settings import Settings

FOLDS = 8  # folds of blocks; the first half of them is the first half of the probes
FOUNDED = 0.5  # share of the decoder's norm that scaling has to find at the peak itself


def run_tests(
    crosscoder: Crosscoder,
    f: sparse.csr_array,
    position: np.ndarray,
    tokens: np.ndarray,
    read: Callable[[int], np.ndarray],
    about: pd.DataFrame,
    section: Presence,
    seed: int,
) -> pd.DataFrame:
    """Both tests for every feature that is active often enough; one row per feature and site.

    Parameters
    ----------
    f : (N, F) activations at the site where each feature's decoder is largest. position : (N, 2)
        block and offset of each row. tokens : (N,) ids.
    read : function that returns a site's normalised activations by its index, (N, d).
    about : one row per feature; alive, matched, density, initialisation, transient.

    Returns
    -------
    The columns of presence.parquet, but with site, an index, for snapshot_index and step.

    Raises
    ------
    InputError : no feature is active often enough.
    """
    device = crosscoder.device
    rng = np.random.default_rng(seed)
    order, bounds = fold_order(position[:, 0], FOLDS, rng)
    f, tokens = sparse.csr_array(f[order]), tokens[order]
    middle = int(bounds[len(bounds) // 2])
    active = np.stack([np.asarray((half > 0).sum(0)).ravel() for half in (f[:middle], f[middle:])])
    chosen = np.flatnonzero(about["alive"].to_numpy() & (active >= section.active).all(0))
    if not len(chosen):
        raise InputError(
            f"presence.active: no living feature is active at {section.active} positions in both "
            "halves of the held-out text; lower it, or train the crosscoder for longer"
        )
    about = about.iloc[chosen]

    regressor = Regressor(f, bounds, device)
    twin = Regressor(f[rng.permutation(len(order))], bounds, device)
    one_gate = crosscoder.about.gate == "feature"
    overlaps = (regressor.squares, twin.overlap(f)) if one_gate else None
    strength = crosscoder.strength.cpu().numpy()
    highest = strength.argmax(1)
    peak = torch.empty(len(highest), crosscoder.about.width, device=device)
    for n in np.unique(highest):
        of_site = np.flatnonzero(highest == n)
        peak[of_site] = crosscoder.decoders_at(int(n), of_site)

    strata = 2 * about["initialisation"].to_numpy() + about["transient"].to_numpy()
    drawn = stratified(strata, about["density"].to_numpy(), section.features, seed)
    of_drawn = sparse.csr_array(f[:, chosen[drawn]])
    labels = sparse.csr_array(of_drawn > 0)
    shuffled = sparse.csr_array(labels[rng.permutation(len(order))])
    tasks = [labels, control_task(labels, tokens, rng), shuffled]
    probes = Probes(sparse.csr_array(sparse.hstack(tasks)), middle, seed, device)

    shape = (len(chosen), len(crosscoder.about.outputs))
    scalings = {name: np.empty(shape) for name in ("beta", "w", "beta_null", "w_null")}
    probed = {name: np.full(shape, np.nan) for name in ("probe", "control", "shuffled")}
    with bar("presence", shape[1], "snapshots") as progress:
        for n in range(shape[1]):
            a = torch.from_numpy(read(n)[order]).to(device)
            own = own_activations(crosscoder, f, n)
            W = crosscoder.decoders_at(n, EVERY).contiguous()
            error = a - Bags(own, device).times(W) - crosscoder.b_dec[n]
            error -= crosscoder.table.at(n, tokens)
            real, chance = overlaps or (regressor.overlap(own), twin.overlap(own))
            values = (
                *regressor.scalings(error, real, W, peak),
                *twin.scalings(error, chance, W, peak),
            )
            for scaling, value in zip(scalings.values(), values, strict=True):
                scaling[:, n] = value.cpu().numpy()[chosen]
            for area, part in zip(probed.values(), np.split(probes.score(a), 3), strict=True):
                area[drawn, n] = part
            progress.update()

    by_token = np.full(len(chosen), np.nan)
    groups = np.unique(tokens, return_inverse=True)[1]
    by_token[drawn] = explained(sparse.csr_array(of_drawn.astype(np.float64)), groups)
    at = (np.arange(len(chosen)), highest[chosen])
    beta, w = scalings["beta"][at], scalings["w"][at]
    founded = (beta >= FOUNDED) & (w >= FOUNDED * strength[chosen].max(1))
    beta, w = (np.where(founded, at_peak, np.nan)[:, None] for at_peak in (beta, w))
    squares = {
        "peak": np.arange(shape[1]) == at[1][:, None],
        "normalised_strength": normalise(strength[chosen]),
        "beta": scalings["beta"],
        "scaling": scalings["beta"] / beta,
        "free": scalings["w"] / w,
        "scaling_permuted": scalings["beta_null"] / beta,
        "free_permuted": scalings["w_null"] / w,
        "current_token": np.repeat(by_token[:, None], shape[1], 1),
        **probed,
    }
    return pd.DataFrame(
        {
            "feature": np.repeat(chosen, shape[1]),
            "site": np.tile(np.arange(shape[1]), shape[0]),
            "matched": np.repeat(about["matched"].to_numpy(), shape[1]),
            "active": np.repeat(active.sum(0)[chosen], shape[1]),
            **{name: values.ravel() for name, values in squares.items()},
        }
    )


def measure(
    settings: Settings,
    crosscoder: Path,
    activations: Path,
    tokens: Path,
    features: Path,
    tests: Path,
    verdicts: Path,
) -> None:
    """Write the presence tests of a crosscoder's features.

    Parameters
    ----------
    crosscoder : folder of the seed that the features table describes. activations : the
        experiment's folder. tokens : tokens.h5. features : the features table.
    tests : Parquet, one row per feature and snapshot, for living features that are active at
        presence.active positions or more in either half. verdicts : CSV with the results of
        `find_verdicts` and `correlations`. Their columns are in the declaration.

    Raises
    ------
    InputError : no feature is active often enough.
    """
    trained = Crosscoder.load(crosscoder, devices.choose(settings.device))
    sites = [Site(*site) for site in trained.about.outputs]
    f, position = held_out(trained, activations)
    blocks, row = np.unique(position[:, 0], return_inverse=True)
    ids = Tokens(tokens).take(blocks)[row, position[:, 1]].astype(np.int64)

    scales = trained.scales_out.cpu().numpy()

    def read(n: int) -> np.ndarray:
        own = HeldOut(activations, [sites[n]], scales[n : n + 1])
        return own.read(0, len(position))[:, 0]

    section, analysis = settings.section(Presence), settings.analysis
    about = read_table(features)
    table = run_tests(trained, f, position, ids, read, about, section, analysis.seed)
    steps = np.array([site.snapshot for site in sites])
    index = snapshot_numbers(settings, steps)
    site = table.pop("site").to_numpy()
    table.insert(1, "snapshot_index", index[site])
    table.insert(2, "step", steps[site])
    resampled = Resampled(table["feature"].nunique(), analysis.bootstrap, analysis.seed)
    parts = [find_verdicts(table, section, resampled), correlations(table, resampled)]
    write_table(verdicts, pd.concat(parts).reindex(columns=COLUMNS))
    write_table(tests, table)
