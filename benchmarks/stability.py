"""What moves the stability of a dictionary: features matched across two seeds, trial by trial.

    snakemake --cores 2 stack_activations basis     (of an experiment, or run it whole)
    python -m benchmarks.stability results/default [TRIAL ...]

A trial is BatchTopK with one gate per snapshot, `BASE`, with some keys changed, trained twice on
the experiment's own rows and measured on its held-out text. Each trial is written to
benchmarks/results/stability.json as it ends, and one that stands there is not run again. Beside
every share stand two baselines that need no training: how many features match a token's mean
activation (`token_means`), and how many a dictionary of random held-out rows (`random_rows`).
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from ontogeny import devices
from ontogeny.activations.rows import HeldOut
from ontogeny.activations.sites import Site
from ontogeny.crosscoder import fidelity, train
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.experiment import Experiment
from ontogeny.features.matching import match
from ontogeny.files import write_json

RESULTS = Path(__file__).parent / "results" / "stability.json"
MATCHED = 0.7
FREQUENT = 0.01  # density from which a feature counts as frequent
BASE: dict[str, Any] = {
    "basis": "hybrid",
    "activation": "batch_topk",
    "gate": "snapshot",
    "features": 1024,
    "k": 11,
    "batch_rows": 1024,
    "steps": 2000,
    "learning_rate": 3e-3,
    "decay": 0.4,
    "seeds": [0, 1],
}
TRIALS: dict[str, dict[str, Any]] = {
    "base": {},
    "rate 1e-3": {"learning_rate": 1e-3},
    "rate 6e-3": {"learning_rate": 6e-3},
    "rate 1e-2": {"learning_rate": 1e-2},
    "decay 0.2": {"decay": 0.2},
    "decay 0.8": {"decay": 0.8},
    "steps 4500": {"steps": 4500},
    "batch 512, 4000 steps": {"batch_rows": 512, "steps": 4000},
    "batch 2048": {"batch_rows": 2048},
    "F 512": {"features": 512},
    "F 2048": {"features": 2048},
    "k 8": {"k": 8},
    "k 16": {"k": 16},
    "k 33 to 11": {"k_start": 33},
    "gate per feature": {"gate": "feature"},
    "gate per feature, no AuxK": {"gate": "feature", "aux_features": 0},
}


def token_means(experiment: Experiment, sites: list[Site], least: int = 5) -> np.ndarray:
    """(T, N·D) unit vectors: means of the tokens seen at least so often in the held-out rows."""
    rows = HeldOut(experiment.path("activations"), sites)
    tokens = experiment.tokens()
    block, offset = rows.position.T.astype(np.int64)
    numbers, at = np.unique(block, return_inverse=True)
    ids = tokens.take(numbers)[at, offset]
    flat = rows.read(0, rows.rows).reshape(rows.rows, -1)
    flat -= flat.mean(0)
    seen, group = np.unique(ids, return_inverse=True)
    sums = np.stack([flat[group == g].sum(0) for g in range(len(seen))])
    counts = np.bincount(group)
    means = (sums / counts[:, None])[counts >= least]
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def random_rows(experiment: Experiment, sites: list[Site], count: int) -> np.ndarray:
    """(count, N·D) unit vectors: random held-out rows less their mean."""
    rows = HeldOut(experiment.path("activations"), sites)
    flat = rows.read(0, rows.rows).reshape(rows.rows, -1)
    chosen = np.random.default_rng(0).choice(len(flat), count, replace=False)
    drawn = flat[chosen] - flat.mean(0)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def run(experiment: Experiment, changed: dict[str, Any], threads: int) -> dict[str, Any]:
    """Train one trial's two seeds and measure them."""
    settings = experiment.settings
    primary = settings.crosscoders[experiment.primary]
    chosen = BASE | {"inputs": primary.inputs.model_dump(), "threads": threads} | changed
    c = type(primary).model_validate(chosen)
    settings = settings.model_copy(update={"crosscoders": {experiment.primary: c}})
    # Derived dictionaries (the frontier's) are no part of this.
    settings = settings.model_copy(update={"analyses": []})
    trial = Experiment(experiment.folder, settings)
    paths = trial.row_paths(experiment.primary)
    devices.use_threads(threads)
    devices.keep_memory()
    trained, densities, quality, seconds = [], [], [], 0.0
    for seed in c.seeds:
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            train.train(settings, experiment.primary, seed, paths, folder, Path(folder) / "state")
            seconds += time.monotonic() - began
            crosscoder = Crosscoder.load(folder)
        by_site, by_feature, _ = fidelity.explained(crosscoder, paths.activations, 0.1)
        living = ~by_feature["dead"].to_numpy()
        trained.append(crosscoder.W_dec.numpy()[living])
        densities.append(by_feature["density"].to_numpy()[living])
        quality.append({**by_site.mean(), "least": by_site["explained_variance"].min()})
    _, cosine = match(*trained)
    ok = np.nan_to_num(cosine, nan=-1) >= MATCHED
    sites = [Site(*site) for site in crosscoder.about.inputs]
    flat = trained[0].reshape(len(trained[0]), -1)
    unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    token = (unit @ token_means(trial, sites).T).max(1) >= MATCHED
    rows = random_rows(trial, sites, len(unit)).reshape(trained[0].shape)
    _, by_rows = match(trained[0], rows)
    frequent = densities[0] >= FREQUENT
    return {
        "explained_variance": float(np.mean([q["explained_variance"] for q in quality])),
        "explained_variance_least": float(np.mean([q["least"] for q in quality])),
        "l0": float(np.mean([q["l0"] for q in quality])),
        "living": float(np.mean([len(W) for W in trained])),
        "matched": float(ok.mean()),
        "matched_frequent": float(ok[frequent].mean()),
        "frequent": int(frequent.sum()),
        "token_means": float(token.mean()),
        "matched_beyond_token_means": float(ok[~token].mean()),
        "random_rows": float((np.nan_to_num(by_rows, nan=-1) >= MATCHED).mean()),
        "seconds": round(seconds, 1),
        "torch": torch.__version__,
    }


@click.command()
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@click.argument("names", nargs=-1)
@click.option("--threads", default=2, show_default=True)
def main(folder: Path, names: tuple[str, ...], threads: int) -> None:
    """Run the trials that have not been run on this experiment; print and keep what they give."""
    experiment = Experiment.open(folder)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    own = kept.setdefault(experiment.settings.activations.scale, {})
    for name in names or TRIALS:
        if name in own:
            continue
        own[name] = {"changed": TRIALS[name], **run(experiment, TRIALS[name], threads)}
        write_json(RESULTS, kept)
        print(name, json.dumps(own[name]), flush=True)


if __name__ == "__main__":
    main()
