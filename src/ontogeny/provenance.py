"""What a result was made from: digests of the code that a stage runs, versions, commit.

The rules have `code_digest` as a parameter: Snakemake then runs a stage again when code that it
imports changes, but not for a comment, a docstring or a touched file.
"""

from __future__ import annotations

import ast
import atexit
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent
DATA = (".cpp", ".mplstyle", ".yaml")  # files next to a module that affect what it does
WORDS = "columns.yaml"  # except this one, which describes tables
PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "h5py",
    "numpy",
    "scipy",
    "pandas",
    "matplotlib",
    "datasets",
    "huggingface-hub",
)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """A node and all statements below it; expressions, most of a tree, contain no statements."""
    yield node
    for name in ("body", "orelse", "finalbody", "handlers", "cases"):
        below = getattr(node, name, None)
        for each in below if isinstance(below, list) else ():
            yield from _statements(each)


@cache
def _root(package: str) -> Path | None:
    """The folder of a top-level package, found without importing it."""
    if package == "ontogeny":
        return ROOT
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


@cache
def _file(module: str) -> Path | None:
    """The source of a module, or None."""
    package, *parts = module.split(".")
    root = _root(package)
    if root is None:
        return None
    path = root.joinpath(*parts)
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@dataclass(frozen=True)
class Source:
    """Relevant content of a source file: modules named in its imports, and its code's digest."""

    imports: list[str]
    digest: str


def _named(tree: ast.Module) -> list[str]:
    """Everything that a source file may import, anywhere in it: modules, and names that may be."""
    named: list[str] = []
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            named += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            named += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return sorted(set(named))


def _digested(text: bytes) -> Source:
    tree = ast.parse(text)
    named = _named(tree)
    code = ast.dump(_without_docstrings(tree))
    return Source(named, hashlib.sha256(code.encode()).hexdigest())


# Parsing all source files takes a second at every start. Results are stored next to Python's own
# bytecode, by the content of the source and of this file, which defines what is looked for.
_KEPT = Path(importlib.util.cache_from_source(__file__)).with_suffix(".json")
_MOST = 1000  # most sources that are remembered; this package has fewer
_met: dict[str, Source] = {}


@cache
def _kept() -> dict[str, Source]:
    try:
        return {key: Source(**found) for key, found in json.loads(_KEPT.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


@cache
def _source(path: Path) -> Source:
    text = path.read_bytes()
    key = hashlib.sha256(Path(__file__).read_bytes() + text).hexdigest()
    _met[key] = _kept().get(key) or _digested(text)
    return _met[key]


@atexit.register
def _keep() -> None:
    """Store results for new source files; if that is impossible, they are parsed again."""
    if sys.dont_write_bytecode or _met.keys() <= _kept().keys():
        return
    both = _kept() | _met
    found = {key: vars(source) for key, source in (both if len(both) <= _MOST else _met).items()}
    with suppress(OSError):
        _KEPT.parent.mkdir(parents=True, exist_ok=True)
        draft = _KEPT.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(found))
        draft.replace(_KEPT)


@cache
def _imports(path: Path, packages: frozenset[str]) -> set[str]:
    """Modules of some packages that a source file imports."""
    named = _source(path).imports
    return {n for n in named if n.split(".")[0] in packages and _file(n)}


MAPS = {"ontogeny", *(f"ontogeny.{name}" for name in ("experiment", "registry", "stages"))}


def _declares(module: str) -> bool:
    """Whether a module only declares paths, and the inputs, outputs and settings of stages.

    Such a module computes nothing: values of settings reach a rule as separate parameters, and
    paths as its files.
    """
    is_settings = module.startswith("ontogeny.settings") or module.endswith(".settings")
    return module in MAPS or is_settings or module.endswith((".declaration", ".declarations"))


def modules_of(module: str) -> list[str]:
    """A module and all modules of its package and of this one that it imports, sorted.

    The packages' own code (__init__.py) counts too. Modules that only declare things do not, nor
    does what these import.
    """
    packages = frozenset({"ontogeny", module.split(".")[0]})
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _file(name)
        if name in seen or path is None or _declares(name):
            continue
        seen.add(name)
        waiting += _imports(path, packages)
        if "." in name:
            waiting.append(name.rpartition(".")[0])
    return sorted(seen)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in _statements(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [
                statement
                for statement in node.body
                if not (
                    isinstance(statement, ast.Expr)
                    and isinstance(statement.value, ast.Constant)
                    and isinstance(statement.value.value, str)
                )
            ]
    return tree


@cache
def code_digest(module: str) -> str:
    """Digest of the syntax trees, without docstrings, of a module and all that it imports.

    Parameters
    ----------
    module : name, such as "ontogeny.corpus.build".
    """
    digest = hashlib.sha256()
    folders = set()
    for name in modules_of(module):
        path = _file(name)
        if path is None:
            continue
        digest.update(f"{name} {_source(path).digest}\n".encode())
        folders.add(path.parent)
    for folder in sorted(folders - {ROOT}):
        for path in sorted(p for p in folder.iterdir() if p.suffix in DATA and p.name != WORDS):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    return {name: importlib.metadata.version(name) for name in ("ontogeny", *PACKAGES)}


def commit(folder: str | Path) -> str:
    """The git commit of a folder, with '+changes' if files differ from it; '' outside git."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    try:
        head = git("rev-parse", "HEAD")
        return head + ("+changes" if head and git("status", "--porcelain", "-uno") else "")
    except OSError:
        return ""
