"""One set of versions: pyproject.toml, the lock, torch.txt and the conda file must agree."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
RUNTIME = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
DEV = [Requirement(line) for line in EXTRAS]
# torch's own libraries for CUDA, which come with torch
CUDA = set(PYPROJECT["tool"]["uv"]["exclude-dependencies"])
MACHINES = [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")]


def read_requirements(path: Path) -> list[tuple[Requirement, list[str]]]:
    """Read each requirement of a pip requirements file, with its hashes."""
    entries = []
    for line in path.read_text().replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            specification, *hashes = re.split(r"\s+--hash=", line.strip())
            entries.append((Requirement(specification), hashes))
    return entries


def pinned_version(requirement: Requirement) -> str:
    (specifier,) = requirement.specifier
    assert specifier.operator == "==", f"{requirement} is not pinned"
    return specifier.version


LOCK = read_requirements(ROOT / "envs/requirements.lock")
TORCH = read_requirements(ROOT / "envs/torch.txt")
PINS = {entry.name: pinned_version(entry) for entry, _ in LOCK + TORCH}


def test_lock_pins_every_package_once_with_hashes() -> None:
    names = [entry.name for entry, _ in LOCK]
    assert names == sorted(set(names))
    for entry, hashes in LOCK:
        assert hashes, f"{entry.name} has no hash"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in hashes), entry.name


def test_lock_names_no_place_to_download_from() -> None:
    text = (ROOT / "envs/requirements.lock").read_text()
    assert not re.search(r"^-|://| @ ", text, re.MULTILINE)


def test_the_sites_tools_are_pinned_with_hashes() -> None:
    locked = read_requirements(ROOT / "envs/docs.lock")
    pinned = {entry.name: (entry, hashes) for entry, hashes in locked}
    for wanted, _ in read_requirements(ROOT / "envs/docs.in"):
        entry, _ = pinned[wanted.name]
        assert wanted.specifier.contains(pinned_version(entry))
    assert all(hashes for _, hashes in pinned.values())


def test_torch_alone_is_unhashed() -> None:
    (wanted,) = [requirement for requirement in RUNTIME if requirement.name == "torch"]
    assert TORCH == [(wanted, [])]
    assert "torch" not in {entry.name for entry, _ in LOCK}
    assert not [name for name in PINS if name in CUDA or name.startswith(("nvidia-", "cuda-"))]


@pytest.mark.parametrize("requirement", RUNTIME + DEV, ids=lambda requirement: requirement.name)
def test_direct_dependency_is_pinned_at_an_allowed_version(requirement: Requirement) -> None:
    assert requirement.specifier.contains(PINS[requirement.name])


USERS_OWN = {"lightning", "pytorch_lightning"}  # imported where a user's run has it


def test_every_package_that_is_imported_is_declared() -> None:
    names = importlib.metadata.packages_distributions()
    declared = {canonicalize_name(requirement.name) for requirement in RUNTIME} | {"ontogeny"}
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                imported = [node.module or ""]
            elif isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            else:
                continue
            packages = {name.split(".")[0] for name in imported} - sys.stdlib_module_names
            for package in packages - USERS_OWN:
                assert declared & {*map(canonicalize_name, names[package])}, f"{path}: {package}"


def test_direct_dependencies_are_locked_on_every_machine() -> None:
    conditional = {entry.name for entry, _ in LOCK if entry.marker}
    assert conditional.isdisjoint(requirement.name for requirement in RUNTIME + DEV)


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize(("platform", "machine"), MACHINES)
def test_lock_is_complete(python: str, platform: str, machine: str) -> None:
    """Follow what the installed packages ask for, as a machine of this kind would."""
    environment = default_environment() | {
        "platform_machine": machine,
        "platform_system": platform.capitalize(),
        "python_full_version": f"{python}.7",
        "python_version": python,
        "sys_platform": platform,
    }

    def applies(requirement: Requirement, extra: str = "") -> bool:
        marker = requirement.marker
        return marker is None or marker.evaluate(environment | {"extra": extra})

    pins = {entry.name: pinned_version(entry) for entry, _ in LOCK + TORCH if applies(entry)}
    todo = [(entry.name, extra) for entry in RUNTIME + DEV for extra in ("", *entry.extras)]
    done: set[tuple[str, str]] = set()
    while todo:
        name, extra = todo.pop()
        if (name, extra) in done:
            continue
        done.add((name, extra))
        try:
            wanted = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # needed on machines of that kind only
        for requirement in map(Requirement, wanted):
            child = canonicalize_name(requirement.name)
            if applies(requirement, extra) and child not in CUDA:
                assert child in pins, f"{name} needs {requirement}"
                assert requirement.specifier.contains(pins[child]), f"{name} needs {requirement}"
                todo += [(child, extra) for extra in ("", *requirement.extras)]
    assert len({name for name, _ in done}) > 50


def test_conda_file_agrees_with_the_pins() -> None:
    conda = yaml.safe_load((ROOT / "envs/ontogeny.yaml").read_text())
    *packages, pip = conda["dependencies"]
    versions = {entry.name: pinned_version(entry) for entry in map(Requirement, pip["pip"])}
    assert versions == {requirement.name: PINS[requirement.name] for requirement in RUNTIME}
    (python,) = [package for package in packages if package.startswith("python=")]
    assert SpecifierSet(PROJECT["requires-python"]).contains(python.removeprefix("python=") + ".0")


def test_every_direct_dependency_has_a_reason() -> None:
    lines = [line.strip() for line in (ROOT / "pyproject.toml").read_text().splitlines()]
    for requirement in PROJECT["dependencies"] + EXTRAS:
        reason = lines[lines.index(f'"{requirement}",') - 1]
        assert re.fullmatch(r"# \w.{9,}", reason), f"{requirement} has no reason"


# A stand-in for Python that writes down what it is asked, and fails where $BREAK occurs in that.
STAND_IN = """\
#!/bin/sh
echo "$*" >> asked
case "$*" in
    "-m venv --clear .venv") rm -rf .venv && mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    --version) echo Python 3.9.1 ;;
