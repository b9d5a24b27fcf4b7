"""What the large experiments cost, stage by stage, on one H100, on eight and on a cluster.

    python -m benchmarks.bill              prints the table of docs/cost.md, from `ontogeny plan`

Of stages that follow each other each is as long as its jobs take when so many run at a time; all
trainings, and all that is measured of them, stand side by side. A job has one GPU.
"""

from __future__ import annotations

import math
from pathlib import Path

import click

from ontogeny import settings
from ontogeny.cost import bill, machines

EXPERIMENTS = {
    "pythia-160m": "Pythia-160M, F 32,768",
    "pythia-160m-98k": "Pythia-160M, F 98,304",
    "pythia-6.9b": "Pythia-6.9B, F 32,768",
}
ROOT = Path(__file__).parents[1]
GPUS = (1, 8, 64)
STAGES = {
    "text and snapshots": ("tokenizer", "corpus", "snapshot"),
    "activations": ("extract", "stack", "token_table", "basis", "project"),
    "trainings": ("train", "stream"),
    "fidelity": ("fidelity",),
    "features, analyses, atlas": (),  # all others
}


def _wall(lines: list[bill.Line], rates: machines.Rates, gpus: int, together: bool) -> float:
    """Hours of some lines with so many jobs at a time."""
    if together:
        jobs = sum(line.left for line in lines)
        longest = max((line.hours(rates) / max(1, line.left) for line in lines), default=0.0)
        return max(longest, sum(line.hours(rates) for line in lines) / min(gpus, max(1, jobs)))
    each = (line.hours(rates) * math.ceil(line.left / gpus) / max(1, line.left) for line in lines)
    return sum(each)


def rows(name: str, results: Path) -> list[str]:
    """Rows of the table of an experiment: one for each group of stages, and their sum."""
    rates = machines.table("H100")
    given = settings.load(ROOT / "experiments" / f"{name}.yaml")
    planned = bill.bill(given, results, rates)
    grouped = {group: [*stages] for group, stages in STAGES.items()}
    known = {stage for stages in STAGES.values() for stage in stages}
    made, total = [], [0.0] * len(GPUS)
    for group, stages in grouped.items():
        own = [
            line
            for line in planned.lines
            if (line.stage in stages if stages else line.stage not in known)
        ]
        together = group not in ("text and snapshots", "activations")
        hours = [_wall(own, rates, gpus, together) for gpus in GPUS]
        total = [sum(pair) for pair in zip(total, hours, strict=True)]
        disk = sum(file.size for line in own for file in line.files)
        host = max(sum(line.job.host.values()) for line in own)
        device = max(sum(line.job.device.values()) for line in own)
        made.append(_row(group, hours, disk, host, device))
    head = _row(f"**{EXPERIMENTS[name]}**", total, planned.disk, planned.host, planned.device)
    return [head, *made]


def _row(label: str, hours: list[float], disk: float, host: float, device: float) -> str:
    cells = [f"{each:.1f}" for each in hours]
    cells += [f"{size / 1e9:,.0f}" for size in (disk, host, device)]
    return f"| {label} | " + " | ".join(cells) + " |"


def page(results: Path) -> str:
    """The whole table."""
    counts = " | ".join(f"hours, {gpus} × H100" for gpus in GPUS)
    lines = [f"| | {counts} | disk, GB | host, GB | device, GB |", "|---|" + "---|" * 6]
    return "\n".join([*lines, *(row for name in EXPERIMENTS for row in rows(name, results))])


@click.command()
@click.option("--results", default="results", type=click.Path(path_type=Path))
def main(results: Path) -> None:
    """Print the table."""
    print(page(results))


if __name__ == "__main__":
    main()
