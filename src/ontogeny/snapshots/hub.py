"""Snapshots that are revisions of a repository of the Hugging Face hub.

huggingface_hub keeps the cache, the token and the protocol, so that HF_HOME, HF_HUB_CACHE,
HF_ENDPOINT, HF_HUB_OFFLINE and HF_TOKEN mean what they mean elsewhere; it reads them when it is
imported, which happens when a function here is called first. Plain HTTP bodies are read here and
not there, because huggingface_hub begins a file anew when its process was killed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ontogeny import progress
from ontogeny.files import InputError, whole, write_json, write_text
from ontogeny.settings import Hub
from ontogeny.snapshots import presets, weights
from ontogeny.snapshots.local import missing, tokenizer_files

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

TRIES = 5  # in a row without a new byte
MISMATCHES = 3
LONGEST_PAUSE = 4.0  # seconds between tries
LONGEST_WAIT = 300.0  # seconds, where the hub says how long: it counts requests in five minutes
LOOK = 5.0  # seconds that a look before any job may take
T = TypeVar("T")


@dataclass(frozen=True)
class File:
    """A file at a commit: its size in bytes, and its SHA-256 (LFS) or git's SHA-1 of its blob."""

    size: int
    digest: str | None


@dataclass(frozen=True)
class Got:
    """A file in the cache: its place there, its SHA-256, and whether it was downloaded just now."""

    path: Path
    sha256: str
    downloaded: bool


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
        there = _there(pattern, _names(hub.repository))
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
        there = _there(pattern, _refs(hub.repository, LOOK))
    except HfHubHTTPError as error:
        if not _passing(error):
            return [_problem(error, hub)]
    except _unreachable():
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
        commit, files = _listing(hub.repository, revision)
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
            index = _get(hub, commit, files, [chosen], slots)[chosen]
            parts = list(weights.shards(index.path))
            first.append(chosen)
        for name in parts:
            if name not in files:
                raise InputError(f"snapshots.hub: {where} has no {name}, which {chosen} names")
        got = _get(hub, commit, files, first + parts, slots, f"step {step}")
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
            _discard(got[name].path)  # it is of no more use, and as large as the snapshot


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
            commit, files = _listing(repository, revision)
            names = tokenizer_files(files, code=remote_code)
            if not names:
                continue
            got = _get(there, commit, files, names, slots)
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
            commit, files = _listing(hub.repository, revision)
            if weights.CONFIG not in files:
                raise InputError(
                    f"snapshots.hub: {hub.repository} at {revision} has no {weights.CONFIG}; "
                    "choose other steps"
                )
            path = _get(hub, commit, files, [weights.CONFIG], None)[weights.CONFIG].path
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


def _refs(repository: str, timeout: float) -> list[str]:
    """Names of the branches and tags of a repository. HfApi's own listing waits for ever."""
    from huggingface_hub import HfApi, get_session, hf_raise_for_status

    url = f"{HfApi().endpoint}/api/models/{repository}/refs"
    response = get_session().get(url, headers=_headers(), timeout=timeout)
    hf_raise_for_status(response)
    with _as_a_hub(url):
        listing = response.json()
        return [ref["name"] for kind in ("branches", "tags") for ref in listing[kind]]


@contextmanager
def _as_a_hub(url: str) -> Iterator[None]:
    """Turn an answer that is no hub's, such as a portal's page, into an error of the network."""
    import httpx2
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except HFValidationError:
        raise
    except (ValueError, LookupError, TypeError):
        raise httpx2.RemoteProtocolError(f"{url} answers otherwise than a hub") from None


def _headers() -> dict[str, str]:
    """Headers of a request to the hub, the user's token among them."""
    # its documented place, though the types do not export it
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    return build_hf_headers()


