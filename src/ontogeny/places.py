"""The folder of the workflow: next to the package in a checkout, inside it when installed."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent
INSTALLED = PACKAGE / "workflow"  # setup.py copies it there
WORKFLOW = INSTALLED if INSTALLED.is_dir() else PACKAGE.parents[1]


def found(file: Path) -> Path:
    """The file with the given path or, if there is none here, the workflow's file of that name."""
    return file if file.exists() or not (WORKFLOW / file).is_file() else WORKFLOW / file
