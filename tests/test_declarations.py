"""An analysis is one folder: what is derived from a declaration, wherever it lies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import RESULTS, ROOT, Checkout

TOY = ROOT / "tests" / "toy"


def in_a_folder(checkout: Checkout) -> str:
    """Add the toy as a folder of ours; the module whose change reruns it."""
    home = checkout / "src/ontogeny/analyses/toy"
    shutil.copytree(TOY, home, ignore=shutil.ignore_patterns("__pycache__"))
    for path in home.glob("*.py"):
        path.write_text(path.read_text().replace("toy_package", "ontogeny.analyses.toy"))
    return "src/ontogeny/analyses/toy"


def in_a_package(checkout: Checkout) -> str:
    """Add the toy as a package that is installed beside ours, with an entry point."""
    site = checkout / "site"
    shutil.copytree(TOY, site / "toy_package", ignore=shutil.ignore_patterns("__pycache__"))
    about = site / "toy_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-package\nVersion: 1.0\n")
    entry = "[ontogeny.analyses]\ntoy = toy_package.declaration:ANALYSIS\n"
    (about / "entry_points.txt").write_text(entry)
    checkout.environment["PYTHONPATH"] += f":{site}"
    return "site/toy_package"


@pytest.mark.slow
@pytest.mark.parametrize("added", [in_a_folder, in_a_package])
def test_a_toy_analysis_gets_all_that_ours_have(experiment, added):
    checkout = experiment
    before = {p for p in (checkout / "src").rglob("*.py") if p.is_file()}
    home = added(checkout)
    others = {p for p in (checkout / "src").rglob("*.py") if p.is_file()} - before
    assert all(str(p.relative_to(checkout.folder)).startswith(home) for p in others)

    # Its section, in the schema, with the messages that all keys have.
    properties = json.loads(checkout.command("ontogeny", "schema").stdout)["properties"]
    assert (
        properties["toy"]["description"] == "How many features peak in each part of the training."
    )
    checkout.configure({"toy": {"bin": 2}})
    done = checkout.command("ontogeny", "check", "config.yaml")
    assert (done.returncode, "toy.bin: unknown key" in done.stderr) == (1, True), done.stderr

    # Its rules: what is asked for by the name of the analysis, and in the default target.
    checkout.configure({})
    assert set(checkout.would_run("toy")) == {"toy", "measure_toy", "figure_toy"}
    checkout.configure({"analyses": ["dimensionality", "kinds", "toy"]})
    assert set(checkout.would_run()) == {"measure_toy", "figure_toy", "numbers", "summary"}
    bill = checkout.command("ontogeny", "plan", "config.yaml").stdout
    assert next(line for line in bill.splitlines() if line.startswith("toy")), bill
    checkout.snakemake()
    assert checkout.would_run() == {}
    counts = pd.read_csv(checkout / RESULTS / "figures/toy.csv")
    features = pd.read_parquet(checkout / RESULTS / "features/batchtopk/features.parquet")
    assert (len(counts), counts["features"].sum()) == (3, features["alive"].sum())
    assert all(
        (checkout / RESULTS / f"figures/toy.{kind}").stat().st_size for kind in ("pdf", "png")
    )
    numbers = json.loads((checkout / RESULTS / "summary.json").read_text())
    assert numbers["toy_bins_with_peaks"] == (counts["features"] > 0).sum()

    if added is in_a_package:  # all that differs is where it is found
        return

    # Its commands, by hand.
    table = checkout / RESULTS / "features/batchtopk/toy.csv"
    whole = table.read_bytes()
    table.unlink()
    done = checkout.command("ontogeny", "toy", RESULTS)
    assert (done.returncode, table.read_bytes()) == (0, whole), done.stderr
    shutil.copystat(checkout / RESULTS / "figures/toy.csv", table)
    assert "Count the features by the bin" in checkout.command("ontogeny", "toy", "--help").stdout
    done = checkout.command("ontogeny", "figure", "toy", RESULTS)
    assert done.returncode == 0, done.stderr

    # What runs again: it alone, for its own key and its own code.
    measured = {"measure_toy", "figure_toy", "numbers", "summary"}
    checkout.configure({"analyses": ["dimensionality", "kinds", "toy"], "toy.bins": 2})
    assert set(checkout.would_run()) == measured
    checkout.configure({"analyses": ["dimensionality", "kinds", "toy"]})
    source = checkout / home / "measure.py"
    text = source.read_text()
    source.write_text(text + "\nCHANGED = True\n")
    assert set(checkout.would_run()) == measured
    source.write_text(text)
    declaration = checkout / home / "declaration.py"
    declaration.write_text(declaration.read_text().replace("7200.0", "60.0"))
    assert checkout.would_run() == {}

    # Its caption and category, in the report.
    checkout.snakemake("--report", "report.html")
    report = (checkout / "report.html").read_text()
    assert "a caption that the report has to show" in report
    assert "Toys" in report


@pytest.mark.slow
def test_a_path_renamed_in_the_map_reruns_nothing(experiment):
    checkout = experiment
    stages = checkout / "src/ontogeny/stages.py"
    old, new = "phases/phases.csv", "phases/losses.csv"
    assert stages.read_text().count(old) == 1
    stages.write_text(stages.read_text().replace(old, new))
    (checkout / RESULTS / old).rename(checkout / RESULTS / new)
    assert checkout.would_run() == {}


def test_a_package_that_cannot_be_loaded_is_named(tmp_path, finished):
    about = tmp_path / "broken-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[ontogeny.analyses]\nbroken = not_there:ANALYSIS\n")
    checkout = Checkout(finished.folder)
    checkout.environment["PYTHONPATH"] += f":{tmp_path}"
    done = checkout.command("ontogeny", "check", "config.yaml")
    assert done.returncode == 1
    assert "analysis broken: not_there:ANALYSIS cannot be loaded" in done.stderr
    assert "Traceback" not in done.stderr
    assert isinstance(yaml.safe_load((finished / "config.yaml").read_text()), dict)
    assert Path(finished.folder).is_dir()
