"""Finding what a finished experiment left, for commands that look at it by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ontogeny.files import InputError


def configuration(results: Path) -> dict[str, Any]:
    """The resolved configuration of an experiment, as it stands in its folder.

    Raises
    ------
    InputError : no experiment there, or its configuration cannot be read.
    """
    path = results / "config.yaml"
    if not path.exists():
        there = sorted(p.parent.name for p in results.parent.glob("*/config.yaml"))
        others = f"; in {results.parent} there are {', '.join(there)}" if there else ""
        raise InputError(f"{results}: no experiment here; name its folder with --results{others}")
    try:
        found = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{path}: damaged; run the experiment again to write it anew")
    return found


def crosscoder(results: Path, name: str | None, seed: int | None) -> Path:
    """The folder of a crosscoder: of the primary one, and of its first seed, where none is named.

    Raises
    ------
    InputError : no such experiment, crosscoder or seed.
    """
    config = configuration(results)
    name = name or str(config.get("primary", ""))
    seeds = config.get("crosscoders", {}).get(name, {}).get("seeds", [0])
    all_of_them = results / "crosscoders"
    found = all_of_them / name / f"seed{seeds[0] if seed is None else seed}"
    if not (found / "crosscoder.safetensors").exists():
        weights = all_of_them.glob("*/*/crosscoder.safetensors")
        there = sorted(str(path.parent.relative_to(all_of_them)) for path in weights)
        raise InputError(f"{found}: no crosscoder; there are {', '.join(there) or 'none yet'}")
    return found
