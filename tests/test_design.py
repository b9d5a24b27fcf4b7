"""The house keeps its rules: docs/design.md, held to the sources."""

from __future__ import annotations

import ast
import re
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

from ontogeny import registry
from ontogeny.declarations import folder, function
from ontogeny.provenance import code_digest, modules_of

SOURCE = ROOT / "src"
MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
}
# Modules that say where things lie; folders' own formats, whose files are read by no other stage
# alone: a crosscoder's, a snapshot's, the activations' and the site's.
MAPS = {"ontogeny.stages", "ontogeny.experiment", "ontogeny.activations.sites"}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def imports(module: str) -> set[str]:
    """Modules of ours that a module names in its imports, also those for type checkers alone."""
    named = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                named.add(inner if inner in MODULES else node.module)
    return named & set(MODULES)


def test_no_circle_among_imports():
    try:
        list(TopologicalSorter({m: imports(m) - {m} for m in MODULES}).static_order())
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_analyses_never_import_each_other():
    for module in MODULES:
        if module.startswith("ontogeny.analyses."):
            own = module.split(".")[2]
            others = {m for m in imports(module) if m.startswith("ontogeny.analyses.")}
            assert {m.split(".")[2] for m in others} <= {own}, module


def test_stages_know_neither_the_map_nor_snakemake():
    for declared in (*registry.stages().values(), *registry.figures().values()):
        reached = modules_of(declared.module)
        assert "ontogeny.experiment" not in reached, declared.name
        assert "ontogeny.running" not in reached, declared.name
    for module in MODULES.keys() - {"ontogeny.launch"}:  # which starts it
        source = MODULES[module].read_text()
        assert not re.search(r"^\s*(import|from) snakemake", source, re.M), module


def test_no_file_is_crowded():
    for path in (*MODULES.values(), *(ROOT / "rules").glob("*.smk")):
        assert len(path.read_text().splitlines()) <= 500, path


def test_the_map_alone_spells_names_of_files():
    names = {Path(product.path).name for product in registry.products().values()}
    names = {name for name in names if "." in name and "{" not in name}
    assert {"features.parquet", "tokens.h5", "kinds.parquet", "phases.csv"} <= names
    # Formats of their own (docs/design.md, contracts): folders of a crosscoder, of a snapshot.
    names -= {
        "config.json",
        "crosscoder.safetensors",
        "metrics.csv",
        "config.yaml",
        "tokenizer.json",
    }
    for module, path in MODULES.items():
        if module in MAPS or module.endswith(".declaration"):
            continue
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                spelled = names & set(re.split(r"[\s/,;:()]+", node.value))
                prose = len(node.value.split()) > 3
                assert prose or not spelled, f"{path}: {sorted(spelled)}"
    for path in (ROOT / "Snakefile", *(ROOT / "rules").glob("*.smk")):
        assert not names & set(re.split(r"[\s/\"']+", path.read_text())), path


@pytest.mark.parametrize(
    "declared",
    [*registry.stages().values(), *registry.figures().values()],
    ids=lambda declared: f"{type(declared).__name__}-{declared.name}",
)
def test_a_declaration_fits_its_function(declared):
    import inspect

    parameters = inspect.signature(function(declared.run)).parameters
    made = declared.makes if hasattr(declared, "makes") else {"output": ""}
    scratch = getattr(declared, "scratch", {})
    given = {*declared.reads, *made, *scratch} | ({"settings", "names"} & set(parameters))
    assert given == set(parameters), declared.name
    products = registry.products()
    assert set(getattr(declared, "makes", {}).values()) <= set(products)
    if not hasattr(declared, "makes"):
        caption = folder(declared.run) / f"{declared.name}.rst"
        assert caption.read_text().strip(), caption
    assert len(code_digest(declared.module)) == 16


def test_every_analysis_has_its_hooks():
    for analysis in registry.all_analyses().values():
        for hook in (analysis.numbers, analysis.faults, analysis.crosscoders):
            assert not hook or callable(function(hook)), analysis.name
        assert analysis.about.endswith("."), analysis.name
