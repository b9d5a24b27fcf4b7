"""Download files from a repository on the Hugging Face hub into huggingface_hub's cache, robustly.

Requests are retried after broken connections and from busy servers, an interrupted download
continues where it ended, and digests are verified. huggingface_hub provides the cache, the token
and the protocol; plain HTTP bodies are read here because huggingface_hub starts a file again if its
process was killed.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import huggingface_hub as hf
from huggingface_hub import constants, errors
from huggingface_hub.file_download import repo_folder_name

# This is its documented location, although the types do not export it.
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]
from tqdm import tqdm

from ontogeny import locks, progress
from ontogeny.files import InputError, write_text
from ontogeny.settings import Hub
from ontogeny.snapshots import weights

TRIES = 5  # tries in a row without a new byte
MISMATCHES = 3
LONGEST_PAUSE = 4.0  # seconds between tries
LONGEST_WAIT = 300.0  # most seconds to wait if the hub says how long (it counts over 300 s)
DIGEST = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")  # git's SHA-1, or SHA-256

# The hub is unreachable, or offline mode is set.
UNREACHABLE = (httpx2.TransportError, errors.OfflineModeIsEnabled)
# All errors that a request to the hub can raise.
FAILURES = (
    errors.HfHubHTTPError,
    errors.FileMetadataError,
    errors.HFValidationError,
    errors.LocalEntryNotFoundError,
    *UNREACHABLE,
)
T = TypeVar("T")


@dataclass(frozen=True)
class File:
    """A file at a commit: its size in bytes, and its SHA-256 (LFS) or git's SHA-1 of its blob."""

    size: int
    digest: str | None


@dataclass(frozen=True)
class Got:
    """A file in the cache: its path, its SHA-256, and whether it was downloaded just now."""

    path: Path
    sha256: str
    downloaded: bool


def refs(repository: str, timeout: float) -> list[str]:
    """Names of the branches and tags of a repository."""
    return list(commits(repository, timeout))


def commits(repository: str, timeout: float) -> dict[str, str]:
    """The commit of each branch and tag, with a timeout, which HfApi's own listing lacks."""
    url = f"{hf.HfApi().endpoint}/api/models/{repository}/refs"
    response = hf.get_session().get(url, headers=build_hf_headers(), timeout=timeout)
    hf.hf_raise_for_status(response)
    with _as_a_hub(url):
        answer = response.json()
        every = [ref for kind in ("tags", "branches") for ref in answer[kind]]
        return {ref["name"]: ref["targetCommit"] for ref in every}


@contextmanager
def _as_a_hub(url: str) -> Iterator[None]:
    """Turn an answer that is not from a hub, such as a portal's page, into a network error."""
    try:
        yield
    except errors.HFValidationError:
        raise
    except (ValueError, LookupError, TypeError):
        raise httpx2.RemoteProtocolError(f"{url} does not answer like a hub") from None


def names_of(repository: str) -> list[str]:
    """Names of a repository's revisions, from the hub or, if it is unreachable, the cache."""
    try:
        return _patiently(lambda: refs(repository, constants.HF_HUB_DOWNLOAD_TIMEOUT))
    except UNREACHABLE:
        kept = _home(repository) / "refs"
        cached = [str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file()]
        if not cached:
            raise
        return cached


def _home(repository: str) -> Path:
    """The repository's folder in huggingface_hub's cache."""
    name = repo_folder_name(repo_id=repository, repo_type="model")
    return Path(constants.HF_HUB_CACHE).expanduser().resolve() / name


def listing(repository: str, revision: str) -> tuple[str, dict[str, File]]:
    """The commit of a revision and its files, from the hub or, if it is unreachable, the cache."""
    home = _home(repository)
    ref = home / "refs" / revision

    def ask() -> hf.ModelInfo:
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with _as_a_hub(constants.ENDPOINT):
            return hf.HfApi().model_info(
                repository, revision=revision, files_metadata=True, timeout=timeout
            )

    try:
        info = _patiently(ask)
    except UNREACHABLE:
        commit = ref.read_text().strip() if ref.is_file() else revision
        folder = home / "snapshots" / commit
        if not folder.is_dir():
            raise
        cached = {name: (folder / name).resolve() for name in weights.present(folder)}
        return commit, {  # the cache's blobs are named by their digests
            name: File(blob.stat().st_size, blob.name if DIGEST.fullmatch(blob.name) else None)
            for name, blob in cached.items()
        }
    commit = info.sha or revision
    if commit != revision and not (ref.is_file() and ref.read_text() == commit):
        write_text(ref, commit)
    return commit, files_of(info)


