"""When a model of the default recipe begins to copy, by what is changed in its training and seed.

    snakemake --cores 2 results/default/corpus/tokens.h5
    python -m benchmarks.copying results/default [TRIAL ...]

A trial is the experiment's pre-training with some keys changed, begun with each of three seeds and
left at step UNTIL. The gain from a copy (docs/method.md 5) is measured every EVERY steps; copying
has begun where it reaches GAIN, between two measurements by a straight line. Each trial is written
to benchmarks/results/copying.json as it ends, and one that stands there is not run again;
docs/default-experiment.md shows them.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import torch

from benchmarks.page import replace_part
from ontogeny import devices, settings
from ontogeny.experiment import Experiment
from ontogeny.files import write_json
from ontogeny.snapshots import pretrain

RESULTS = Path(__file__).parent / "results" / "copying.json"
PAGE = Path(__file__).parents[1] / "docs" / "default-experiment.md"
MARKS = "<!-- copying -->", "<!-- /copying -->"
SEEDS = (0, 1, 2)
UNTIL, EVERY = 2000, 100
GAIN = 0.1  # nats a token
TRIALS: dict[str, dict[str, Any]] = {
    "the default": {},
    "a tenth of the blocks doubled": {"doubled_blocks": 0.1},
    "no block doubled": {"doubled_blocks": 0.0},
    "Muon's rate twice as high": {"muon_learning_rate": 1.0e-2},
}


def run(experiment: Experiment, changed: dict[str, Any], seed: int, folder: Path) -> pd.DataFrame:
    """Train until step UNTIL; returns the rows of the log that hold copying measures."""
    given = experiment.settings.model_dump(mode="json", exclude_unset=True)
    given["snapshots"]["pretrain"] |= changed | {"seed": seed}
    given["replicates"] = {}
    given["snapshots"]["steps"] = list(range(0, UNTIL + 1, EVERY))
    devices.use_threads(1)
    log = folder / "log.csv"
    trial = settings.load(given)
    pretrain.train(trial, experiment.path("tokens"), folder / "states", log, until=UNTIL)
    return pd.read_csv(log).dropna(subset=["copying_gain"])


def onset(log: pd.DataFrame) -> float | None:
    """The step at which the gain from a copy first reaches GAIN, or None."""
    steps, gains = log["step"].to_numpy(float), log["copying_gain"].to_numpy()
    reached = np.flatnonzero(gains >= GAIN)
    if len(reached) == 0:
        return None
    i = reached[0]
    if i == 0:
        return float(steps[0])
    share = (GAIN - gains[i - 1]) / (gains[i] - gains[i - 1])
    return float(steps[i - 1] + share * (steps[i] - steps[i - 1]))


def write_page(trials: dict[str, dict[str, Any]]) -> None:
    """Put the table of all trials into docs/default-experiment.md."""
    heads = "".join(f" seed {seed} |" for seed in SEEDS)
    lines = [f"| trial |{heads} gain at step {UNTIL:,} |", "|---" * (len(SEEDS) + 2) + "|"]
    for name, row in trials.items():
        onsets = "".join(f" {f'{o:,.0f}' if o else f'after {UNTIL:,}'} |" for o in row["onsets"])
        gains = ", ".join(f"{gain:.2f}" for gain in row["gains"])
        lines.append(f"| {name} |{onsets} {gains} |")
    replace_part(MARKS, "\n".join(lines), PAGE)


@click.command()
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@click.argument("names", nargs=-1)
def main(folder: Path, names: tuple[str, ...]) -> None:
    """Run the trials that have not been run; print and keep what they give."""
    experiment = Experiment.open(folder)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in names or TRIALS:
        if name in kept:
            continue
        logs = []
        for seed in SEEDS:
            with tempfile.TemporaryDirectory() as scratch:
                logs.append(run(experiment, TRIALS[name], seed, Path(scratch)))
        kept[name] = {
            "changed": TRIALS[name],
            "onsets": [onset(log) for log in logs],
            "gains": [float(log["copying_gain"].iloc[-1]) for log in logs],
            "torch": torch.__version__,
        }
        write_json(RESULTS, kept)
        print(name, json.dumps(kept[name]), flush=True)
    write_page(kept)


if __name__ == "__main__":
    main()
