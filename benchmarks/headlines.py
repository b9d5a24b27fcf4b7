"""The numbers of the default run that README.md and docs/results.md repeat: docs/headlines.json.

    python -m benchmarks.headlines results/default

writes every key that the file has anew, from the numbers.json of a finished run. tests/test_docs.py
then shows which sentences no longer hold.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

PAGE = Path(__file__).parents[1] / "docs" / "headlines.json"
DIGITS = 6


def short(value: Any) -> Any:
    """A number to so many significant digits, since more would change with the machine."""
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


@click.command(help=__doc__)
@click.argument("results", type=click.Path(path_type=Path, exists=True, file_okay=False))
def main(results: Path) -> None:
    """Write docs/headlines.json from the numbers of a finished run."""
    numbers = json.loads((results / "numbers.json").read_text(encoding="utf-8"))
    kept = json.loads(PAGE.read_text(encoding="utf-8"))
    made = {key: short(numbers[key]) for key in kept}
    PAGE.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
