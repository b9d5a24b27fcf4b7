"""Snapshots that are revisions of a repository of the Hugging Face hub.

This module decides which files are needed and what is made of them; download.py gets the files.
HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_HUB_OFFLINE and HF_TOKEN have their usual meaning:
huggingface_hub reads them when it is imported, so import this module only if a hub is used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import constants, errors, try_to_load_from_cache

from ontogeny.files import InputError, one_line
from ontogeny.settings import Hub
from ontogeny.snapshots import download, kinds, presets, weights
from ontogeny.snapshots.local import missing, tokenizer_files

LOOK = 5.0  # seconds that a check before any job may take


def revisions(hub: Hub, steps: list[int]) -> dict[int, str]:
    """The revision of each step, by the pattern of the settings or the preset.

    `{step}`, also `{step:03d}`, is the step. `*` stands for what only a listing shows; without it
    no request is made. Raises InputError if there is no pattern, or not exactly one revision that
    matches it at a step.
    """
    pattern = _pattern(hub)
    if "*" not in pattern:
        return {step: pattern.format(step=step) for step in steps}
    with _explained(hub):
        published = _published(pattern, download.names_of(hub.repository))
    return {step: _only(hub, pattern, step, published) for step in steps}


def published_steps(hub: Hub) -> list[int]:
    """The steps of the repository's branches and tags, ascending; raises as `publish`."""
    pattern = _pattern(hub)
    with _explained(hub):
        return list(_published(pattern, download.names_of(hub.repository)))


def repository_names(hub: Hub) -> list[str]:
    """The names of all branches and tags of a repository; raises as `publish`."""
    with _explained(hub):
        return download.names_of(hub.repository)


def faults(hub: Hub, steps: list[int]) -> list[str]:
    """What is known to prevent these steps from being fetched, one line each with the correction.

    The hub is asked once, with a short timeout; if it cannot be reached, only the preset's steps
    are known.
    """
    try:
        pattern = _pattern(hub)
        published = _published(pattern, download.refs(hub.repository, LOOK))
    except InputError as error:
        return [str(error)]
    except download.FAILURES as error:
        if not download.passing(error) and not isinstance(error, download.UNREACHABLE):
            return [_problem(error, hub, None, "", "snapshots.hub")]
        preset = presets.find(hub.repository)
        known = preset.steps if preset is not None and hub.revision is None else None
        return [
            f"snapshots.steps: {missing(hub.repository, step, known)}"
            for step in steps
            if known and step not in known
        ]
    lines = []
    for step in steps:
        try:
            _only(hub, pattern, step, published)
        except InputError as error:
            lines.append(str(error))
    return lines


def publish(
    hub: Hub, step: int, output: Path, remote_code: bool = False, slots: Path | None = None
) -> None:
    """Make the snapshot folder of a step: config.json, safetensors and source.json.

    A finished folder is not changed, and files in the cache are not fetched again.

    Parameters
    ----------
    output : the folder to make; it appears only when it is complete.
    remote_code : whether to bring the repository's Python files too.
    slots : as for download.get.

    Raises
    ------
    InputError : the hub has no such repository, revision or weights, denies access or cannot be
        reached, or a file is wrong however often it is fetched.
    """
    if _finished(hub, step, output, remote_code):
        return
    revision = revisions(hub, [step])[step]
    with _explained(hub, step, revision):
        commit, files = download.listing(hub.repository, revision)
        where = f"{hub.repository} at {revision}"
        chosen = weights.choice(files)
        if chosen is None or weights.lacking(files):
            other = None if chosen else kinds.otherwise(where, files)
            mend = f", but {other}" if other else "; choose other steps"
            raise InputError(f"snapshots.hub: {where} has no {weights.lacking(files)[-1]}{mend}")
        first = [weights.CONFIG]
        if remote_code:
            first += [name for name in files if re.fullmatch(r"\w[\w.-]*\.py", name)]
        parts = [chosen]
        if chosen in (weights.INDEX, weights.BIN_INDEX):
            index = download.get(hub, commit, files, [chosen], slots)[chosen]
            parts = list(weights.shards(index.path))
            first.append(chosen)
        for name in parts:
            if name not in files:
                raise InputError(f"snapshots.hub: {where} has no {name}, which {chosen} names")
        got = download.get(hub, commit, files, first + parts, slots, f"step {step}")
    origin = {"repository": hub.repository, "revision": revision, "commit": commit}
    converted = weights.publish(
        got[weights.CONFIG].path.parent,
        output,
        {**origin, "step": step, "remote_code": remote_code},
        remote_code,
        {name: file.sha256 for name, file in got.items()},
    )
    for name in converted:
        if got[name].downloaded:
            download.discard(got[name].path)  # not needed any more, and as large as the snapshot


def tokenizer(hub: Hub, steps: list[int], output: Path, slots: Path | None = None) -> None:
    """Make a folder with the tokenizer's files and source.json.

    The tokenizer is that of hub.tokenizer or of the preset, or else the repository's at the last of
    the steps, or at main if that revision has none. Raises InputError if there is none, or as for
    `publish`.
    """
    preset = presets.find(hub.repository)
    repository = hub.tokenizer or (preset.tokenizer if preset else None) or hub.repository
    key = "snapshots.hub.tokenizer" if repository == hub.tokenizer else "snapshots.hub"
    owner = hub.model_copy(update={"repository": repository})
    tried = ["main"]
    if repository == hub.repository:
        tried.insert(0, revisions(hub, steps[-1:])[steps[-1]])
    for revision in tried:
        with _explained(owner, None if revision == "main" else steps[-1], revision, key):
            commit, files = download.listing(repository, revision)
            names = tokenizer_files(files)
            got = download.get(owner, commit, files, names, slots)
        if names:
            origin = {"repository": repository, "revision": revision, "commit": commit}
            weights.copy((got[name].path for name in names), output, origin)
            return
    raise InputError(
        f"snapshots.hub.tokenizer: {repository} has no tokenizer files; name a repository that "
        "has the model's tokenizer"
    )


