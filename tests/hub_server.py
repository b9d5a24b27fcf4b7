"""A Hugging Face hub on loopback: models and datasets over HTTP, which misbehaves on demand.

It speaks what huggingface_hub 2.4 and datasets ask of a hub: revision info, branches and tags,
trees and paths, and files by HEAD and GET with ETags, LFS headers and ranges; no Xet, though it
can claim to. Clients read HF_ENDPOINT when they are imported, so a test runs them as a process
with `environment`.

    with HubServer() as hub:
        hub.add("someone/model", "step100", folder)
        hub.misbehave("model.safetensors", "cut", times=2)
        ... run a client with hub.environment(cache) ...
        assert [request.range for request in hub.gets("model.safetensors")] == [None, "bytes=..."]
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, quote, unquote, urlsplit

LFS = (".safetensors", ".bin", ".parquet", ".h5", ".msgpack", ".onnx", ".pt")
Kind = Literal["model", "dataset"]
Behaviour = Literal["cut", "error", "wrong", "slow", "stall", "busy"]


@dataclass(frozen=True)
class Blob:
    """A file's content and the names that git and LFS give it."""

    body: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.body).hexdigest()

    @property
    def git(self) -> str:
        """The SHA-1 of git's blob: of the pointer, for a file of LFS."""
        body = self.body
        if self.lfs:
            version = "version https://git-lfs.github.com/spec/v1"
            body = f"{version}\noid sha256:{self.sha256}\nsize {len(body)}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git


@dataclass
class Repository:
    """Commits, each a mapping of paths to blobs, and the branches and tags that name them."""

    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    gated: bool = False

    def commit(self, revision: str) -> str | None:
        if revision in self.commits:
            return revision
        return self.branches.get(revision) or self.tags.get(revision)


@dataclass
class Request:
    """What was asked, and what was sent."""

    method: str
    path: str
    file: str | None = None
    revision: str | None = None
    range: str | None = None
    token: str | None = None
    host: Literal["hub", "cdn"] = "hub"
    status: int = 0
    sent: int = 0
    at: float = field(default_factory=time.monotonic)


@dataclass
class Rule:
    """A misbehaviour of a file's GETs, for so many times; for ever if None."""

    behaviour: Behaviour
    times: int | None
    rate: float


