"""What all three sources of snapshots share: steps, architecture, early checks."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from ontogeny.files import InputError, digest_value, write_json
from ontogeny.settings import Settings, load
from ontogeny.snapshots import local, presets, same, shape, weights


def resolve(settings: Settings, results: str | Path = "results") -> Settings:
    """The settings with `snapshots.steps: all` replaced by the steps that exist.

    These are the steps of the folders, and those of the experiment's last run that it still has
    snapshots of. So an experiment loses no step when a training removes its old checkpoints.

    Parameters
    ----------
    results : the folder that holds the experiments' folders.

    Raises
    ------
    InputError : there are none, or a step of the last run no longer exists anywhere.
    SettingsError : they do not fit the other settings.
    """
    source = settings.snapshots
    if source.steps != "all" or source.local is None:
        return settings
    before = remembered(settings, results)
    there = _kept(settings, results, before)
    steps = sorted({*local.all_steps(source.local), *there}) or local.resolve_steps(source.local)
    lost = [step for step in before if step not in steps]
    if lost:
        raise InputError(
            f"snapshots.steps: {source.local.where} had {same.steps_in_words(lost)} when "
            f"{Path(results) / settings.name} ran last, but no longer has; to continue without, "
            f"write steps: {steps}"
        )
    given = settings.model_dump(mode="json")
    given["snapshots"]["steps"] = steps
    return load(given)


def remembered(settings: Settings, results: str | Path) -> list[int]:
    """The steps of the experiment's last run on the same folders, by its resolved configuration.

    Empty if there was none.
    """
    assert settings.snapshots.local is not None
    path = Path(results) / settings.name / "config.yaml"
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))["snapshots"]
        if given["local"]["folders"] != settings.snapshots.local.folders:
            return []
        return [int(step) for step in given["steps"]]
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return []


def kept(settings: Settings, results: str | Path) -> list[int]:
    """The wanted steps whose imported snapshots the experiment already has, ascending."""
    return _kept(settings, results, settings.snapshots.chosen)


def _kept(settings: Settings, results: str | Path, steps: Iterable[int]) -> list[int]:
    """The steps whose snapshots exist, are complete, and come from the settings' source."""
    folder, source = Path(results) / settings.name / "snapshots", settings.snapshots
    whole = []
    for step in steps:
        snapshot = folder / f"step{step}"
        try:
            about = json.loads((snapshot / "source.json").read_text(encoding="utf-8"))
            sizes = {name: file["size"] for name, file in about["files"].items()}
            fits = all((snapshot / name).stat().st_size == size for name, size in sizes.items())
            if source.local is not None:
                fits = fits and local.step_of(source.local, about["folder"]) == step
            whole += [step] if fits else []
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return whole


def faults(settings: Settings, results: str | Path) -> list[str]:
    """Known faults of the snapshots before any job, one line each with the correction.

    A source is not asked about snapshots that the experiment already has.
    """
    source, there = settings.snapshots, kept(settings, results)
    if source.local is not None:
        lines = local.faults(source.local, source.chosen, there)
        return lines or _together(_found(settings, results))[0]
    absent = [step for step in source.chosen if step not in there]
    if source.hub is None or not absent:
        return []
    from ontogeny.snapshots import hub, listed

    lines = hub.faults(source.hub, absent)
    return lines or listed.compared(source.hub, source.chosen, results)[0]


def advice(settings: Settings, results: str | Path, every: bool = False) -> list[str]:
    """Doubts about snapshots that can be read, before a run.

    Parameters
    ----------
    every : whether the settings ask for all steps, so that the list can change by itself.
    """
    source, lines = settings.snapshots, doubts(settings, results)
    if source.hub is not None:
        from ontogeny.snapshots import listed

        return lines + listed.compared(source.hub, source.chosen, results)[1]
    if source.local is None:
        return lines
    changed = _changed(settings, results, every)
    return changed + local.advice(source.local, source.chosen) + lines


def doubts(settings: Settings, results: str | Path) -> list[str]:
    """Doubts about the snapshots themselves, as far as they can be read now, one per line."""
    source = settings.snapshots
    known = presets.doubts(source.hub.repository, source.chosen) if source.hub else []
    found = _found(settings, results)
    where = source.local.where if source.local else source.hub and source.hub.repository
    groups = same.equal_weights(same.contents(found))
    return known + _together(found)[1] + list(same.equal_lines(groups, where or "the snapshots"))


def read_from(settings: Settings, results: str | Path, step: int) -> list[str]:
    """The files from which a local snapshot is made, or was made if they no longer exist."""
    assert settings.snapshots.local is not None
    paths = [str(path) for path in local.sources(settings.snapshots.local, step)]
    if paths or not _kept(settings, results, [step]):
        return paths
    about = Path(results) / settings.name / "snapshots" / f"step{step}" / "source.json"
    return [str(path) for path in json.loads(about.read_text(encoding="utf-8")).get("read", [])]


def _found(settings: Settings, results: str | Path) -> dict[int, weights.Found]:
    """The weights of the wanted steps, in their folders or in the experiment."""
    source, found = settings.snapshots, {}
    folders = local.folders(source.local) if source.local is not None else {}
    for step in source.chosen:
        snapshot = Path(results) / settings.name / "snapshots" / f"step{step}"
        try:
            if source.local is not None and step in folders:
                found[step] = local.found_at(source.local, folders[step])
            elif snapshot.is_dir():
                found[step] = weights.find(snapshot)
        except InputError:
            continue  # it is reported where the snapshot is needed
    return found


