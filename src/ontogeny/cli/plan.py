"""Before a run: can it run, and what does it cost."""

from __future__ import annotations

from pathlib import Path

import click

from ontogeny import settings as settings_module
from ontogeny.cli.base import FILE, FOLDER, main


@main.command()
@click.argument("file", type=FILE)
@click.option("--results", type=FOLDER, default=Path("results"))
def check(file: Path, results: Path) -> None:
    """Say whether a configuration FILE can run here, a line a fault."""
    from ontogeny import preflight
    from ontogeny.snapshots import sources

    s = sources.resolve(settings_module.load(file))
    preflight.check(s, results)
    preflight.check_room(s, results)
    print(f"{file}: can run")


@main.command()
@click.argument("file", type=FILE)
@click.option("--device", help="Hours on a device of devices.yaml, such as H100; else timed here.")
@click.option("--terms", is_flag=True, help="Also what each stage's memory is made of.")
@click.option("--results", type=FOLDER, default=Path("results"))
def plan(file: Path, device: str | None, terms: bool, results: Path) -> None:
    """Show what the experiment in FILE costs before it runs: disk, memory, FLOPs, hours."""
    from ontogeny.plan import bill, machines, table
    from ontogeny.snapshots import sources

    s = sources.resolve(settings_module.load(file))
    precision = s.crosscoders[s.primary].precision
    rates = machines.table(device, precision) if device else bill.measure(s, results)
    print(table.show(bill.bill(s, results, rates), terms))


@main.command()
def schema() -> None:
    """Print the JSON schema of the configuration."""
    print(settings_module.schema(), end="")