def files_of(info: hf.ModelInfo) -> dict[str, File]:
    """The files in a listing that was requested with `files_metadata`."""
    return {
        file.rfilename: File(file.size or 0, file.lfs.sha256 if file.lfs else file.blob_id)
        for file in info.siblings or []
    }


def get(
    hub: Hub,
    commit: str,
    files: dict[str, File],
    names: list[str],
    slots: Path | None,
    what: str | None = None,
) -> dict[str, Got]:
    """Get files into the cache, hub.parallel at once, with a progress bar named `what`.

    `slots` is a folder of lock files that limits the downloads of all processes together to that.
    """
    stop = threading.Event()
    lock = threading.Lock()
    home = _home(hub.repository)
    turns = [slots / f"{i}.lock" for i in range(hub.parallel)] if slots else []
    total = sum(files[name].size for name in names)
    with progress.bar(what, total, "B") if what else nullcontext() as bar:

        def advance(count: int) -> None:
            if stop.is_set():
                raise CancelledError
            if bar is not None:
                with lock:
                    bar.update(count)

        def obtain(name: str) -> Got:
            file = files[name]
            got = _cached(hub, commit, name, file)
            if got is None:
                # This is not huggingface_hub's own lock, which it takes inside this one.
                alone = f"{file.digest or commit + '.' + name}.whole.lock"
                with (
                    _one_of(turns, advance) if turns else nullcontext(),
                    _one_of([home.parent / ".locks" / home.name / alone], advance),
                ):
                    got = _cached(hub, commit, name, file)
                    if got is None:
                        return _download(hub, commit, name, file, advance)
            advance(file.size)
            return got

        with ThreadPoolExecutor(hub.parallel) as pool:
            jobs = {pool.submit(obtain, name): name for name in names}
            try:
                return {jobs[job]: job.result() for job in as_completed(jobs)}
            except BaseException:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _cached(hub: Hub, commit: str, name: str, file: File) -> Got | None:
    """The file in the cache, if it is there and intact. A damaged file is removed."""
    cached = hf.try_to_load_from_cache(hub.repository, name, revision=commit)
    if not isinstance(cached, str):
        return None
    path = Path(cached)
    digest, sha256 = _digests(path, file.digest)
    if file.digest is None or digest == file.digest:
        return Got(path, sha256, False)
    if constants.is_offline_mode():
        raise InputError(
            f"{path}: its hash is {digest}, not {file.digest}; unset HF_HUB_OFFLINE to get it again"
        )
    discard(path)
    return None


def _download(hub: Hub, commit: str, name: str, file: File, advance: Callable[[int], None]) -> Got:
    """Download one file into the cache, and repeat while its digest is wrong."""
    url = hf.hf_hub_url(hub.repository, name, revision=commit)
    head = _patiently(lambda: hf.get_hf_file_metadata(url))
    etag = head.etag or file.digest
    wanted = file.digest or etag
    if etag is None or wanted is None or not DIGEST.fullmatch(wanted):
        raise InputError(f"snapshots.hub: {url} comes without a hash; is HF_ENDPOINT a hub?")
    home = _home(hub.repository)
    home.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(home).free
    if file.size > free:
        raise InputError(
            f"{home}: {name} needs {file.size / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are "
            "free; make room or set HF_HUB_CACHE to a larger disk"
        )
    blob = home / "blobs" / etag
    by_xet = head.xet_file_data is not None and not constants.HF_HUB_DISABLE_XET
    by_xet = by_xet and find_spec("hf_xet") is not None
    counted = 0

    def count(more: int) -> None:
        nonlocal counted
        counted += more
        advance(more)

    def enter(again: bool = False) -> Path:
        """The file's path in the cache under its commit; Xet fetches its blob if necessary."""
        path = hf.hf_hub_download(
            hub.repository, name, revision=commit, force_download=again, tqdm_class=_feed(count)
        )
        return Path(path)

    wrong: list[str] = []
    while len(wrong) < MISMATCHES:
        count(-counted)
        fresh = not blob.exists()  # otherwise another commit has the same file
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
        discard(path)
    raise InputError(
        f"snapshots.hub: {name} of {hub.repository} at {commit} has the hash {wrong[-1]}, not "
        f"{wanted}, each of {MISMATCHES} times; is a proxy between here and the hub?"
    )


