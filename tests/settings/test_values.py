"""Values as people write them: numbers, paths, and defaults beside what is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import tiny

from ontogeny import settings
from ontogeny.settings import Settings, SettingsError

MAIN = "crosscoders.batchtopk."


def loaded(changes: dict[str, Any], without: tuple[str, ...] = ()) -> Settings:
    """The tiny experiment with some keys set otherwise, and others left out."""
    given = tiny(changes)
    for key in without:
        *path, last = key.split(".")
        section = given
        for part in path:
            section = section[part]
        section.pop(last, None)
    return settings.load(given)


NUMBERS = {
    "3e-3": (MAIN + "learning_rate", 0.003),
    "1e-2": ("basis.max_variance_lost", 0.01),
    "1E-3": ("snapshots.pretrain.learning_rate", 0.001),
    "1e6": (MAIN + "dead_after_rows", 1_000_000),
    "1.5e3": (MAIN + "steps", 1500),
    "1_000_000": ("activations.window", 1_000_000),
    "5e2": ("activations.budget", 500.0),
    "+2e1": ("analysis.bootstrap", 20),
}


@pytest.mark.parametrize("text", NUMBERS)
def test_a_number_is_read_however_it_is_written(text, tmp_path):
    key, value = NUMBERS[text]
    file = tmp_path / "experiment.yaml"
    written = yaml.safe_dump(tiny({key: "NUMBER"}))
    file.write_text(written.replace("NUMBER", text))
    found: Any = settings.load(file)
    for part in key.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == value
    assert type(found) is type(value)


def test_numbers_in_lists_and_of_replicates():
    given = loaded(
        {
            "snapshots.steps": ["0", "2e0", 8.0, 20, "4e1"],
            MAIN + "seeds": ["1e1", 3],
            "replicates": {"warm": {"snapshots.pretrain.learning_rate": "2e-3"},
                           "more": {"snapshots.pretrain.seed": ["1e1", 2]}},
        }
    )  # fmt: skip
    assert given.snapshots.steps == [0, 2, 8, 20, 40]
    assert given.crosscoders["batchtopk"].seeds == [10, 3]
    pretrain = given.replicate("warm").snapshots.pretrain
    assert pretrain is not None
    assert pretrain.learning_rate == 0.002
    assert list(given.replicates) == ["warm", "moreseed10", "moreseed2"]


def test_text_that_looks_like_a_number_stays_text():
    named = {"repository": "1e3/1_0", "revision": "{step}e5", "tokenizer": "1e3"}
    given = loaded({"name": "1e3", "snapshots": {"steps": [0, 2], "hub": named}})
    hub = given.snapshots.hub
    assert hub is not None
    assert (given.name, hub.repository, hub.tokenizer) == ("1e3", "1e3/1_0", "1e3")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (MAIN + "steps", "1e-3", "should be a valid integer"),
        (MAIN + "steps", "1e999999999", "should be a valid integer"),
        (MAIN + "learning_rate", "1e999", "should be a finite number"),
        (MAIN + "learning_rate", ".inf", "should be a finite number|valid number"),
        (MAIN + "learning_rate", "3e", "should be a valid number"),
        ("snapshots.pretrain.steps", True, "should be a valid integer"),
    ],
)
def test_what_is_no_such_number_is_one_line(key, value, message):
    with pytest.raises(SettingsError, match=rf"^{key}: input {message}") as told:
        loaded({key: value})
    assert len(str(told.value).splitlines()) == 1


def test_variables_and_the_home_are_expanded_in_every_path(monkeypatch, tmp_path):
    monkeypatch.setenv("MY_DATA", str(tmp_path))
    monkeypatch.setenv("HOME", "/home/me")
    given = loaded(
        {
            "corpus": {"files": {"paths": ["$MY_DATA/*.txt", "~/a.txt"]}},
            "snapshots": {
                "steps": [0, 2],
                "local": {"folders": "${MY_DATA}/{step}", "tokenizer": "$MY_DATA"},
            },
        }
    )
    files, local = given.corpus.files, given.snapshots.local
    assert files is not None
    assert local is not None
    assert files.paths == [f"{tmp_path}/*.txt", "/home/me/a.txt"]
    assert (local.folders, local.tokenizer) == (f"{tmp_path}/{{step}}", str(tmp_path))
    for source in ({"tokens": {"path": "$MY_DATA/x.npy"}}, {"dataset": {"name": "$MY_DATA/x"}},
                   {"wheels": {"requirements": "$MY_DATA/x"}}):  # fmt: skip
        corpus = settings.Corpus.model_validate(source)
        chosen = getattr(corpus, corpus.source)
        named = {"path", "name", "requirements"} & set(type(chosen).model_fields)
        assert Path(getattr(chosen, named.pop())).parent == tmp_path


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"corpus": {"files": {"paths": ["$NOT_SET_HERE/x.txt"]}}}, "corpus.files.paths"),
        ({"corpus": {"wheels": {"requirements": "${NOT_SET_HERE}/x"}}}, "corpus.wheels.requi"),
        ({"storage": {"scratch": "/scratch/$NOT_SET_HERE"}}, "storage.scratch"),
        ({"storage": {"cache": "$NOT_SET_HERE"}}, "storage.cache"),
    ],
)
def test_a_variable_that_is_not_set_is_named(changes, key):
    with pytest.raises(SettingsError, match=rf"^{key}.*: the variable NOT_SET_HERE is not set"):
        loaded(changes)


def test_a_file_may_have_a_dollar_in_its_name(tmp_path):
    place = tmp_path / "$NOT_SET_HERE.txt"
    place.write_text("text")
    assert loaded({"corpus": {"files": {"paths": [str(place)]}}}).corpus.files is not None


@pytest.mark.parametrize(
    ("changes", "without", "key", "value"),
    [
        ({MAIN + "features": 4, MAIN + "aux_features": 4}, ("k",), "k", 4),
        ({MAIN + "features": "4", MAIN + "aux_features": 4}, ("k",), "k", 4),
        ({MAIN + "features": 64, MAIN + "activation": "jumprelu", MAIN + "basis": "hybrid"},
         ("aux_features", "aux_k"), "aux", 0),
        ({MAIN + "features": 64}, ("aux_features", "aux_k"), "aux", 64),
    ],
)  # fmt: skip
def test_a_default_of_a_crosscoder_is_no_fault(changes, without, key, value):
    given = loaded(changes, tuple(MAIN + name for name in without))
    assert getattr(given.crosscoders["batchtopk"], key) == value


def test_other_defaults_that_do_not_fit_are_lowered_not_refused():
    given = loaded({}, ("analysis.absence", "snapshots.pretrain.warmup_steps"))
    assert given.analysis.absence == 0.35
    assert given.snapshots.pretrain is not None
    assert given.snapshots.pretrain.warmup_steps == 40  # of 40 steps
    assert loaded({"analysis.presence": 0.2}, ("analysis.absence",)).analysis.absence == 0.2
    assert loaded({"basis.max_variance_lost": 0.2}).basis.least_kept == pytest.approx(0.8)
    assert loaded({"basis.dimensions": 8}).basis.least_kept == 0.95
    with pytest.raises(SettingsError, match=r"^basis\.least_kept: 0\.9 .* cannot be kept .* 0\.2"):
        loaded({"basis.max_variance_lost": 0.2, "basis.least_kept": 0.9})
    with pytest.raises(SettingsError, match=r"^analysis\.absence: 0\.5 exceeds"):
        loaded({"analysis.presence": 0.2})
