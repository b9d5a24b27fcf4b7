"""What moves the stability of a dictionary: features matched across two seeds, trial by trial.

    snakemake --cores 2
    python -m benchmarks.stability results/default [TRIAL ...]

A trial is the experiment's primary crosscoder with some keys changed, trained with two seeds on the
experiment's own rows and measured on its held-out text; a basis that the experiment does not have,
as that of other activations, is made beside its own. Each trial is written to
benchmarks/results/stability.json as it ends, and one that stands there is not run again;
docs/default-experiment.md shows those of results/default. Beside every share stand two baselines
that need no training: how many features match a token's mean activation (`token_means`), and how
many a dictionary of random held-out rows (`random_rows`).
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

from benchmarks.page import replace_part
from ontogeny import devices
from ontogeny.activations import basis, feed, subspace
from ontogeny.activations.rows import Cached
from ontogeny.activations.sites import expand
from ontogeny.crosscoder import fidelity, train
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.experiment import Experiment
from ontogeny.features import baselines
from ontogeny.features.histories import decoder_norms, normalise
from ontogeny.features.matching import match, shares
from ontogeny.files import write_json
from ontogeny.settings import Settings

RESULTS = Path(__file__).parent / "results" / "stability.json"
DOCS = Path(__file__).parents[1] / "docs"
MARKS = "<!-- stability -->", "<!-- /stability -->"
MATCHED = 0.7
FREQUENT = 0.01  # density from which a feature counts as frequent
SHORT: dict[str, Any] = {"k": 16, "steps": 2500}
TRIALS: dict[str, dict[str, Any]] = {
    "the default": {},
    "k 16, 2,500 steps": SHORT,
    "k 16, 2,500 steps, F 1,024": SHORT | {"features": 1024},
    "k 16, 2,500 steps, F 2,048": SHORT | {"features": 2048},
    "k 16, 2,500 steps, F 1,024, gate per snapshot": SHORT | {"gate": "snapshot", "features": 1024},
    "k 16, 2,500 steps, F 1,024, principal subspace, AuxK": SHORT
    | {"features": 1024, "basis": "principal", "aux_features": 128},
    "gate per snapshot": {"gate": "snapshot"},
    "no token table": {"token_table": False},
    "table, not scaled by what it leaves": {"scale": "activations"},
    "5,000 steps": {"steps": 5000},
    "decay 0.4": {"decay": 0.4},
    "rate 1.5e-3": {"learning_rate": 1.5e-3},
    "rate 6e-3": {"learning_rate": 6e-3},
    "k 12": {"k": 12},
    "k 24": {"k": 24},
    "F 1,024": {"features": 1024},
}


def prepare(trial: Experiment, settings: Settings) -> None:
    """Make the basis of the trial's crosscoder, and the rows in it, if they are not there."""
    name = trial.primary
    sites = trial.basis_of(name)
    if sites is None or trial.path("basis", sites=sites).exists():
        return
    device, paths = devices.choose(settings.device), trial.row_paths(name)
    chosen = expand(settings.crosscoders[name].inputs, trial.steps)
    table = feed.table_of(settings.crosscoders[name], chosen, paths)
    rows = Cached(paths.activations, chosen, table)
    output = trial.path("basis", sites=sites)
    basis.build(settings.basis, rows, output, device)
    for shard, projected in enumerate(trial.projected(sites)):
        subspace.project(output, rows, shard, projected, device)