def _stream(url: str, part: Path, size: int, advance: Callable[[int], None]) -> None:
    """Append the missing part of a body of `size` bytes to `part`, however often it breaks off."""
    part.parent.mkdir(parents=True, exist_ok=True)
    part.touch()
    advance(part.stat().st_size)

    def append() -> None:
        have = part.stat().st_size
        if have == size:
            return
        # Only the endpoint gets the token: the client drops it when it is redirected to another
        # host.
        headers = build_hf_headers() | {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with hf.get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
            beyond = response.status_code == 416  # `part` does not belong to the body: begin again
            if not beyond:
                hf.hf_raise_for_status(response)
            span = response.headers.get("Content-Range", "")
            with part.open("ab") as body:
                if response.status_code != 206 or not span.startswith(f"bytes {have}-"):
                    advance(-have)
                    have = 0
                    body.truncate(0)
                for chunk in () if beyond else response.iter_bytes():
                    body.write(chunk)
                    body.flush()  # a killed process resumes after what it has written
                    have += len(chunk)
                    advance(len(chunk))
                    if have > size:
                        return  # the digest will show whether it is complete
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


def discard(path: Path) -> None:
    """Remove a file from the cache: its blob, and the link that points to it."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


@contextmanager
def _one_of(files: list[Path], look: Callable[[int], None]) -> Iterator[None]:
    """Hold the lock of one of the files, waiting if necessary; `look` may raise to stop waiting.

    The system releases a lock when its process dies. Threads of one process also exclude each
    other.
    """
    while True:
        for path in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w") as file:
                if locks.hold(file) is False:
                    continue
                yield  # file systems without locks are fine, since what is fetched is verified
                return
        look(0)
        time.sleep(0.1)


def _feed(advance: Callable[[int], None]) -> type:
    """A progress bar for huggingface_hub that shows nothing and passes on its counts."""

    class Feed(tqdm):
        def __init__(self, *_: Any, **__: Any) -> None:
            super().__init__(disable=True)

        def update(self, n: float | None = 1) -> None:
            advance(int(n or 0))

        def update_transfer(self, n: float | None = 1) -> None:
            """Ignore bytes on the wire; `update` counts them when they are in the file."""

        def set_transfer_postfix_str(self, *_: Any, **__: Any) -> None:
            """Nothing to show."""

    return Feed


def _patiently(call: Callable[[], T], done: Callable[[], int] = lambda: 0) -> T:
    """Return the result of `call`, retrying after passing errors: TRIES times without progress."""
    failed = 0
    while True:
        before = done()
        try:
            return call()
        except FAILURES as error:
            failed = failed + 1 if done() == before else 1
            if failed == TRIES or not passing(error):
                raise
            headers = getattr(getattr(error, "response", None), "headers", {})
            asked = re.fullmatch(r"(\d+)", headers.get("Retry-After", "")) or re.search(
                r"\br=0\b.*\bt=(\d+)", headers.get("RateLimit", "")
            )
            growing = min(0.25 * 2**failed, LONGEST_PAUSE)
            time.sleep(min(float(asked[1]), LONGEST_WAIT) if asked else growing)


def passing(error: BaseException | None) -> bool:
    """Whether an error may not occur again at the next try."""
    if isinstance(error, errors.LocalEntryNotFoundError):
        return passing(error.__cause__)
    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    return isinstance(error, httpx2.TransportError)
