"""How stability and explained variance grow with the rows that the default dictionary sees.

    python -m benchmarks.rows                          (after `make figures`; 10 minutes)

Trains the primary crosscoder of config.yaml on the default experiment's activations for fewer and
for more steps, two seeds each, and writes benchmarks/results/rows.json, and the table and plot of
docs/performance.md. Finished trainings are kept under results/benchmarks/rows.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import yaml

import ontogeny
from benchmarks.crosscoder import WORK, make_activations
from ontogeny import settings
from ontogeny.crosscoder import fidelity
from ontogeny.experiment import Experiment
from ontogeny.features import matching
from ontogeny.files import digest_value, write_json

ROWS = Path(__file__).parent / "results" / "rows.json"
STEPS = (750, 1500, 3000, 4500, 6000)
SEEDS = [0, 1]


def train(steps: int) -> Experiment:
    """Train the primary crosscoder for so many steps, both seeds side by side.

    In an experiment of its own, whose activations and basis are those of the default one.
    """
    default = ontogeny.open(Path("results") / settings.load("config.yaml").name)
    configuration = default.settings.model_dump(mode="json")
    configuration["crosscoders"][default.primary] |= {"steps": steps, "seeds": SEEDS}
    folder = WORK / "rows" / digest_value(configuration)[:12]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(configuration))
    basis = default.path("basis", sites=default.basis_of(default.primary)).parent
    links = {"activations": Path(make_activations("default")), "basis": basis}
    for name, target in links.items():
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(target.absolute())
    experiment = ontogeny.open(folder)
    command = [sys.executable, "-m", "ontogeny", "train", folder, default.primary]
    command += ["--threads", str(experiment.settings.crosscoders[default.primary].threads)]
    running = [
        subprocess.Popen([*command, "--seed", str(seed)])
        for seed in SEEDS
        if not experiment.path("weights", seed=seed).exists()
    ]
    codes = [process.wait() for process in running]  # both end before either is looked at
    if any(codes):
        raise click.ClickException(f"{steps} steps: a training failed; see above")
    return experiment


def measure(steps: int) -> dict[str, Any]:
    """A row: matched share of the living features, and held-out explained variance."""
    experiment = train(steps)
    trained = [experiment.crosscoder(seed=seed) for seed in SEEDS]
    living = [one.W_dec[~one.dead].numpy() for one in trained]
    _, cosine = matching.match(*living)
    by_site = [fidelity.explained(one, experiment.path("activations"), 0.1)[0] for one in trained]
    chosen = experiment.settings.crosscoders[experiment.primary]
    return {
        "steps": steps,
        "rows": steps * chosen.batch_rows,
        "matched": float((cosine >= experiment.settings.analysis.matched_cosine).mean()),
        "explained_variance": float(sum(t["explained_variance"].mean() for t in by_site) / 2),
        "explained_variance_least": float(min(t["explained_variance"].min() for t in by_site)),
        "l0": float(sum(t["l0"].mean() for t in by_site) / 2),
        "dead": float(sum(one.dead.float().mean() for one in trained) / 2),
    }


def main() -> None:
    """Measure every number of steps, and write the page."""
    from benchmarks import page

    rows = []
    for steps in STEPS:
        rows.append(measure(steps))
        click.echo(json.dumps(rows[-1]))
        write_json(ROWS, rows)
    page.write_rows(rows)


if __name__ == "__main__":
    main()
