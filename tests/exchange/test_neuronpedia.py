"""Dashboards for Neuronpedia: the fields and types that SAEDashboard's own classes have."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from ontogeny.cli import main
from ontogeny.exchange import neuronpedia
from ontogeny.files import InputError

# The arguments of NeuronpediaDashboardBatch, -Feature and -Activation, with their types, of
# sae_dashboard/neuronpedia/neuronpedia_dashboard.py in jbloomAus/SAEDashboard at commit
# 234ea3211ce7dbf84d101c4e8bfe844c3903b16a, less what is there only for attention (dfa_...).
BATCH = {"model_id": str, "layer": int, "sae_set": str, "features": [dict]}
FEATURE = {
    "feature_index": int,
    "neuron_alignment_indices": [int],
    "neuron_alignment_values": [float],
    "neuron_alignment_l1": [float],
    "correlated_neurons_indices": [int],
    "correlated_neurons_l1": [float],
    "correlated_neurons_pearson": [float],
    "correlated_features_indices": [int],
    "correlated_features_l1": [float],
    "correlated_features_pearson": [float],
    "neg_str": [str],
    "neg_values": [float],
    "pos_str": [str],
    "pos_values": [float],
    "frac_nonzero": float,
    "freq_hist_data_bar_values": [float],
    "freq_hist_data_bar_heights": [float],
    "logits_hist_data_bar_heights": [float],
    "logits_hist_data_bar_values": [float],
    "n_prompts_total": int,
    "n_tokens_in_prompt": int,
    "dataset": str,
    "activations": [dict],
    "decoder_weights_dist": [float],
}
ACTIVATION = {
    "bin_min": float,
    "bin_max": float,
    "bin_contains": float,
    "tokens": [str],
    "values": [float],
    "qualifying_token_index": int,
}


def check(given: dict, schema: dict) -> None:
    """Exactly the schema's keys, each of its type."""
    assert set(given) == set(schema)
    for key, kind in schema.items():
        if isinstance(kind, list):
            assert type(given[key]) is list, key
            assert {type(each) for each in given[key]} <= {kind[0]}, key
        else:
            assert type(given[key]) is kind, key


def test_dashboards_are_what_saedashboard_reads(analysed, tmp_path, monkeypatch):
    monkeypatch.setattr(neuronpedia, "BATCH", 16)
    words = ["export", "neuronpedia", str(analysed.folder), str(tmp_path / "out")]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    features = analysed.table("features").query("alive")
    assert done.output.split() == [f"{tmp_path}/out:", str(len(features)), "features"]
    files = sorted((tmp_path / "out").iterdir())
    assert {path.name for path in files} == {f"batch-{i}.json" for i in range(len(files))}
    assert len(files) == -(-len(features) // 16)
    store, seen = analysed.contexts(), []
    for path in files:
        batch = json.loads(path.read_text())
        check(batch, BATCH)
        for given in batch["features"]:
            check(given, FEATURE)
            seen.append(given["feature_index"])
            feature = store.feature(seen[-1])
            assert given["frac_nonzero"] == feature.active / store.rows
            assert sum(given["freq_hist_data_bar_heights"]) == feature.histogram.sum()
            assert len(given["pos_str"]) == len(given["pos_values"]) > 0
            assert sorted(given["pos_values"], reverse=True) == given["pos_values"]
            assert sorted(given["neg_values"]) == given["neg_values"]
            assert len(given["activations"]) == len(feature.top) + len(feature.quantiles)
            shares = 0.0
            for each, context in zip(
                given["activations"], [*feature.top, *feature.quantiles], strict=True
            ):
                check(each, ACTIVATION)
                at = each["qualifying_token_index"]
                assert len(each["tokens"]) == len(each["values"])
                assert each["tokens"][at] == context.texts[at]
                assert each["values"][at] == pytest.approx(context.value, rel=2e-3, abs=1e-3)
                assert np.isfinite(each["values"]).all()
                if context.quantile is not None:
                    assert each["bin_min"] <= each["bin_max"]
                    assert each["bin_max"] == pytest.approx(context.value, abs=1e-3)
                    shares += each["bin_contains"]
                else:
                    assert (each["bin_min"], each["bin_contains"]) == (-1, -1)
            assert shares <= 1
    assert sorted(seen) == sorted(features["feature"])


def test_what_cannot_be_exported(analysed, tmp_path):
    with pytest.raises(InputError, match=r"--step: contexts have promoted tokens of the steps 0,"):
        neuronpedia.write(analysed, tmp_path / "out", None, 1_000_000)
    with pytest.raises(InputError, match="--crosscoder: there is no other; name one of"):
        neuronpedia.write(analysed, tmp_path / "out", "other", None)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(InputError, match="exists already"):
        neuronpedia.write(analysed, tmp_path / "out", None, None)
