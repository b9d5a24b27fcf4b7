"""Snapshots that are revisions of a repository of the Hugging Face hub.

What is wanted of a repository, and what is made of it; download.py gets the files. HF_HOME,
HF_HUB_CACHE, HF_ENDPOINT, HF_HUB_OFFLINE and HF_TOKEN mean what they mean elsewhere:
huggingface_hub reads them when it is imported, which happens when a function here is called first.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ontogeny.files import InputError, whole, write_json
from ontogeny.settings import Hub
from ontogeny.snapshots import download, presets, weights
from ontogeny.snapshots.local import missing, tokenizer_files

LOOK = 5.0  # seconds that a look before any job may take


def revisions(hub: Hub, steps: list[int]) -> dict[int, str]:
    """The revision of each step, by the pattern of the settings or the preset.

    `{step}`, also `{step:03d}`, is the step. `*` stands for what only a listing tells; without it
    nothing is asked of the network.

    Raises
    ------
    InputError : there is no pattern, or a step has no revision or several that fit it.
    """
    pattern = _pattern(hub)
    if "*" not in pattern:
        return {step: pattern.format(step=step) for step in steps}
    with _told(hub):
        there = _there(pattern, download.names_of(hub.repository))
    found = {}
    for step in steps:
        match there.get(step, []):
            case []:
                raise InputError(_absent(hub, pattern, step, there))
            case [name]:
                found[step] = name
            case [first, second, *_]:
                raise InputError(
                    f"snapshots.hub.revision: {first} and {second} of {hub.repository} both fit "
                    f"{pattern} at step {step}; narrow the pattern"
                )
    return found


def faults(hub: Hub, steps: list[int]) -> list[str]:
    """What is known to keep these steps from being fetched, one line each with the mend.

    The hub is asked once, and briefly; where it cannot be reached, the preset's steps are what is
    known.
    """
    from huggingface_hub.errors import HfHubHTTPError

    try:
        pattern = _pattern(hub)
    except InputError as error:
        return [str(error)]
    try:
        there = _there(pattern, download.refs(hub.repository, LOOK))
    except HfHubHTTPError as error:
        if not download.passing(error):
            return [_problem(error, hub)]
    except download.unreachable():
        pass
    else:
        lines = []
        for step in steps:
            names = there.get(step, [])
            if not names:
                lines.append(_absent(hub, pattern, step, there))
            elif len(names) > 1:
                lines.append(
                    f"snapshots.hub.revision: {names[0]} and {names[1]} of {hub.repository} both "
                    f"fit {pattern} at step {step}; narrow the pattern"
                )
        return lines
    preset = presets.find(hub.repository)
    if hub.revision is not None or preset is None or not preset.steps:
        return []
    known = list(preset.steps)
    return [
        f"snapshots.steps: {missing(hub.repository, step, known)}"
        for step in steps
        if step not in known
    ]


def fetch(
    hub: Hub, step: int, output: Path, remote_code: bool = False, slots: Path | None = None
) -> None:
    """Make the snapshot folder of a step: config.json, safetensors and source.json.

    A folder that is finished already is left alone, and files in the cache are not fetched again.

    Parameters
    ----------
    output : the folder to make, whole or not at all.
    remote_code : bring the repository's Python files too.
    slots : a folder of lock files, by which all processes together download at most hub.parallel
        files at once.

    Raises
    ------
    InputError : the hub has no such repository, revision or weights, does not let this user in or
        cannot be reached, or a file is wrong however often it is fetched.
    """
    if _finished(hub, step, output, remote_code):
        return
    revision = revisions(hub, [step])[step]
    with _told(hub, step, revision):
        commit, files = download.listing(hub.repository, revision)
        where = f"{hub.repository} at {revision}"
        chosen = weights.choice(files)
        if weights.CONFIG not in files or chosen is None:
            lacks = weights.CONFIG if chosen else f"{weights.SINGLE} or {weights.BIN}"
            raise InputError(f"snapshots.hub: {where} has no {lacks}; choose other steps")
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
    with whole(output) as draft:
        placed = weights.place(
            got[weights.CONFIG].path.parent,
            draft,
            remote_code,
            {name: file.sha256 for name, file in got.items()},
        )
        origin = {"repository": hub.repository, "revision": revision, "commit": commit}
        about = {**origin, "step": step, "remote_code": remote_code, **placed}
        write_json(draft / "source.json", about)
    for name in placed.get("converted", ()):
        if got[name].downloaded:
            download.discard(got[name].path)  # it is of no more use, and as large as the snapshot


def fetch_tokenizer(
    hub: Hub, steps: list[int], output: Path, remote_code: bool = False, slots: Path | None = None
) -> None:
    """Make a folder of the tokenizer's files and source.json.

    The tokenizer is that of hub.tokenizer, else of the preset; else the repository's at the last
    of the steps, or at main where that revision has none.

    Raises
    ------
    InputError : there is no tokenizer, or as for `fetch`.
    """
    preset = presets.find(hub.repository)
    elsewhere = hub.tokenizer or (preset.tokenizer if preset else None)
    if elsewhere and elsewhere != hub.repository:
        places = [(elsewhere, "main")]
    else:
        places = [(hub.repository, revisions(hub, steps[-1:])[steps[-1]]), (hub.repository, "main")]
    for repository, revision in places:
        there = hub.model_copy(update={"repository": repository})
        key = "snapshots.hub.tokenizer" if repository == hub.tokenizer else "snapshots.hub"
        with _told(there, None if revision == "main" else steps[-1], revision, key):
            commit, files = download.listing(repository, revision)
            names = tokenizer_files(files, code=remote_code)
            if not names:
                continue
            got = download.get(there, commit, files, names, slots)
        with whole(output) as draft:
            draft.mkdir()
            for name in names:
                shutil.copyfile(got[name].path, draft / name)
            origin = {"repository": repository, "revision": revision, "commit": commit}
            write_json(draft / "source.json", origin)
        return
    raise InputError(
        f"snapshots.hub.tokenizer: {places[0][0]} has no tokenizer files; name a repository that "
        "has the model's tokenizer"
    )


def fetch_config(hub: Hub, step: int) -> dict[str, Any]:
    """The configuration of the model at a step: from the cache, else from the hub.

    Raises
    ------
    InputError : as for `fetch`.
    """
    from huggingface_hub import try_to_load_from_cache

    revision = revisions(hub, [step])[step]
    cached = try_to_load_from_cache(hub.repository, weights.CONFIG, revision=revision)
    if isinstance(cached, str):
        path = Path(cached)
    else:
        with _told(hub, step, revision):
            commit, files = download.listing(hub.repository, revision)
            if weights.CONFIG not in files:
                raise InputError(
                    f"snapshots.hub: {hub.repository} at {revision} has no {weights.CONFIG}; "
                    "choose other steps"
                )
            path = download.get(hub, commit, files, [weights.CONFIG], None)[weights.CONFIG].path
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise InputError(f"{path}: no model's configuration; delete it and run again") from None


def _pattern(hub: Hub) -> str:
    """The pattern of the revisions' names."""
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
            f"snapshots.hub.revision: {pattern} is no pattern; {{step}} or {{step:03d}} alone may "
            "stand in braces"
        ) from None
    return pattern