def _names(repository: str) -> list[str]:
    """Names of a repository's revisions: the hub's, or those in the cache where it is away."""
    from huggingface_hub import constants

    try:
        return _patiently(lambda: _refs(repository, constants.HF_HUB_DOWNLOAD_TIMEOUT))
    except _unreachable():
        refs = _home(repository) / "refs"
        cached = [str(path.relative_to(refs)) for path in refs.rglob("*") if path.is_file()]
        if not cached:
            raise
        return cached


def _home(repository: str) -> Path:
    """The repository's folder in huggingface_hub's cache."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    name = repo_folder_name(repo_id=repository, repo_type="model")
    return Path(constants.HF_HUB_CACHE).expanduser().resolve() / name


def _listing(repository: str, revision: str) -> tuple[str, dict[str, File]]:
    """The commit of a revision and its files, from the hub or, where it is away, the cache."""
    from huggingface_hub import HfApi, constants

    home = _home(repository)
    ref = home / "refs" / revision

    def ask() -> ModelInfo:
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with _as_a_hub(constants.ENDPOINT):
            return HfApi().model_info(
                repository, revision=revision, files_metadata=True, timeout=timeout
            )

    try:
        info = _patiently(ask)
    except _unreachable():
        commit = ref.read_text().strip() if ref.is_file() else revision
        folder = home / "snapshots" / commit
        if not folder.is_dir():
            raise
        return commit, {
            name: File((folder / name).stat().st_size, _named_digest(folder / name))
            for name in weights.present(folder)
        }
    commit = info.sha or revision
    if commit != revision and not (ref.is_file() and ref.read_text() == commit):
        write_text(ref, commit)
    return commit, {
        file.rfilename: File(file.size or 0, file.lfs.sha256 if file.lfs else file.blob_id)
        for file in info.siblings or []
    }


def _named_digest(path: Path) -> str | None:
    """The digest that a cached file should have: the cache's blobs are named by it."""
    name = path.resolve().name
    return name if re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", name) else None


def _get(
    hub: Hub,
    commit: str,
    files: dict[str, File],
    names: list[str],
    slots: Path | None,
    what: str | None = None,
) -> dict[str, Got]:
    """Get files into the cache, hub.parallel at once, under a bar called `what`."""
    stop = threading.Event()
    lock = threading.Lock()
    total = sum(files[name].size for name in names)
    with progress.bar(what, total, "B") if what else nullcontext() as bar:

        def advance(count: int) -> None:
            if stop.is_set():
                raise CancelledError
            if bar is not None:
                with lock:
                    bar.update(count)

        with ThreadPoolExecutor(hub.parallel) as pool:
            jobs = {
                pool.submit(_obtain, hub, commit, name, files[name], slots, advance): name
                for name in names
            }
            try:
                return {jobs[job]: job.result() for job in as_completed(jobs)}
            except BaseException:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _obtain(
    hub: Hub,
    commit: str,
    name: str,
    file: File,
    slots: Path | None,
    advance: Callable[[int], None],
) -> Got:
    """Get one file into the cache, its digest verified."""
    got = _cached(hub, commit, name, file)
    if got is None:
        # not huggingface_hub's own lock, which it takes inside of this one
        home = _home(hub.repository)
        alone = f"{file.digest or commit + '.' + name}.whole.lock"
        places = [slots / f"{i}.lock" for i in range(hub.parallel)] if slots else []
        with (
            _one_of(places, advance) if places else nullcontext(),
            _one_of([home.parent / ".locks" / home.name / alone], advance),
        ):
            got = _cached(hub, commit, name, file)
            if got is None:
                return _download(hub, commit, name, file, advance)
    advance(file.size)
    return got


def _cached(hub: Hub, commit: str, name: str, file: File) -> Got | None:
    """The file in the cache, if it is there and sound. A damaged one is removed from it."""
    from huggingface_hub import constants, try_to_load_from_cache

    found = try_to_load_from_cache(hub.repository, name, revision=commit)
    if not isinstance(found, str):
        return None
    path = Path(found)
    digest, sha256 = _digests(path, file.digest)
    if file.digest is None or digest == file.digest:
        return Got(path, sha256, False)
    if constants.is_offline_mode():
        raise InputError(
            f"{path}: its hash is {digest}, not {file.digest}; unset HF_HUB_OFFLINE to get it again"
        )
    _discard(path)
    return None