def fetch_config(hub: Hub, step: int) -> dict[str, Any]:
    """The configuration of the model at a step, from the cache or the hub; raises as `publish`."""
    revision = revisions(hub, [step])[step]
    cached = try_to_load_from_cache(hub.repository, weights.CONFIG, revision=revision)
    if isinstance(cached, str):
        return weights.read_config(Path(cached))
    with _explained(hub, step, revision):
        commit, files = download.listing(hub.repository, revision)
        if weights.CONFIG not in files:
            where = f"{hub.repository} at {revision}"
            raise InputError(f"snapshots.hub: {where} has no {weights.CONFIG}; choose other steps")
        got = download.get(hub, commit, files, [weights.CONFIG], None)
    return weights.read_config(got[weights.CONFIG].path)


def _pattern(hub: Hub) -> str:
    """The pattern of the names of revisions."""
    preset = presets.find(hub.repository)
    pattern = hub.revision or (preset.revision if preset else None)
    if pattern is None:
        raise InputError(
            f"snapshots.hub.revision: missing, and {hub.repository} has no preset; name its "
            "revisions, such as step{step}"
        )
    try:
        pattern.format(step=0)
    except (LookupError, ValueError, AttributeError, TypeError):
        raise InputError(
            f"snapshots.hub.revision: {pattern} is not a pattern; only {{step}}, or for example "
            "{{step:03d}}, may be in braces"
        ) from None
    return pattern


def _expression(pattern: str, step: int | None = None) -> str:
    """The regular expression of a pattern at a step, or with a group `step` if it is None."""
    expression, digits = "", r"(?P<step>\d+)"
    for part in re.split(r"(\{step[^}]*\}|\*)", pattern):
        if part.startswith("{step"):
            # No other digits may be next to those of the step, so that * does not match some of
            # them.
            expression += rf"(?<!\d){digits if step is None else part.format(step=step)}(?!\d)"
            digits = r"\d+"
        else:
            expression += ".*" if part == "*" else re.escape(part)
    return expression


def _published(pattern: str, names: Iterable[str]) -> dict[int, list[str]]:
    """The names that match a pattern, by step, ascending."""
    by_step: dict[int, list[str]] = {}
    for name in sorted(set(names)):
        match = re.fullmatch(_expression(pattern), name)
        if match and re.fullmatch(_expression(pattern, int(match["step"])), name):
            by_step.setdefault(int(match["step"]), []).append(name)
    return dict(sorted(by_step.items()))


def _only(hub: Hub, pattern: str, step: int, published: dict[int, list[str]]) -> str:
    """The only name that matches a pattern at a step, or InputError."""
    match published.get(step, []):
        case [name]:
            return name
        case [first, second, *_]:
            raise InputError(
                f"snapshots.hub.revision: {first} and {second} of {hub.repository} both fit "
                f"{pattern} at step {step}; narrow the pattern"
            )
    near = missing("", step, published).partition("; ")[2]
    raise InputError(
        f"snapshots.steps: {hub.repository} has no step {step} (revision "
        f"{pattern.format(step=step)}); {near or f'no revision of it fits {pattern}'}"
    )


@contextmanager
def _explained(
    hub: Hub, step: int | None = None, revision: str = "", key: str = "snapshots.hub"
) -> Iterator[None]:
    """Turn the hub's errors into InputError, one line each."""
    try:
        yield
    except download.FAILURES as error:
        raise InputError(_problem(error, hub, step, revision, key)) from None


def _problem(error: Exception, hub: Hub, step: int | None, revision: str, key: str) -> str:
    """A line that describes one of the hub's errors, with the correction."""
    name = key if key.endswith("tokenizer") else f"{key}.repository"
    at = f"{hub.repository} at {revision}" if revision else hub.repository
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{name}: {hub.repository} is gated; accept its terms at "
            f"{constants.ENDPOINT}/{hub.repository} and set HF_TOKEN"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{name}: {hub.repository} is not on {constants.ENDPOINT}, or is private; correct it, "
            "or set HF_TOKEN"
        )
    if isinstance(error, errors.RevisionNotFoundError) and step is not None:
        pattern = _pattern(hub)
        try:
            _only(hub, pattern, step, _published(pattern, download.refs(hub.repository, LOOK)))
        except InputError as absent:
            return str(absent)
        except download.FAILURES:
            pass
        return f"snapshots.steps: {hub.repository} has no step {step} (revision {revision})"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return (
            f"{key}: {at} is not complete in {constants.HF_HUB_CACHE} and HF_HUB_OFFLINE is set; "
            "unset it"
        )
    if isinstance(error, errors.HfHubHTTPError) and error.response.status_code == 401:
        return f"{name}: {constants.ENDPOINT} refuses the token; renew HF_TOKEN"
    why = one_line(error.__cause__ or error, 200)
    return (
        f"{key}: cannot download {at} from {constants.ENDPOINT} ({why}); run again to continue, "
        "or check the network"
    )


def _finished(hub: Hub, step: int, output: Path, remote_code: bool) -> bool:
    """Whether `output` already is this snapshot."""
    try:
        about = json.loads((output / "source.json").read_text(encoding="utf-8"))
        return (
            (about["repository"], about["step"]) == (hub.repository, step)
            and bool(re.fullmatch(_expression(_pattern(hub), step), about["revision"]))
            and (about["remote_code"] or not remote_code)
            and all(
                (output / name).stat().st_size == file["size"]
                for name, file in about["files"].items()
            )
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