def _expression(pattern: str, step: int | None = None) -> str:
    """The regular expression of a pattern at a step; at any, which is the group `step`, if None."""
    expression = ""
    seen = False
    for part in re.split(r"(\{step[^}]*\}|\*)", pattern):
        if part == "*":
            expression += ".*"
        elif part.startswith("{step"):
            digits = r"\d+" if seen else r"(?P<step>\d+)"
            digits = digits if step is None else part.format(step=step)
            seen = True
            # the digits of a step are all that stand there, so that * eats none of them
            expression += rf"(?<!\d){digits}(?!\d)"
        else:
            expression += re.escape(part)
    return expression


def _there(pattern: str, names: Iterable[str]) -> dict[int, list[str]]:
    """The names that fit a pattern, by step, ascending."""
    found: dict[int, list[str]] = {}
    for name in sorted(set(names)):
        match = re.fullmatch(_expression(pattern), name)
        if match and re.fullmatch(_expression(pattern, int(match["step"])), name):
            found.setdefault(int(match["step"]), []).append(name)
    return dict(sorted(found.items()))


def _absent(hub: Hub, pattern: str, step: int, there: Iterable[int]) -> str:
    """The fault of a step that the hub has not."""
    said = f"{hub.repository} has no step {step} (revision {pattern.format(step=step)})"
    near = missing("", step, there).partition("; ")[2]
    return f"snapshots.steps: {said}; {near or f'no revision of it fits {pattern}'}"


@contextmanager
def _told(
    hub: Hub, step: int | None = None, revision: str = "", key: str = "snapshots.hub"
) -> Iterator[None]:
    """Turn the hub's errors into InputError, one line each."""
    try:
        yield
    except download.failures() as error:
        raise InputError(_problem(error, hub, step, revision, key)) from None


def _problem(
    error: Exception,
    hub: Hub,
    step: int | None = None,
    revision: str = "",
    key: str = "snapshots.hub",
) -> str:
    """One of the hub's errors as one line with the mend."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = key if key.endswith("tokenizer") else f"{key}.repository"
    at = f"{hub.repository} at {revision}" if revision else hub.repository
    if isinstance(error, GatedRepoError):
        return (
            f"{name}: {hub.repository} is gated; accept its terms at "
            f"{constants.ENDPOINT}/{hub.repository} and set HF_TOKEN"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{name}: {hub.repository} is not on {constants.ENDPOINT}, or is private; correct it, "
            "or set HF_TOKEN"
        )
    if isinstance(error, RevisionNotFoundError) and step is not None:
        pattern = _pattern(hub)
        try:
            return _absent(hub, pattern, step, _there(pattern, download.refs(hub.repository, LOOK)))
        except download.failures():
            return f"snapshots.steps: {hub.repository} has no step {step} (revision {revision})"
    if isinstance(error, OfflineModeIsEnabled):
        return (
            f"{key}: {at} is not complete in {constants.HF_HUB_CACHE} and HF_HUB_OFFLINE is set; "
            "unset it"
        )
    if isinstance(error, HfHubHTTPError) and error.response.status_code == 401:
        return f"{name}: {constants.ENDPOINT} refuses the token; renew HF_TOKEN"
    said = " ".join(str(error.__cause__ or error).split())
    return (
        f"{key}: {at} cannot be had from {constants.ENDPOINT} ({said[:200]}); run again to go on, "
        "or see to the network"
    )


def _finished(hub: Hub, step: int, output: Path, remote_code: bool) -> bool:
    """Whether `output` is this snapshot already."""
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