def _download(hub: Hub, commit: str, name: str, file: File, advance: Callable[[int], None]) -> Got:
    """Download one file into the cache, again while its digest is wrong."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url

    url = hf_hub_url(hub.repository, name, revision=commit)
    head = _patiently(lambda: get_hf_file_metadata(url))
    etag = head.etag or file.digest
    wanted = file.digest or etag
    if etag is None or wanted is None or not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", wanted):
        raise InputError(f"snapshots.hub: {url} comes without a hash; is HF_ENDPOINT a hub?")
    home = _home(hub.repository)
    _check_space(home, file.size, name)
    blob = home / "blobs" / etag
    by_xet = head.xet_file_data is not None and not constants.HF_HUB_DISABLE_XET
    by_xet = by_xet and find_spec("hf_xet") is not None
    counted = 0

    def count(more: int) -> None:
        nonlocal counted
        counted += more
        advance(more)

    def enter(again: bool = False) -> Path:
        """The file's place in the cache under its commit, its blob fetched by Xet if need be."""
        return Path(
            hf_hub_download(
                hub.repository,
                name,
                revision=commit,
                force_download=again,
                tqdm_class=_feed(count),
            )
        )

    wrong: list[str] = []
    while len(wrong) < MISMATCHES:
        count(-counted)
        fresh = not blob.exists()  # else it is the same file of another commit
        if not fresh:
            path = _patiently(enter)
        elif by_xet:
            try:
                path = enter(again=bool(wrong))
            except (RuntimeError, OSError, ValueError):
                by_xet = False  # plain HTTP serves the same file
                continue
        else:
            path = blob.with_name(f"{etag}.incomplete")
            _stream(url, path, file.size, count)
        digest, sha256 = _digests(path, wanted)
        if digest == wanted:
            if path.suffix == ".incomplete":
                path.replace(blob)
                path = _patiently(enter)
            count(file.size - counted)
            return Got(path, sha256, fresh)
        wrong.append(digest)
        _discard(path)
    raise InputError(
        f"snapshots.hub: {name} of {hub.repository} at {commit} has the hash {wrong[-1]}, not "
        f"{wanted}, each of {MISMATCHES} times; is a proxy between here and the hub?"
    )


