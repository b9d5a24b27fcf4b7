"""Baselines of stability: how many features can be matched without training a dictionary.

Two seeds share many features that can be found without a dictionary: the mean activation of a
token, and any direction that rows of activations share (docs/method.md 8). We therefore also count
the features that match a token's mean, and those that match one of equally many random held-out
rows, and report the share that another seed matches among features beyond token means.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from ontogeny.activations.rows import HeldOut
from ontogeny.activations.sites import Site, folder_name
from ontogeny.activations.table import of_sites, open_table
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.features.matching import assign
from ontogeny.features.sizes import BASELINE_FEATURES, BASELINE_TOKENS
from ontogeny.files import read_table, write_table
from ontogeny.settings import Settings


def unit(stacked: np.ndarray) -> np.ndarray:
    """(M, N·D) rows of unit length from (M, N, D)."""
    flat = stacked.reshape(len(stacked), -1)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-30)


def token_means(
    folder: Path, sites: list[Site], scales: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the most frequent tokens, (M,), and their means minus the overall mean, (M, N, D).

    Parameters
    ----------
    folder : of the token tables. scales : (N,) factors of the sites, by which means are multiplied.
    """
    first = folder / f"{folder_name(sites[0].layer, sites[0].stream)}.h5"
    with open_table(first) as file:  # all have the same tokens
        token = file["token"][:]
        often = np.sort(np.argsort(-file["count"][:], kind="stable")[:BASELINE_TOKENS])
    means = [
        (table[often] - table[-1]) * scale
        for table, scale in zip(of_sites(folder, sites, "table"), scales, strict=True)
    ]
    return token[often], np.stack(means, 1)


def random_rows(crosscoder: Crosscoder, activations: Path, count: int, seed: int) -> np.ndarray:
    """(count, N, D) random held-out rows as the dictionary sees them, minus their mean."""
    sites = [Site(*site) for site in crosscoder.about.outputs]
    rows = HeldOut(activations, sites, crosscoder.scales_out.cpu().numpy())
    chosen = np.sort(np.random.default_rng(seed).choice(rows.rows, min(count, rows.rows), False))
    drawn = np.concatenate([rows.read(row, row + 1) for row in chosen])
    table = crosscoder.table(rows.token[chosen, 1])
    drawn -= table if isinstance(table, float) else table.cpu().numpy()
    return np.asarray(drawn - drawn.mean(0))


def match_without_training(
    crosscoder: Crosscoder, features: np.ndarray, activations: Path, token_tables: Path, seed: int
) -> pd.DataFrame:
    """How well each feature matches a token's mean and a random row; `measure` has the columns.

    Parameters
    ----------
    features : (F',) numbers. activations, token_tables : folders. seed : for drawing the rows.
    """
    sites = [Site(*site) for site in crosscoder.about.outputs]
    decoders = unit(crosscoder.decoders(features).numpy())
    token, means = token_means(token_tables, sites, crosscoder.scales_out.numpy())
    cosine = decoders @ unit(means).T
    drawn = random_rows(crosscoder, activations, len(features), seed)
    columns = {
        "feature": features,
        "token": token[cosine.argmax(1)],
        "token_cosine": cosine.max(1),
        "token_matched_cosine": assign(cosine)[1],
        "row_matched_cosine": assign(decoders @ unit(drawn).T)[1],
    }
    return pd.DataFrame(columns)


def measure(
    settings: Settings,
    crosscoder: Path,
    activations: Path,
    token_tables: Path,
    features: Path,
    baselines: Path,
) -> None:
    """Write how well living features match a token's mean and a random row.

    With more than BASELINE_FEATURES, a random sample of that size is used: the cost is cubic.

    Parameters
    ----------
    crosscoder : folder of the seed that the features table describes. activations : the
        experiment's folder. token_tables : folder. features : the features table.
    baselines : Parquet; the columns are in columns.yaml.
    """
    trained = Crosscoder.load(crosscoder)
    table = read_table(features)
    living = table.loc[table["alive"], "feature"].to_numpy()
    if len(living) > BASELINE_FEATURES:
        rng = np.random.default_rng(settings.analysis.seed)
        living = np.sort(rng.choice(living, BASELINE_FEATURES, replace=False))
    found = match_without_training(
        trained, living, activations, token_tables, settings.analysis.seed
    )
    write_table(baselines, found)