class HubServer:
    """The hub. `with HubServer() as hub:` starts and stops it.

    Attributes
    ----------
    endpoint : its URL, for HF_ENDPOINT.
    requests : all requests so far, in the order of their arrival.
    most_at_once : most GETs of files that were being answered at a time.
    tokens : when set, the tokens that are known; others are refused. Without one, all may read.
    """

    def __init__(self, cdn: bool = False, xet: bool = False) -> None:
        """`cdn` sends GETs of LFS files on to another origin, as the real hub does.

        `xet` says that LFS files are to be had by Xet, and then lets none in there.
        """
        self.xet = xet
        self.repositories: dict[tuple[Kind, str], Repository] = {}
        self.requests: list[Request] = []
        self.rules: dict[str, list[Rule]] = {}
        self.tokens: set[str] | None = None
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._hub = self._server("hub")
        self._cdn = self._server("cdn") if cdn else None
        self.endpoint = f"http://127.0.0.1:{self._hub.server_address[1]}"

    def _server(self, host: Literal["hub", "cdn"]) -> ThreadingHTTPServer:
        handler = type("Handler", (_Handler,), {"hub": self, "host": host})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        return server

    def __enter__(self) -> HubServer:
        for server in filter(None, (self._hub, self._cdn)):
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for server in filter(None, (self._hub, self._cdn)):
            server.shutdown()
            server.server_close()

    def add(
        self,
        name: str,
        revision: str,
        files: Path | Mapping[str, bytes | str],
        kind: Kind = "model",
        tag: bool = False,
        gated: bool = False,
    ) -> str:
        """Publish files, or a folder's, as a branch or tag of a repository; returns the commit.

        A repository has the branch main from its beginning.
        """
        if isinstance(files, Path):
            paths = sorted(path for path in files.rglob("*") if path.is_file())
            files = {str(path.relative_to(files)): path.read_bytes() for path in paths}
        tree = {
            path: Blob(body.encode() if isinstance(body, str) else body, path.endswith(LFS))
            for path, body in files.items()
        }
        content = json.dumps([name, revision, {path: blob.git for path, blob in tree.items()}])
        commit = hashlib.sha1(content.encode()).hexdigest()
        repository = self.repositories.setdefault((kind, name), Repository())
        repository.gated |= gated
        repository.commits[commit] = tree
        (repository.tags if tag else repository.branches)[revision] = commit
        if "main" not in repository.branches:
            repository.branches["main"] = hashlib.sha1(name.encode()).hexdigest()
            repository.commits[repository.branches["main"]] = {}
        return commit

    def misbehave(
        self, file: str, behaviour: Behaviour, times: int | None = None, rate: float = 1e5
    ) -> None:
        """Answer GETs of a file, by its path in any repository, in one of these ways.

        cut ends the connection amid the body, error is status 500, busy is 429 and asks for a
        second's wait, wrong flips two bits, slow sends `rate` bytes a second, stall sends half
        and waits. `times` of them; for ever if None. Rules of a file are used up in their order.
        """
        self.rules.setdefault(file, []).append(Rule(behaviour, times, rate))

    def behave(self) -> None:
        """Forget all misbehaviour, and what was requested so far."""
        self.rules.clear()
        self.requests.clear()
        self.most_at_once = 0

    def gets(self, file: str) -> list[Request]:
        """GETs of a file, by its path in any repository, those sent on elsewhere left out."""
        return [
            request
            for request in self.requests
            if request.method == "GET" and request.file == file and request.status != 302
        ]

    def sent(self, file: str) -> int:
        """Bytes of a file's bodies that were sent."""
        return sum(request.sent for request in self.gets(file))

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """The environment of a client with its cache in `home`, and no token but those given."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        return kept | {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",
            **more,
        }

    def _rule(self, file: str) -> Rule | None:
        """The misbehaviour that is due, counted down."""
        with self._lock:
            for rule in self.rules.get(file, []):
                if rule.times is None:
                    return rule
                if rule.times > 0:
                    rule.times -= 1
                    return rule
        return None

    def _count(self, change: int) -> None:
        with self._lock:
            self._at_once += change
            self.most_at_once = max(self.most_at_once, self._at_once)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer
    host: Literal["hub", "cdn"]
    request_: Request

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: `requests` tells."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.request_ = Request(
            self.command, self.path, range=self.headers.get("Range"), token=token, host=self.host
        )
        self.hub.requests.append(self.request_)
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length).decode()
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        query = parse_qs(url.query) | parse_qs(body)
        if body.startswith("{"):
            query |= {k: v if isinstance(v, list) else [v] for k, v in json.loads(body).items()}
        try:
            if self.host == "cdn":
                self._from_cdn(parts)
            elif parts[0] == "portal":
                self._page()
            elif self.hub.tokens is not None and token and token not in self.hub.tokens:
                self._refuse(401, None, "Invalid credentials in Authorization header")
            elif parts[0] == "api" and parts[1:2] in (["models"], ["datasets"]):
                self._from_api("model" if parts[1] == "models" else "dataset", parts[2:], query)
            elif "resolve" in parts:
                kind: Kind = "dataset" if parts[0] == "datasets" else "model"
                self._from_files(kind, parts[1:] if kind == "dataset" else parts)
            else:
                self._refuse(404, None, "Not found")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _page(self) -> None:
        """What a hotel's network says to any request: log in first."""
        body = b"<html>Welcome</html>"
        self._head(200, {"Content-Type": "text/html", "Content-Length": str(len(body))})
        self.wfile.write(body)

    def _repository(self, kind: Kind, parts: list[str]) -> tuple[Repository, list[str]] | None:
        """The repository that a path begins with, and the rest of the path."""
        for length in (2, 1):
            found = self.hub.repositories.get((kind, "/".join(parts[:length])))
            if found is not None:
                return found, parts[length:]
        self._refuse(404 if self.request_.token else 401, "RepoNotFound", "Repository not found")
        return None

    def _from_api(self, kind: Kind, parts: list[str], query: dict[str, list[str]]) -> None:
        found = self._repository(kind, parts)
        if found is None:
            return
        repository, rest = found
        name = "/".join(parts[: len(parts) - len(rest)])
        if rest == ["refs"]:
            self._json(
                {
                    "branches": _refs("heads", repository.branches),
                    "converts": [],
                    "tags": _refs("tags", repository.tags),
                }
            )
            return
        what, revision, path = [*rest, "info", "main"][0], "main", ""
        if len(rest) > 1:
            revision, path = rest[1], "/".join(rest[2:])
        commit = repository.commit(revision)
        if commit is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        tree = repository.commits[commit]
        if what in ("info", "revision"):
            self._json(_info(name, kind, commit, repository, tree, "blobs" in query))
        elif what == "tree":
            recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            entries = _entries(tree, path, recursive)
            if path and not entries:
                self._refuse(404, "EntryNotFound", f"{path} does not exist on {revision}")
            else:
                self._json(entries)
        elif what == "paths-info":
            everything = {entry["path"]: entry for entry in _entries(tree, "", True)}
            wanted = [path.strip("/") for path in query.get("paths", [])]
            self._json([everything[path] for path in wanted if path in everything])
        else:
            self._refuse(404, None, "Not found")

    def _from_files(self, kind: Kind, parts: list[str]) -> None:
        found = self._repository(kind, parts[: parts.index("resolve")])
        if found is None:
            return
        repository, _ = found
        revision, *path = parts[parts.index("resolve") + 1 :]
        file = "/".join(path)
        self.request_.file, self.request_.revision = file, revision
        commit = repository.commit(revision)
        if commit is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        if repository.gated and not self.request_.token:
            self._refuse(401, "GatedRepo", "Access to this repository is restricted")
            return
        blob = repository.commits[commit].get(file)
        if blob is None:
            self._refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
            return
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob.etag}"'}
        if blob.lfs:
            headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.body))}
            if self.hub.xet:
                refresh = f"{self.hub.endpoint}/api/xet-read-token"
                headers |= {"X-Xet-Hash": blob.sha256, "X-Xet-Refresh-Route": refresh}
        if blob.lfs and self.hub._cdn is not None:
            port = self.hub._cdn.server_address[1]
            location = f"http://127.0.0.1:{port}/{blob.sha256}/{quote(file)}"
            self._head(302, headers | {"Location": location, "Content-Length": "0"})
        else:
            self._send(blob, file, headers)

    def _from_cdn(self, parts: list[str]) -> None:
        digest, *path = parts
        file = "/".join(path)
        self.request_.file = file
        for repository in self.hub.repositories.values():
            for tree in repository.commits.values():
                blob = tree.get(file)
                if blob is not None and blob.sha256 == digest:
                    self._send(blob, file, {"ETag": '"cdn"'})
                    return
        self._refuse(404, None, "Not found")

    def _send(self, blob: Blob, file: str, headers: dict[str, str]) -> None:
        """Send a file or a range of it, in the way that its rule says."""
        rule = self.hub._rule(file) if self.command == "GET" else None
        behaviour = rule.behaviour if rule else None
        if behaviour == "error":
            self._refuse(500, None, "Try again")
            return
        if behaviour == "busy":
            self._refuse(429, None, "Too many requests", {"Retry-After": "1"})
            return
        body = blob.body
        if behaviour == "wrong":
            body = bytes([body[0] ^ 1]) + body[1:-1] + bytes([body[-1] ^ 1])
        start, end = 0, len(body)
        asked = self.headers.get("Range")
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            if first:
                start, end = int(first), min(int(last) + 1 if last else end, end)
            else:
                start = max(0, end - int(last))
            if start >= len(body):
                headers |= {"Content-Range": f"bytes */{len(body)}", "Content-Length": "0"}
                self._head(416, headers)
                return
            headers |= {"Content-Range": f"bytes {start}-{end - 1}/{len(body)}"}
        headers |= {"Accept-Ranges": "bytes", "Content-Length": str(end - start)}
        self._head(206 if asked else 200, headers)
        if self.command == "HEAD":
            return
        self.hub._count(1)
        try:
            self._body(memoryview(body)[start:end], behaviour, rule.rate if rule else 0)
        finally:
            self.hub._count(-1)

    def _body(self, body: memoryview, behaviour: Behaviour | None, rate: float) -> None:
        half = len(body) // 2
        if behaviour in ("cut", "stall"):
            body = body[:half]
        step = max(1, int(rate / 50)) if behaviour == "slow" else 1 << 16
        for start in range(0, len(body), step):
            if self.hub._ending.is_set():
                break
            piece = body[start : start + step]
            self.wfile.write(piece)
            self.request_.sent += len(piece)
            if behaviour == "slow":
                time.sleep(len(piece) / rate)
        if behaviour == "stall":
            self.hub._ending.wait(60)
        if behaviour in ("cut", "stall"):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self._head(200, {"Content-Type": "application/json", "Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)
            self.request_.sent += len(body)

    def _refuse(
        self, status: int, code: str | None, message: str, headers: dict[str, str] | None = None
    ) -> None:
        headers = (headers or {}) | {"X-Error-Message": message, "Content-Length": "0"}
        self._head(status, headers | ({"X-Error-Code": code} if code else {}))

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.request_.status = status
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()


def _refs(kind: str, names: dict[str, str]) -> list[dict[str, str]]:
    return [
        {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit}
        for name, commit in names.items()
    ]


def _info(
    name: str, kind: Kind, commit: str, repository: Repository, tree: dict[str, Blob], blobs: bool
) -> dict[str, object]:
    """What is told of a revision."""
    siblings: list[dict[str, object]] = []
    for path, blob in tree.items():
        sibling: dict[str, object] = {"rfilename": path}
        if blobs:
            sibling |= {"size": len(blob.body), "blobId": blob.git}
            if blob.lfs:
                size = len(blob.body)
                sibling["lfs"] = {"sha256": blob.sha256, "size": size, "pointerSize": 130}
        siblings.append(sibling)
    return {
        "_id": hashlib.sha1(name.encode()).hexdigest()[:24],
        "id": name,
        ("modelId" if kind == "model" else "key"): name,
        "author": name.partition("/")[0],
        "sha": commit,
        "lastModified": "2024-01-01T00:00:00.000Z",
        "createdAt": "2024-01-01T00:00:00.000Z",
        "private": False,
        "gated": "auto" if repository.gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": siblings,
    }


def _entries(tree: dict[str, Blob], folder: str, recursive: bool) -> list[dict[str, object]]:
    """Files and folders below a folder, as the tree's listing has them."""
    found: dict[str, dict[str, object]] = {}
    below = f"{folder}/" if folder else ""
    for path, blob in sorted(tree.items()):
        if not path.startswith(below):
            continue
        parents = path[len(below) :].split("/")[:-1]
        for depth in range(1, len(parents) + 1 if recursive else min(2, len(parents) + 1)):
            parent = below + "/".join(parents[:depth])
            oid = hashlib.sha1(parent.encode()).hexdigest()
            found.setdefault(parent, {"type": "directory", "oid": oid, "size": 0, "path": parent})
        if recursive or not parents:
            entry: dict[str, object] = {
                "type": "file",
                "oid": blob.git,
                "size": len(blob.body),
                "path": path,
            }
            if blob.lfs:
                size = len(blob.body)
                entry["lfs"] = {"oid": blob.sha256, "size": size, "pointerSize": 130}
            found[path] = entry
    return list(found.values())