esac
case "$*" in *"$BREAK"*) exit 1 ;; esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Copy what `make env` reads, beside a stand-in for Python."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "envs", tmp_path / "envs")
    (tmp_path / "stand-in").write_text(STAND_IN)
    (tmp_path / "stand-in").chmod(0o755)
    return tmp_path


def make_env(checkout: Path, breaking: str = "nothing") -> subprocess.CompletedProcess[str]:
    outer = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"}
    environment = {key: value for key, value in os.environ.items() if key not in outer}
    return subprocess.run(
        ["make", "env", "PYTHON=./stand-in"],
        cwd=checkout,
        env=environment | {"BREAK": breaking},
        capture_output=True,
        text=True,
    )


def test_unsupported_python_is_refused_before_anything_is_made(checkout: Path) -> None:
    run = make_env(checkout, breaking="version_info")
    assert run.returncode != 0
    assert run.stderr.startswith(
        "Python 3.11 to 3.14 is needed, found Python 3.9.1: make PYTHON=/path/to/python3.11\n"
    )
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize(
    "step", ["-m venv", "requirements.lock", "torch.txt", "-e .", "version-check check"]
)
def test_environment_is_complete_only_when_every_step_succeeded(checkout: Path, step: str) -> None:
    broken = make_env(checkout, breaking=step)
    assert broken.returncode != 0
    assert not (checkout / ".venv/.complete").exists()
    assert make_env(checkout).returncode == 0
    assert (checkout / ".venv/.complete").exists()


@pytest.mark.parametrize("changed", ["envs/requirements.lock", "envs/torch.txt", "pyproject.toml"])
def test_environment_is_made_again_only_after_a_change(checkout: Path, changed: str) -> None:
    make_env(checkout)
    asked = checkout / "asked"
    asked.unlink()
    make_env(checkout)
    assert not asked.exists()
    later = (checkout / ".venv/.complete").stat().st_mtime + 1
    os.utime(checkout / changed, (later, later))
    make_env(checkout)
    assert "-m venv --clear .venv" in asked.read_text().splitlines()