def _stream(url: str, part: Path, size: int, advance: Callable[[int], None]) -> None:
    """Append to `part` what it lacks of a body of `size` bytes, however often that breaks."""
    import httpx2
    from huggingface_hub import constants, get_session, hf_raise_for_status

    part.parent.mkdir(parents=True, exist_ok=True)
    part.touch()
    advance(part.stat().st_size)

    def append() -> None:
        have = part.stat().st_size
        if have == size:
            return
        # the token goes to the endpoint alone: the client drops it when sent on to another host
        headers = _headers() | {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
            follows = response.status_code == 206 and response.headers.get(
                "Content-Range", ""
            ).startswith(f"bytes {have}-")
            if response.status_code != 416:
                hf_raise_for_status(response)
            with part.open("ab") as body:
                if not follows:
                    advance(-have)
                    have = 0
                    body.truncate(0)
                if response.status_code != 416:
                    for chunk in response.iter_bytes():
                        body.write(chunk)
                        body.flush()  # a killed process resumes after what it has written
                        have += len(chunk)
                        advance(len(chunk))
                        if have > size:
                            return  # its digest will tell
        if have < size:
            raise httpx2.RemoteProtocolError(f"{url} ended after {have} of {size} bytes")

    _patiently(append, lambda: part.stat().st_size)


def _digests(path: Path, like: str | None) -> tuple[str, str]:
    """A file's digest of the kind of `like` (SHA-256, or git's SHA-1 of a blob) and its SHA-256."""
    by_git = like is not None and len(like) == 40
    sha256 = hashlib.sha256()
    git = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            sha256.update(chunk)
            if by_git:
                git.update(chunk)
    return (git if by_git else sha256).hexdigest(), sha256.hexdigest()


def _discard(path: Path) -> None:
    """Remove a file from the cache: its blob, and the link that leads there."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _check_space(home: Path, size: int, name: str) -> None:
    """Raise InputError where the cache's disk has no room for a file."""
    home.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(home).free
    if size > free:
        raise InputError(
            f"{home}: {name} needs {size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; make room or "
            "set HF_HUB_CACHE to a larger disk"
        )


@contextmanager
def _one_of(files: list[Path], look: Callable[[int], None]) -> Iterator[None]:
    """Hold the lock of one of the files, waiting for it; `look` may raise to end the wait.

    The system drops a lock when its process dies, and a thread waits for another's as well.
    """
    while True:
        for path in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                except OSError:
                    pass  # a file system without locks: what is fetched is verified all the same
                yield
                return
        look(0)
        time.sleep(0.1)


def _feed(advance: Callable[[int], None]) -> type:
    """A bar for huggingface_hub that shows nothing and passes on its counts."""
    from tqdm import tqdm

    class Feed(tqdm):
        def __init__(self, *_: Any, **__: Any) -> None:
            super().__init__(disable=True)

        def update(self, n: float | None = 1) -> None:
            advance(int(n or 0))

        def update_transfer(self, n: float | None = 1) -> None:
            """Bytes on the wire, of which `update` tells once they are in the file."""

        def set_transfer_postfix_str(self, *_: Any, **__: Any) -> None:
            """Nothing to show."""

    return Feed


def _patiently(call: Callable[[], T], done: Callable[[], int] = lambda: 0) -> T:
    """What `call` returns, called again after passing errors: TRIES times without progress."""
    failures = 0
    while True:
        before = done()
        try:
            return call()
        except _failures() as error:
            failures = failures + 1 if done() == before else 1
            if failures == TRIES or not _passing(error):
                raise
            time.sleep(_pause(error, failures))


def _pause(error: Exception, failures: int) -> float:
    """Seconds to wait before the next try: growing, or what the hub asks of who asked too much."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    asked = re.fullmatch(r"(\d+)", headers.get("Retry-After", "")) or re.search(
        r"\br=0\b.*\bt=(\d+)", headers.get("RateLimit", "")
    )
    if asked:
        return min(float(asked[1]), LONGEST_WAIT)
    return min(0.25 * 2**failures, LONGEST_PAUSE)


def _failures() -> tuple[type[Exception], ...]:
    """All errors of a request to the hub."""
    from huggingface_hub.errors import (
        FileMetadataError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    known = (HfHubHTTPError, FileMetadataError, HFValidationError, LocalEntryNotFoundError)
    return (*known, *_unreachable())


def _unreachable() -> tuple[type[Exception], ...]:
    """Errors that say that the hub is away, or is to be left alone."""
    import httpx2
    from huggingface_hub.errors import OfflineModeIsEnabled

    return (httpx2.TransportError, OfflineModeIsEnabled)


def _passing(error: BaseException | None) -> bool:
    """Whether an error may be gone at the next try."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if isinstance(error, LocalEntryNotFoundError):
        return _passing(error.__cause__)
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    return isinstance(error, httpx2.TransportError)


@contextmanager
def _told(
    hub: Hub, step: int | None = None, revision: str = "", key: str = "snapshots.hub"
) -> Iterator[None]:
    """Turn the hub's errors into InputError, one line each."""
    try:
        yield
    except _failures() as error:
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
            return _absent(hub, pattern, step, _there(pattern, _refs(hub.repository, LOOK)))
        except _failures():
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
