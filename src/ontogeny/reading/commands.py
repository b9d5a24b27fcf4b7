"""`ontogeny read`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import click

from ontogeny.console import on_device, threads


@click.command()
@on_device
@click.argument("text")
@threads
@click.option(
    "--step", "steps", type=int, multiple=True, help="Step of a snapshot whose features are shown."
)
@click.option(
    "--features",
    type=click.IntRange(1),
    help="Number of features per token; default: as many as fit on a line.",
)
@click.option(
    "--predictions",
    type=click.IntRange(0),
    default=3,
    help="Number of likeliest next tokens per token.",
)
@click.option("--long", is_flag=True, help="Show each feature on a separate line, with its kind.")
@click.option("--crosscoder", help="Name of the crosscoder; default: the primary one.")
@click.option(
    "--csv", type=click.Path(path_type=Path, dir_okay=False), help="Write everything to this file."
)
def read(
    experiment: Any,
    text: str,
    crosscoder: str | None,
    csv: Path | None,
    predictions: int,
    **wanted: Any,
) -> None:
    """Show how every snapshot reads TEXT: its losses, features and predictions.

    If TEXT is -, it is read from the standard input.
    """
    from ontogeny.files import write_table
    from ontogeny.reading import terminal
    from ontogeny.show import LEAST_WIDTH, write

    given = sys.stdin.read() if text == "-" else text
    reading = experiment.read(given, crosscoder, max(predictions, 1))
    if csv is not None:
        write_table(csv, reading.everything)
        print(f"{csv}: {len(reading.everything)} rows, one for each token, snapshot and feature")
        return
    width = max(LEAST_WIDTH, shutil.get_terminal_size().columns)
    steps = wanted.pop("steps")
    shown = terminal.Wanted(steps, predictions=predictions, **wanted)
    write(list(terminal.lines(reading, shown, width)), width)
