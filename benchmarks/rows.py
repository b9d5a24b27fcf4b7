"""How stability and explained variance grow with the rows that the default dictionary sees.

    python -m benchmarks.rows                          (after `make figures`; 10 minutes)

Trains the primary crosscoder of config.yaml on the default experiment's activations for fewer and
for more steps, two seeds each, and writes benchmarks/results/rows.json, and the table and plot of
docs/performance.md. Finished trainings are kept under results/benchmarks/rows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import yaml

from benchmarks.crosscoder import WORK, make_activations
from ontogeny import settings
from ontogeny.crosscoder import fidelity
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.features import matching
from ontogeny.files import digest_value, write_json

ROWS = Path(__file__).parent / "results" / "rows.json"
STEPS = (750, 1500, 3000, 4500, 6000)
SEEDS = (0, 1)


def train(steps: int) -> list[Path]:
    """Both seeds of the primary crosscoder for so many steps, side by side; their folders."""
    s = settings.load("config.yaml")
    configuration = s.model_dump(mode="json")
    configuration["crosscoders"][s.primary]["steps"] = steps
    key = digest_value(configuration)[:12]
    activations = make_activations("default")
    folders = [WORK / "rows" / key / f"seed{seed}" for seed in SEEDS]
    file = WORK / "rows" / key / "config.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(configuration))
    command = [Path(sys.executable).with_name("ontogeny"), "train", "--config", file]
    command += ["--threads", str(s.crosscoders[s.primary].threads), "--crosscoder", s.primary]
    basis = f"results/{s.name}/basis/residual.0"
    command += ["--activations", activations, "--basis", f"{basis}.h5"]
    command += ["--projected", f"{basis}.rows0.h5"]
    running = [
        subprocess.Popen(
            [*command, "--seed", str(seed), "--output", folder, "--state", f"{folder}.state"],
            env=os.environ,
        )
        for seed, folder in zip(SEEDS, folders, strict=True)
        if not (folder / "config.json").exists()
    ]
    if any(process.wait() for process in running):
        raise click.ClickException(f"{steps} steps: a training failed; see above")
    return folders


def measure(steps: int) -> dict[str, Any]:
    """A row: matched share of the living features, and held-out explained variance."""
    s = settings.load("config.yaml")
    c = s.crosscoders[s.primary]
    trained = [Crosscoder.load(folder) for folder in train(steps)]
    living = [one.W_dec[~one.dead].numpy() for one in trained]
    _, cosine = matching.match(*living)
    by_site = [fidelity.explained(one, f"results/{s.name}/activations", 0.1)[0] for one in trained]
    return {
        "steps": steps,
        "rows": steps * c.batch_rows,
        "matched": float((cosine >= s.analysis.matched_cosine).mean()),
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
