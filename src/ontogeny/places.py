"""The folder of the workflow: beside the package in a checkout, inside it once installed."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent
INSTALLED = PACKAGE / "workflow"  # setup.py puts it there
WORKFLOW = INSTALLED if INSTALLED.is_dir() else PACKAGE.parents[1]


def found(file: Path) -> Path:
    """A file as it is named; where there is none here, the workflow's own of that name."""
    return file if file.exists() or not (WORKFLOW / file).is_file() else WORKFLOW / file
