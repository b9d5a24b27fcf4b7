"""What a result was made from: digests of the code that a stage runs, versions, commit.

`code_digest` is what the rules keep as a parameter: Snakemake then runs a stage again when code
that it imports changes, and not for a comment, a docstring or a touched file.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent
DATA = (".cpp", ".mplstyle", ".yaml")  # files beside a module that are part of what it does
WORDS = "columns.yaml"  # but for this one, which says what tables hold
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


@cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """A node and all statements below it; expressions, the most of a tree, hold none."""
    yield node
    for name in ("body", "orelse", "finalbody", "handlers", "cases"):
        below = getattr(node, name, None)
        for each in below if isinstance(below, list) else ():
            yield from _statements(each)


@cache
def _root(package: str) -> Path | None:
    """The folder of a top-level package, without importing it."""
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


@cache
def _imports(path: Path, packages: frozenset[str]) -> set[str]:
    """Modules of some packages that a source imports, wherever in the file."""
    found = set()
    for node in _statements(_parse(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        found |= {n for n in names if n.split(".")[0] in packages and _file(n)}
    return found


MAPS = {"ontogeny", *(f"ontogeny.{name}" for name in ("experiment", "registry", "stages"))}


def _declares(module: str) -> bool:
    """Whether a module only says where things lie and what stages read, make and are set to.

    It computes nothing: values of settings reach a rule as parameters of their own, and paths as
    its files.
    """
    is_settings = module.startswith("ontogeny.settings") or module.endswith(".settings")
    return module in MAPS or is_settings or module.endswith((".declaration", ".declarations"))


def modules_of(module: str) -> list[str]:
    """The module and all of its package and of ours that it imports, sorted.

    The code of the packages that hold them counts too; modules that only declare things do not,
    nor what these import.
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
def _own_digest(path: Path) -> str:
    return hashlib.sha256(ast.dump(_without_docstrings(_parse(path))).encode()).hexdigest()


@cache
def code_digest(module: str) -> str:
    """Digest of the syntax trees, docstrings left out, of a module and all that it imports.

    Parameters
    ----------
    module : such as "ontogeny.corpus.build".
    """
    digest = hashlib.sha256()
    folders = set()
    for name in modules_of(module):
        path = _file(name)
        if path is None:
            continue
        digest.update(f"{name} {_own_digest(path)}\n".encode())
        folders.add(path.parent)
    for folder in sorted(folders - {ROOT}):
        for path in sorted(p for p in folder.iterdir() if p.suffix in DATA and p.name != WORDS):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    return {name: importlib.metadata.version(name) for name in ("ontogeny", *PACKAGES)}


def commit(folder: str | Path) -> str:
    """The git commit of a folder, with '+changes' where files differ from it; '' outside git."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    try:
        head = git("rev-parse", "HEAD")
        return head + ("+changes" if head and git("status", "--porcelain", "-uno") else "")
    except OSError:
        return ""
