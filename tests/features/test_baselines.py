"""Baselines of stability: planted token means and rows are matched, and the shares follow."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import RESULTS

from ontogeny.activations.rows import Cached
from ontogeny.activations.sites import Site
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.experiment import Experiment
from ontogeny.features import baselines, matching


def test_shares_are_of_the_threshold_and_of_what_lies_beyond():
    table = pd.DataFrame(
        {
            "feature": range(4),
            "token_cosine": [0.9, 0.8, 0.3, 0.2],
            "token_matched_cosine": [0.9, 0.5, 0.3, 0.2],
            "row_matched_cosine": [0.7, 0.1, 0.1, np.nan],
        }
    )
    matches = pd.DataFrame({"feature": [0, 1, 2, 3], "cosine": [0.9, 0.9, 0.8, np.nan]})
    shares = matching.shares(table, matches, 0.7)
    assert shares == {"token_means": 0.25, "random_rows": 0.25, "beyond_token_means": 0.5}
    assert "beyond_token_means" not in matching.shares(table, matches.iloc[:0], 0.7)


@pytest.fixture(scope="module")
def experiment(finished) -> Experiment:
    return Experiment.open(finished / RESULTS)


def test_token_means_are_those_of_the_training_rows(experiment):
    sites = [Site(*site) for site in experiment.crosscoder().about.outputs]
    rows = Cached(experiment.path("activations"), sites)
    x, ids = rows.read(0, rows.rows), rows.tokens_at(0, rows.rows)[:, 1]
    token, means = baselines.token_means(experiment.path("token_tables"), sites, rows.scales)
    often = np.bincount(ids).argmax()
    own = x[ids == often]
    direct = (own.mean(0) - x.mean(0)) * len(own) / (len(own) + 5)
    assert means[token == often][0] == pytest.approx(direct, abs=1e-3)


def test_the_table_tells_what_needs_no_training(experiment):
    """Planted: a decoder that is a token's mean, and one that is a random row."""
    table = experiment.table("stability_baselines")
    features = experiment.table("features")
    assert list(table["feature"]) == list(features.loc[features["alive"], "feature"])
    assert table["token_cosine"].between(-1, 1).all()
    assert (table["token_matched_cosine"].fillna(-1) <= table["token_cosine"] + 1e-6).all()
    trained = Crosscoder.load(experiment.trained())
    sites = [Site(*site) for site in trained.about.outputs]
    token, means = baselines.token_means(
        experiment.path("token_tables"), sites, trained.scales_out.numpy()
    )
    feature, known = int(table["feature"][0]), baselines.unit(means)
    cosines = known @ baselines.unit(trained.W_dec.numpy()[[feature]])[0]
    assert table["token_cosine"][0] == pytest.approx(cosines.max(), abs=1e-6)
    assert table["token"][0] == token[cosines.argmax()]
    rows = baselines.random_rows(trained, experiment.path("activations"), 20, 0)
    assert rows.shape == (20, *trained.W_dec.shape[1:])
    assert abs(rows.mean(0)).max() < 1e-4
