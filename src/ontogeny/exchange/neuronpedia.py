"""Feature dashboards in the format that Neuronpedia imports through SAEDashboard.

The output is a folder of batch-N.json, as SAEDashboard's runner writes them
(NeuronpediaDashboardBatch in sae_dashboard/neuronpedia/neuronpedia_dashboard.py, commit 234ea32 of
jbloomAus/SAEDashboard). Its `export_neuronpedia_dashboards` (neuronpedia_export.py, commit 3ea1249)
turns them into Neuronpedia's format; the names of the model, release and author are given there.

Only what the experiment has measured is filled in, from the contexts of held-out text:

    pos_str, neg_str           tokens that the decoder of one snapshot promotes and suppresses
    pos_values, neg_values     what a unit of activation adds to their logits, minus the mean
    frac_nonzero               share of held-out positions at which the feature is active
    freq_hist_data_bar_...     its activations there, in bins: centres and counts
    activations                contexts: the strongest (bin_min −1, bin_contains −1, as there), and
                               those at quantiles of the activation, one bin per quantile

The other lists (neurons, correlated features, all logits, heads) are empty.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ontogeny.exchange.plain import free
from ontogeny.experiment import Experiment
from ontogeny.features.contexts import Context, Feature, Lens, Store
from ontogeny.files import InputError, whole, write_json

BATCH = 128  # features per file, as in SAEDashboard
EMPTY = (
    "neuron_alignment_indices",
    "neuron_alignment_values",
    "neuron_alignment_l1",
    "correlated_neurons_indices",
    "correlated_neurons_l1",
    "correlated_neurons_pearson",
    "correlated_features_indices",
    "correlated_features_l1",
    "correlated_features_pearson",
    "logits_hist_data_bar_heights",
    "logits_hist_data_bar_values",
    "decoder_weights_dist",
)


def write(experiment: Experiment, output: Path, name: str | None, step: int | None) -> int:
    """Write the dashboards of a crosscoder's living features.

    Parameters
    ----------
    output : folder to make. name : of the crosscoder; default: the primary one. step : the snapshot
        whose decoder promotes tokens; default: each feature's strongest.

    Returns
    -------
    Number of features.

    Raises
    ------
    InputError : there are no contexts or no tokens for that snapshot yet, or `output` exists.
    """
    free(output)
    if name is not None and name not in experiment.settings.all_crosscoders:
        known = ", ".join(experiment.settings.all_crosscoders)
        raise InputError(f"--crosscoder: there is no {name}; name one of {known}")
    store = experiment.contexts(name)
    settings, data = experiment.settings, experiment.tokens()
    steps = sorted({site.snapshot for site in store.sites})
    if step is not None and step not in steps:
        raise InputError(
            f"--step: contexts have promoted tokens of the steps {', '.join(map(str, steps))}; "
            "name one of these"
        )
    first, last = data.splits["held_out"]
    about = {
        "n_prompts_total": int(last - first),
        "n_tokens_in_prompt": int(data.context),
        "dataset": f"held-out text of {experiment.name} ({settings.corpus.source})",
    }
    alive = experiment.table("features", name).query("alive")["feature"]
    numbers = [int(number) for number in store.features[np.isin(store.features, alive)]]
    layer = store.sites[0].layer if store.sites else settings.activations.layers[0]
    with whole(output) as draft:
        draft.mkdir()
        for i, low in enumerate(range(0, len(numbers), BATCH)):
            some = numbers[low : low + BATCH]
            batch = {
                "model_id": experiment.name,
                "layer": int(layer),
                "sae_set": name or experiment.primary,
                "features": [_feature(store, store.feature(n), step) | about for n in some],
            }
            write_json(draft / f"batch-{i}.json", batch)
    return len(numbers)


def _feature(store: Store, feature: Feature, step: int | None) -> dict[str, Any]:
    """A feature as `NeuronpediaDashboardFeature`, without what is the same for all features."""
    lens = _lens(feature, step)
    held = np.flatnonzero(feature.histogram)
    bins = slice(held[0], held[-1] + 1) if len(held) else slice(0)
    middles = (store.edges[:-1] + store.edges[1:])[bins] / 2
    return {
        "feature_index": feature.feature,
        **{key: [] for key in EMPTY},
        "neg_str": [text for text, _, _ in lens.suppressed] if lens else [],
        "neg_values": [_rounded(value) for _, _, value in lens.suppressed] if lens else [],
        "pos_str": [text for text, _, _ in lens.promoted] if lens else [],
        "pos_values": [_rounded(value) for _, _, value in lens.promoted] if lens else [],
        "frac_nonzero": float(feature.density),
        "freq_hist_data_bar_values": [_rounded(each) for each in middles],
        "freq_hist_data_bar_heights": [float(count) for count in feature.histogram[bins]],
        "activations": list(_activations(feature)),
    }


def _lens(feature: Feature, step: int | None) -> Lens | None:
    """The tokens at a snapshot, or at the feature's peak; None if there are none."""
    fitting = (each for each in feature.lens if (each.peak if step is None else each.step == step))
    return next(fitting, None)


def _activations(feature: Feature) -> Iterator[dict[str, Any]]:
    """Contexts: the strongest, then those of each quantile, from weak to strong."""
    most = max((context.value for context in feature.top), default=0.0)
    for context in feature.top:
        yield _activation(context, -1.0, most, -1.0)
    values = [0.0, *(context.value for context in feature.quantiles)]
    shares = [0.0, *(context.quantile or 0.0 for context in feature.quantiles)]
    bins = zip(feature.quantiles, pairwise(values), pairwise(shares), strict=True)
    for context, (low, high), (below, to) in bins:
        yield _activation(context, low, high, to - below)


def _activation(context: Context, low: float, high: float, share: float) -> dict[str, Any]:
    """A context as `NeuronpediaDashboardActivation`; activations that are not stored count as 0."""
    return {
        "bin_min": _rounded(low),
        "bin_max": _rounded(high),
        "bin_contains": _rounded(share),
        "tokens": list(context.texts),
        "values": [_rounded(value) for value in np.nan_to_num(context.activations)],
        "qualifying_token_index": context.offset - context.start,
    }


def _rounded(value: float) -> float:
    return round(float(value), 3)
