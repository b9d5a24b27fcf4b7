"""What the three sources of snapshots have in common: steps, architecture, faults known early."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ontogeny.files import InputError, digest_value, write_json
from ontogeny.settings import Settings
from ontogeny.snapshots import hub, local, presets, shape


def resolve(s: Settings) -> Settings:
    """The settings with `snapshots.steps: all` replaced by the steps that are there.

    Raises
    ------
    InputError : no folder fits. SettingsError : the steps found do not fit the rest.
    """
    if s.snapshots.steps != "all" or s.snapshots.local is None:
        return s
    steps = local.resolve_steps(s.snapshots.local)
    given = s.model_dump(mode="json")
    given["snapshots"]["steps"] = steps
    return Settings.model_validate(given)


def faults(s: Settings, results: str | Path) -> list[str]:
    """What is known before any job to be wrong with the snapshots, a line each with the mend.

    A hub is not asked about snapshots that are there.
    """
    if s.snapshots.hub is not None:
        folder = Path(results) / s.name / "snapshots"
        absent = [t for t in s.snapshots.chosen if not (folder / f"step{t}").is_dir()]
        return hub.faults(s.snapshots.hub, absent) if absent else []
    if s.snapshots.local is not None:
        return local.faults(s.snapshots.local, s.snapshots.chosen)
    return []


def architecture(s: Settings, results: str | Path) -> dict[str, Any]:
    """The configuration of the language model, from the nearest place that has it.

    Training here: the settings. Local: a folder's config.json. Hub: a snapshot that is there, what
    an earlier look fetched, the preset, or the hub.

    Parameters
    ----------
    results : the folder that holds the experiments' folders.

    Raises
    ------
    InputError : the hub alone knows it, and it cannot be reached.
    """
    source, steps = s.snapshots, s.snapshots.chosen
    if source.pretrain is not None:
        c = s.corpus
        return shape.config_of_pretrain(source.pretrain, c.vocabulary, c.context)
    if source.local is not None:
        folder = local.folders(source.local).get(steps[-1])
        if folder is None:
            raise InputError(local.faults(source.local, steps)[0])
        return _read(folder / "config.json")
    assert source.hub is not None, "there are three sources"
    for step in steps:
        there = Path(results) / s.name / "snapshots" / f"step{step}" / "config.json"
        if there.exists():
            return _read(there)
    names = [source.hub.repository, source.hub.revision]
    kept = Path(results) / "downloads" / "configs" / f"{digest_value(names)}.json"
    if kept.exists():
        return _read(kept)
    known = presets.architecture(source.hub.repository)
    if known is not None:
        return known
    found = hub.fetch_config(source.hub, steps[-1])
    write_json(kept, found)
    return found


def shape_of(s: Settings, results: str | Path) -> shape.Shape:
    """The language model's shape; kept beside the results, so that torch is loaded once."""
    return shape.cached(architecture(s, results), Path(results) / "downloads" / "shapes")


def weight_bytes(s: Settings, results: str | Path) -> int:
    """Bytes of a weight in the snapshots' files."""
    if s.snapshots.pretrain is not None:
        return 4
    config = architecture(s, results)
    kind = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return 2 if kind.endswith("16") else 4


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())
        raise InputError(f"{path}: not a model's configuration ({why}); make it again") from None
    return found
