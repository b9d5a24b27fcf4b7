"""A trace as tables: one row per token and snapshot, and one per active feature."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from ontogeny.corpus.pieces import Vocabulary
from ontogeny.reading.trace import Trace


def features(found: Trace, texts: list[str], described: pd.DataFrame) -> pd.DataFrame:
    """One row per token, site and active feature, the largest contribution first."""
    pair, site = np.nonzero(found.activation > 0)
    contribution = found.contribution[pair, site]
    order = np.lexsort((-contribution, site, found.row[pair]))
    pair, site, contribution = pair[order], site[order], contribution[order]
    row, feature = found.row[pair], found.feature[pair]
    places = pd.DataFrame([vars(output) for output in found.outputs]).iloc[site]
    known = described.reindex(feature).fillna("")
    largest = found.contribution.max(1, initial=0)[pair]
    return pd.DataFrame(
        {
            "passage": found.passage[row],
            "position": found.position[row],
            "token": np.array(texts, object)[row],
            "step": places["snapshot"].to_numpy(),
            "layer": places["layer"].to_numpy(),
            "stream": places["stream"].to_numpy(),
            "feature": feature,
            "name": known["name"].to_numpy(),
            "kind": known["kind"].to_numpy(),
            "activation": found.activation[pair, site],
            "contribution": contribution,
            "share": contribution / np.maximum(largest, 1e-30),
        }
    )


def tokens(found: Trace, texts: list[str], vocabulary: Vocabulary) -> pd.DataFrame:
    """Losses and predictions, one row per token and snapshot."""
    shown, n = np.flatnonzero(found.position >= 0), len(found.steps)
    columns = {
        "passage": np.repeat(found.passage[shown], n),
        "position": np.repeat(found.position[shown], n),
        "token": np.repeat(np.array(texts, object)[shown], n),
        "step": np.tile(found.steps, len(shown)),
        "loss": found.loss[shown].ravel(),
    }
    for i in range(found.following.shape[2]):
        following = found.following[shown, :, i].ravel()
        columns[f"next_{i + 1}"] = np.array([vocabulary.one(each) for each in following], object)
        columns[f"probability_{i + 1}"] = found.probability[shown, :, i].ravel()
    return pd.DataFrame(columns)


def described(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Name and kind of each feature, '' if unknown, from the tables `names` and `kinds`."""
    columns = {"name": "names", "kind": "kinds"}
    known = {
        column: tables[table].set_index("feature")[column]
        for column, table in columns.items()
        if table in tables
    }
    return pd.DataFrame(known, columns=list(columns), dtype=object)
