"""Declared costs beside what Snakemake measured of a finished experiment, to refresh the numbers.

    python -m benchmarks.rates results/default

Seconds are of one job: its processor time over the threads that it has, since other jobs beside it
take time away, and the plan's at this machine's rates. `suggested` multiplies the declared seconds
so that they fit what was measured; the start of a process is not part of them.
"""

from __future__ import annotations

import csv
from pathlib import Path

import click

from ontogeny import registry
from ontogeny.cost import bill, machines
from ontogeny.cost.bill import Line
from ontogeny.cost.machines import Rates
from ontogeny.cost.rates import COSTS
from ontogeny.declarations import Cost
from ontogeny.experiment import Experiment


def measured(folder: Path, line: Line) -> tuple[float, float] | None:
    """(seconds of a job, bytes of the largest) by Snakemake's benchmark files; None without any.

    Parameters
    ----------
    folder : of the benchmark files.
    """
    pattern = f"{line.stage}/{line.which}*.tsv" if line.which else f"{line.stage}*.tsv"
    files = [
        *folder.rglob(pattern),
        *folder.rglob(f"{line.stage}/*.tsv" if not line.which else "-"),
    ]
    rows = []
    for path in files:
        with open(path, encoding="utf-8") as file:
            rows += [row for row in csv.DictReader(file, delimiter="\t") if row["cpu_time"] != "NA"]
    if not rows:
        return None
    spent = [min(float(row["s"]), float(row["cpu_time"]) / line.threads) for row in rows]
    return sum(spent) / len(spent), max(float(row["max_rss"]) for row in rows) * 2**20


def suggestion(cost: Cost, seconds: float, planned: float, rates: Rates) -> str:
    """The declared seconds, times what they were off by."""
    start = rates.start * (1.0 if cost.torch else 0.5)
    share = max(0.0, seconds - start) / max(1e-9, planned - start)
    scaled = ", ".join(f'"{scale}": {each * share:.2g}' for scale, each in cost.seconds.items())
    return f"{{{scaled}}}"


@click.command(help=__doc__.splitlines()[0])
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def main(folder: Path) -> None:
    """Print the table of an experiment, such as results/default."""
    experiment = Experiment.open(folder)
    rates = bill.measure(experiment.settings, experiment.results)
    here = machines.machine(experiment.settings, experiment.results)
    lines, _ = bill.lines(experiment, here)
    print(
        f"{rates.how}\n\n{'stage':28} {'s':>7} {'planned':>8} {'GB':>6} {'planned':>8}  suggested"
    )
    for line in lines:
        found = measured(experiment.path("benchmarks"), line)
        if found is None:
            continue
        seconds, memory = found
        planned = machines.seconds(line.job.work, rates, line.threads, line.on_host)
        declared = registry.stages().get(line.stage)
        cost = declared.cost if declared else COSTS.get(line.stage)
        suggested = suggestion(cost, seconds, planned, rates) if cost else ""
        host = sum(line.job.host.values())
        print(
            f"{line.name:28} {seconds:7.1f} {planned:8.1f} {memory / 1e9:6.2f} {host / 1e9:8.2f}"
            f"  {suggested}"
        )


if __name__ == "__main__":
    main()