def _together(found: dict[int, weights.Found]) -> tuple[list[str], list[str]]:
    """Differences between checkpoints in what has to be equal: faults, and doubts."""
    configs = {step: weights.read_config(each.config) for step, each in found.items()}
    if not found:
        return [], []
    faults, doubts = same.config_lines(configs)
    faults += [] if faults else same.shape_faults(same.contents(found))
    folders = {step: next(iter(each.files)).parent for step, each in found.items()}
    for name in local.TOKENIZER:
        having = {s: folder / name for s, folder in folders.items() if (folder / name).is_file()}
        if len(having) > 1:
            more = same.tokenizer_lines(having)
            return [*faults, *more[0]], [*doubts, *more[1]]
    return faults, doubts


def _changed(settings: Settings, results: str | Path, every: bool) -> list[str]:
    """Sentences about steps that have vanished from the folders, or appeared there."""
    source = settings.snapshots
    assert source.local is not None
    folders, lines = local.folders(source.local), []
    gone = [step for step in source.chosen if step not in folders]
    home = Path(results) / settings.name
    if gone:
        lines.append(
            f"snapshots.steps: {source.local.where} no longer has {same.steps_in_words(gone)}; "
            f"what {home} has read from them stays in use"
            + (f"; to leave them out, write steps: {sorted(folders)}" if every else "")
        )
    before = remembered(settings, results)
    new = [step for step in source.chosen if step not in before]
    if every and before and new:
        lines.append(
            f"snapshots.steps: {source.local.where} has {same.steps_in_words(new)}, new since "
            f"{home} ran last, so whatever depends on all snapshots is made again; to keep to the "
            f"previous steps, write steps: {before}"
        )
    return lines


def publish(
    settings: Settings,
    step: int,
    output: Path,
    archive: Path | None = None,
    slots: Path | None = None,
) -> None:
    """Make the folder of a step's snapshot from any source; it appears only when complete.

    Parameters
    ----------
    output : the folder: config.json, safetensors, and source.json if it was not trained here.
    archive : the training states of a model that is trained here.
    slots : lock files by which all processes together limit their downloads from a hub.

    Raises
    ------
    InputError : the archive, the folders or the hub lack the step, or it is incomplete there.
    """
    source = settings.snapshots
    if source.local is not None:
        local.publish(source.local, step, output)
    elif source.hub is not None:
        from ontogeny.snapshots import hub

        hub.publish(source.hub, step, output, source.remote_code, slots)
    else:
        assert archive is not None, (
            "the snapshots of a model that is trained here are in an archive"
        )
        state = archive / f"step{step}"
        if not state.is_dir():
            raise InputError(
                f"{state}: this training state is missing; run again with --forcerun pretrain to "
                "make it"
            )
        files = [state / name for name in (weights.CONFIG, weights.SINGLE)]
        for path in files:
            if not path.is_file():
                raise InputError(
                    f"{path}: this file of a training state is missing; delete {state} and run "
                    "again with --forcerun pretrain to make it"
                )
        weights.copy(files, output)


def tokenizer_files(settings: Settings, results: str | Path) -> list[Path]:
    """The files of a local model's tokenizer, from the source or as copied while it existed.

    Raises InputError if there is none.
    """
    source = settings.snapshots
    assert source.local is not None
    taken = Path(results) / settings.name / "corpus" / "own-tokenizer"
    try:
        return local.tokenizer_sources(source.local, source.chosen)
    except InputError:
        gone = source.chosen[-1] not in local.folders(source.local)
        if source.local.tokenizer is None and gone and taken.is_dir():
            names = local.tokenizer_files(weights.present(taken), code=True)
            return [taken / name for name in names]
        raise


def tokenizer(settings: Settings, output: Path, slots: Path | None = None) -> None:
    """Make the tokenizer's folder for a model that is not trained here; `slots` as above.

    Raises InputError if there is no tokenizer, or the hub cannot be reached.
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
    """The configuration of the language model, from the nearest place that has it.

    If it is trained here, the settings; if local, a folder's config.json; for a hub, an existing
    snapshot, the result of an earlier request, the preset, or the hub itself. Raises InputError if
    the hub cannot be reached.

    Parameters
    ----------
    results : the folder that holds the experiments' folders.
    """
    source, steps = settings.snapshots, settings.snapshots.chosen
    if source.pretrain is not None:
        corpus = settings.corpus
        return shape.config_of_pretrain(source.pretrain, corpus.vocabulary, corpus.context)
    if source.local is not None:
        found = _found(settings, results).get(steps[-1])
        if found is None:
            there = _kept(settings, results, steps)
            raise InputError(local.faults(source.local, steps, there)[0])
        return weights.read_config(found.config)
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
    """The language model's shape: known in advance for one that is trained here, else stored.

    It is stored next to the results, so that torch is loaded only once.
    """
    trained, corpus = settings.snapshots.pretrain, settings.corpus
    if trained is not None:
        return shape.of_pretrain(trained, corpus.vocabulary, corpus.context)
    folder = Path(results) / "downloads" / "shapes"
    return shape.cached(architecture(settings, results), folder)


def weight_bytes(settings: Settings, results: str | Path) -> int:
    """Bytes of a weight in the snapshots' files."""
    if settings.snapshots.pretrain is not None:
        return 4
    config = architecture(settings, results)
    kind = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return 2 if kind.endswith("16") else 4
