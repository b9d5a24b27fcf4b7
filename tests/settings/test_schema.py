"""The schema, the settings and the files that are written by them hold together."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from conftest import ROOT

from ontogeny import registry, settings

EXPERIMENTS = [
    ROOT / "config.yaml",
    ROOT / "tests" / "tiny.yaml",
    *sorted((ROOT / "experiments").glob("*.yaml")),
]
SCHEMA = json.loads((ROOT / "schemas" / "config.schema.json").read_text())


def objects(node: Any) -> Iterator[dict[str, Any]]:
    """All parts of a schema that describe a mapping with named keys."""
    if isinstance(node, dict):
        if "properties" in node:
            yield node
        for value in node.values():
            yield from objects(value)


def test_the_kept_schema_is_the_settings():
    kept = (ROOT / "schemas" / "config.schema.json").read_text()
    assert kept == settings.schema(), "ontogeny schema > schemas/config.schema.json"


def test_the_kept_list_of_analyses_is_that_of_their_declarations():
    kept = (ROOT / "docs" / "analyses.md").read_text()
    assert kept == registry.page(), "ontogeny analyses > docs/analyses.md"


def test_every_key_is_described_and_no_other_is_allowed():
    sections = list(objects(SCHEMA))
    assert len(sections) >= 8
    for section in sections:
        assert section["additionalProperties"] is False
        for key, value in section["properties"].items():
            assert len(value.get("description", "")) > 8, key


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_experiments_are_valid(path):
    loaded = settings.load(path)
    assert settings.load(loaded.model_dump(mode="json")) == loaded


def test_experiments_have_a_folder_each():
    names = [yaml.safe_load(path.read_text())["name"] for path in EXPERIMENTS]
    assert sorted(set(names)) == sorted(names)


SECTIONS = {
    "corpus": settings.Corpus,
    "corpus.wheels": settings.Wheels,
    "snapshots": settings.Snapshots,
    "snapshots.pretrain": settings.Pretrain,
    "activations": settings.Activations,
    "basis": settings.Basis,
    "analysis": settings.Analysis,
    **{name: a.section for name, a in registry.all_analyses().items() if a.section},
}
# Alternatives to what the default experiment has.
OTHERS = {
    "files",
    "dataset",
    "tokens",
    "hub",
    "local",
    "remote_code",
    "pretrain_blocks",
    "sparsity",
}


@pytest.mark.parametrize("section", SECTIONS)
def test_the_default_experiment_names_every_key(section):
    written = yaml.safe_load((ROOT / "config.yaml").read_text())
    for key in section.split("."):
        written = written[key]
    assert set(written) == set(SECTIONS[section].model_fields) - OTHERS


@pytest.mark.parametrize("text", ["a: 1\na: 2\n", "b: { a: 1, a: 2 }\n", '{"a": 1, "a": 2}'])
def test_no_key_stands_twice(text, tmp_path):
    file = tmp_path / "twice.yaml"
    file.write_text(text)
    with pytest.raises(settings.SettingsError, match=r"^a: occurs twice in .*twice\.yaml"):
        settings.read(file)


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ({}, ("hybrid", "snapshot")),
        ({"activation": "jumprelu"}, ("hybrid", "snapshot")),
        ({"activation": "relu"}, ("hybrid", "feature")),
        ({"basis": "principal"}, ("principal", "feature")),
        ({"aux_features": 16}, ("hybrid", "feature")),
        ({"aux_features": 0}, ("hybrid", "snapshot")),
        ({"outputs": {"layers": [1]}}, ("full", "snapshot")),
        ({"basis": "full", "gate": "feature"}, ("full", "feature")),
    ],
)
def test_a_new_crosscoder_has_one_gate_per_snapshot_where_that_is_possible(given, chosen):
    c = settings.Crosscoder(inputs={"layers": [0]}, features=64, steps=1, **given)
    assert (c.basis, c.gate) == chosen
    assert type(c).model_validate(c.model_dump()) == c
