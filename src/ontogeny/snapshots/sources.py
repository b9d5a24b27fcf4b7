"""What the three sources of snapshots have in common: steps, architecture, faults known early."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ontogeny.files import InputError, digest_value, write_json
from ontogeny.settings import Settings, load
from ontogeny.snapshots import local, presets, shape, weights


def resolve(settings: Settings) -> Settings:
    """The settings with `snapshots.steps: all` replaced by the steps that are there.

    InputError where there are none, SettingsError where they do not fit the rest.
    """
    if settings.snapshots.steps != "all" or settings.snapshots.local is None:
        return settings
    given = settings.model_dump(mode="json")
    given["snapshots"]["steps"] = local.resolve_steps(settings.snapshots.local)
    return load(given)


def faults(settings: Settings, results: str | Path) -> list[str]:
    """What is known before any job to be wrong with the snapshots, a line each with the mend.

    A hub is not asked about snapshots that are there.
    """
    source = settings.snapshots
    if source.local is not None:
        return local.faults(source.local, source.chosen)
    folder = Path(results) / settings.name / "snapshots"
    absent = [step for step in source.chosen if not (folder / f"step{step}").is_dir()]
    if source.hub is None or not absent:
        return []
    from ontogeny.snapshots import hub

    return hub.faults(source.hub, absent)


def publish(
    settings: Settings,
    step: int,
    output: Path,
    archive: Path | None = None,
    slots: Path | None = None,
) -> None:
    """Make the folder of a step's snapshot, wherever it comes from; whole or not at all.

    Parameters
    ----------
    output : the folder: config.json, safetensors, and source.json of what was not trained here.
    archive : the training states, of a model that is trained here.
    slots : lock files by which all processes together count their downloads from a hub.

    Raises
    ------
    InputError : the archive, the folders or the hub do not have the step, or not whole.
    """
    source = settings.snapshots
    if source.local is not None:
        local.publish(source.local, step, output)
    elif source.hub is not None:
        from ontogeny.snapshots import hub

        hub.publish(source.hub, step, output, source.remote_code, slots)
    else:
        assert archive is not None, "what is trained here lies in an archive"
        state = archive / f"step{step}"
        if not state.is_dir():
            raise InputError(
                f"{state}: no such training state; run again with --forcerun pretrain to make it"
            )
        weights.copy((state / name for name in (weights.CONFIG, weights.SINGLE)), output)


def tokenizer(settings: Settings, output: Path, slots: Path | None = None) -> None:
    """Make the folder of the tokenizer of a model that is not trained here; `slots` as above.

    InputError where there is no tokenizer, or the hub cannot be reached.
    """
    source = settings.snapshots
    if source.local is not None:
        local.tokenizer(source.local, source.chosen, output)
    elif source.hub is not None:
        from ontogeny.snapshots import hub

        hub.tokenizer(source.hub, source.chosen, output, slots)
    else:
        raise InputError("snapshots.pretrain: the tokenizer is trained with the corpus")


def architecture(settings: Settings, results: str | Path) -> dict[str, Any]:
    """The configuration of the language model, from the nearest that has it.

    Training here: the settings. Local: a folder's config.json. Hub: a snapshot that is there, what
    an earlier look fetched, the preset, or the hub: InputError where it cannot be reached.

    Parameters
    ----------
    results : the folder that holds the experiments' folders.
    """
    source, steps = settings.snapshots, settings.snapshots.chosen
    if source.pretrain is not None:
        corpus = settings.corpus
        return shape.config_of_pretrain(source.pretrain, corpus.vocabulary, corpus.context)
    if source.local is not None:
        folder = local.folders(source.local).get(steps[-1])
        if folder is None:
            raise InputError(local.faults(source.local, steps)[0])
        return weights.read_config(folder / weights.CONFIG)
    assert source.hub is not None, "there are three sources"
    snapshots = Path(results) / settings.name / "snapshots"
    names = [source.hub.repository, source.hub.revision]
    kept = Path(results) / "downloads" / "configs" / f"{digest_value(names)}.json"
    for path in (*(snapshots / f"step{step}" / weights.CONFIG for step in steps), kept):
        if path.exists():
            return weights.read_config(path)
    config = presets.architecture(source.hub.repository)
    if config is None:
        from ontogeny.snapshots import hub

        config = hub.fetch_config(source.hub, steps[-1])
        write_json(kept, config)
    return config


def shape_of(settings: Settings, results: str | Path) -> shape.Shape:
    """The language model's shape; kept beside the results, so that torch is loaded once."""
    folder = Path(results) / "downloads" / "shapes"
    return shape.cached(architecture(settings, results), folder)


def weight_bytes(settings: Settings, results: str | Path) -> int:
    """Bytes of a weight in the snapshots' files."""
    if settings.snapshots.pretrain is not None:
        return 4
    config = architecture(settings, results)
    kind = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return 2 if kind.endswith("16") else 4