def run(experiment: Experiment, changed: dict[str, Any], threads: int) -> dict[str, Any]:
    """Train one trial's two seeds and measure them."""
    settings = experiment.settings
    primary = settings.crosscoders[experiment.primary]
    chosen = primary.model_dump(exclude_unset=True) | {"threads": threads, "seeds": [0, 1]}
    c = type(primary).model_validate(chosen | changed)
    settings = settings.model_copy(update={"crosscoders": {experiment.primary: c}})
    # Derived dictionaries (the frontier's) are no part of this.
    settings = settings.model_copy(update={"analyses": []})
    trial = Experiment(experiment.folder, settings)
    paths = trial.row_paths(experiment.primary)
    devices.use_threads(threads)
    devices.keep_memory()
    prepare(trial, settings)
    trained, living, quality, seconds = [], [], [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        for seed in c.seeds:
            own = Path(folder) / str(seed)
            began = time.monotonic()
            train.train(settings, experiment.primary, seed, paths, own, own / "state")
            seconds += time.monotonic() - began
            crosscoder = Crosscoder.load(own)
            by_site, by_feature, _ = fidelity.explained(crosscoder, paths.activations, 0.1)
            by_feature.insert(0, "feature", range(len(by_feature)))
            trained.append(crosscoder)
            living.append(by_feature[~by_feature["dead"]].reset_index(drop=True))
            quality.append({**by_site.mean(), "least": by_site["explained_variance"].min()})
    first = living[0]
    decoders = [t.W_dec.numpy()[own["feature"]] for t, own in zip(trained, living, strict=True)]
    matches = first[["feature", "density"]].assign(cosine=match(*decoders)[1])
    without = baselines.match_without_training(
        trained[0], first["feature"].to_numpy(), paths.activations, trial.path("token_tables"), 0
    )
    strength = normalise(decoder_norms(decoders[0]))
    matched = matches["cosine"].fillna(-1) >= MATCHED
    frequent = matches["density"] >= FREQUENT
    return {
        "explained_variance": float(np.mean([q["explained_variance"] for q in quality])),
        "explained_variance_least": float(np.mean([q["least"] for q in quality])),
        "l0": float(np.mean([q["l0"] for q in quality])),
        "living": float(np.mean([len(own) for own in living])),
        "matched": float(matched.mean()),
        "matched_frequent": float(matched[frequent].mean()),
        "frequent": int(frequent.sum()),
        "at_the_start": float((strength[:, 0] >= experiment.settings.analysis.presence).mean()),
        **shares(without, matches, MATCHED),
        "seconds": round(seconds, 1),
        "torch": torch.__version__,
    }


COLUMNS = {
    "trial": "trial",
    "explained_variance": "held-out EV",
    "l0": "L0",
    "living": "alive",
    "matched": "matched",
    "matched_frequent": "frequent ones matched",
    "beyond_token_means": "beyond token means",
    "token_means": "token means match",
    "random_rows": "random rows match",
    "at_the_start": "present at the start",
}
SHARES = set(COLUMNS) - {"trial", "explained_variance", "l0", "living"}


def write_page(trials: dict[str, dict[str, Any]]) -> None:
    """Put the table of all trials into docs/default-experiment.md."""
    lines = [f"| {' | '.join(COLUMNS.values())} |", "|---" * len(COLUMNS) + "|"]
    for name, row in trials.items():
        texts = {"trial": name, "explained_variance": f"{row['explained_variance']:.3f}"}
        texts |= {"l0": f"{row['l0']:.1f}", "living": f"{row['living']:,.0f}"}
        texts |= {key: f"{row[key]:.0%}" if key in row else "" for key in SHARES}
        lines.append(f"| {' | '.join(texts[key] for key in COLUMNS)} |")
    replace_part(MARKS, "\n".join(lines), DOCS / "default-experiment.md")


@click.command()
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@click.argument("names", nargs=-1)
@click.option("--threads", default=2, show_default=True)
def main(folder: Path, names: tuple[str, ...], threads: int) -> None:
    """Run the trials that have not been run on this experiment; print and keep what they give."""
    experiment = Experiment.open(folder)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    own = kept.setdefault(experiment.settings.name, {})
    for name in names or TRIALS:
        if name in own:
            continue
        own[name] = {"changed": TRIALS[name], **run(experiment, TRIALS[name], threads)}
        write_json(RESULTS, kept)
        print(name, json.dumps(own[name]), flush=True)
    if experiment.settings.name == "default":
        write_page(own)


if __name__ == "__main__":
    main()
