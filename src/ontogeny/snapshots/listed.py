"""What a hub's listings show about several revisions, before any weights are fetched.

A listing has the size and the digest of each file at a commit, so revisions with the same weights
are found without a download. Configurations and tokenizers are fetched if they differ.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import huggingface_hub as hf

from ontogeny.files import InputError, digest_value, write_json
from ontogeny.settings import Hub
from ontogeny.snapshots import download, hub, local, same, weights

AT_ONCE = 8
LARGEST_FETCHED = 32e6  # most bytes of a tokenizer that is fetched to be compared
WEIGHTS = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)")

Listing = dict[str, download.File]


def compared(chosen: Hub, steps: list[int], results: str | Path) -> tuple[list[str], list[str]]:
    """Differences between revisions that must be equal, and equalities that should be differences.

    Returns faults and doubts, one per line; none if the hub cannot be reached.

    Parameters
    ----------
    results : the folder under which listings are kept, since a commit never changes them.
    """
    try:
        listings = _listings(chosen, steps, Path(results) / "downloads" / "listings")
    except (InputError, *download.FAILURES):
        return [], []
    doubts = list(same.equal_lines(_equal_weights(listings), chosen.repository))
    files = {step: files for step, (_, files) in listings.items()}
    faults: list[str] = []
    try:
        more = _configs(chosen, listings)
        faults, doubts = [*faults, *more[0]], [*more[1], *doubts]
        if chosen.tokenizer is None:
            more = _tokenizers(chosen, listings)
            faults, doubts = [*faults, *more[0]], [*more[1], *doubts]
    except (InputError, OSError, *download.FAILURES):
        pass
    last = files[max(files)] if files else {}
    if chosen.tokenizer is None and local.tokenizer_files(last):
        unread = local.unreadable_tokenizer(chosen.repository, list(last))
        faults += [f"snapshots.hub.tokenizer: {unread}"] if unread else []
    lacking = {s: weights.lacking(names) for s, names in files.items() if weights.lacking(names)}
    for step, names in lacking.items():
        what = weights.instead(f"{chosen.repository} at step {step}", files[step])
        faults.append(
            f"snapshots.steps: {what or f'{chosen.repository} at step {step} has no {names[-1]}'}"
            f"{'' if what else '; choose other steps'}"
        )
    return faults, doubts


def _listings(chosen: Hub, steps: list[int], kept: Path) -> dict[int, tuple[str, Listing]]:
    """Commit and files of each step's revision, with one request per commit."""
    revisions = hub.revisions(chosen, steps)
    commits = download.commits(chosen.repository, hub.LOOK)
    wanted = {step: commits[name] for step, name in revisions.items() if name in commits}

    def one(commit: str) -> Listing:
        path = kept / chosen.repository / f"{commit}.json"
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
            return {name: download.File(*about) for name, about in given.items()}
        except (OSError, ValueError, TypeError):
            info = hf.HfApi().model_info(
                chosen.repository, revision=commit, files_metadata=True, timeout=hub.LOOK
            )
        files = download.files_of(info)
        write_json(path, {name: [file.size, file.digest] for name, file in files.items()})
        return files

    with ThreadPoolExecutor(AT_ONCE) as pool:
        made = dict(zip(wanted, pool.map(one, wanted.values()), strict=True))
    return {step: (wanted[step], files) for step, files in made.items()}


def _equal_weights(listings: Mapping[int, tuple[str, Listing]]) -> list[list[int]]:
    """Groups of steps whose weight files have the same digests."""
    groups: dict[str, list[int]] = {}
    for step, (_, files) in listings.items():
        chosen = weights.choice(files)
        ending = ".bin" if chosen in (weights.BIN, weights.BIN_INDEX) else ".safetensors"
        digests = [
            (name, file.digest)
            for name, file in sorted(files.items())
            if WEIGHTS.fullmatch(name) and name.endswith(ending)
        ]
        if digests and all(digest for _, digest in digests):
            groups.setdefault(digest_value(digests), []).append(step)
    return sorted(steps for steps in groups.values() if len(steps) > 1)


def _differing(
    chosen: Hub, listings: Mapping[int, tuple[str, Listing]], name: str
) -> dict[int, Path]:
    """A file of every step that has it, fetched once per content; {} if all are equal."""
    having = {step: files[name] for step, (_, files) in listings.items() if name in files}
    if len({file.digest for file in having.values()}) < 2:
        return {}
    if max(file.size for file in having.values()) > LARGEST_FETCHED:
        return {}
    fetched: dict[str | None, Path] = {}
    for step, file in having.items():
        if file.digest not in fetched:
            commit, files = listings[step]
            fetched[file.digest] = download.get(chosen, commit, files, [name], None)[name].path
    return {step: fetched[file.digest] for step, file in having.items()}


def _configs(
    chosen: Hub, listings: Mapping[int, tuple[str, Listing]]
) -> tuple[list[str], list[str]]:
    paths = _differing(chosen, listings, weights.CONFIG)
    read: Callable[[Path], dict[str, Any]] = weights.read_config
    return same.config_lines({s: read(p) for s, p in paths.items()}) if paths else ([], [])


def _tokenizers(
    chosen: Hub, listings: Mapping[int, tuple[str, Listing]]
) -> tuple[list[str], list[str]]:
    for name in local.TOKENIZER:
        if any(name in files for _, files in listings.values()):
            paths = _differing(chosen, listings, name)
            return same.tokenizer_lines(paths) if paths else ([], [])
    return [], []
