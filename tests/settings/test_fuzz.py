"""A thousand random edits of configurations: each is valid, or ends in lines, never a traceback."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, tiny
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from ontogeny import preflight
from ontogeny import settings as schema
from ontogeny.files import InputError
from ontogeny.settings import SettingsError
from ontogeny.snapshots import sources

EDITS = 1000
VALUES = [
    None, True, False, 0, 1, -1, 2, 3, 7, 10**6, 10**9, 10**18, 10**40, -(10**30), 0.5, 1e-9, 1e308,
    float("inf"), float("-inf"), float("nan"), "", " ", "all", "auto", "x", "1e6", "1_000", "3e-3",
    "../../x", "~/nowhere", "$NOWHERE/x", "results", "{step}", "{step:06d}", "{step:s}", "{", "%s",
    "[a", "**", "\x00", "\x1b[31m", "\u202eabc", "ключ", "🦋" * 40, "a" * 5000, "'", '"', "\n",
    "cpu", "cuda", "cuda:99", "residual", "principal", "full", "hybrid", "streamed", "cached",
    [], [None], [0], [1, 0], [0, 0], [-1], ["all"], [[0]], [10**18], list(range(300)), [0.5],
    {}, {"a": 1}, {"layers": [0]}, {1: 2}, {"": ""}, {None: None}, {"steps": "all"},
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to everything in a configuration."""
    if path:
        yield path
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from places(inner, (*path, key))


def holder(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        value = value[key]
    return value


def edited(given: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """A configuration with one to three random changes."""
    value = copy.deepcopy(given)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        every = list(places(value))
        if not every:
            break
        path, other = rng.choice(every), rng.choice(every)
        inside, kind = holder(value, path), rng.randrange(7)
        if kind == 0:
            del inside[path[-1]]
        elif kind == 1 and isinstance(inside, dict):
            inside[rng.choice(["stepz", "name", "", "🦋", 1, None])] = rng.choice(VALUES)
        elif kind == 2:
            inside[path[-1]] = copy.deepcopy(holder(value, other)[other[-1]])
        elif kind == 3:
            inside[path[-1]] = {path[-1]: inside[path[-1]]}
        elif kind >= 4 and isinstance(inside[path[-1]], int | float):
            inside[path[-1]] *= rng.choice([-1, 0, 0.5, 1, 2, 3, 1000, 10**12])
        else:
            inside[path[-1]] = copy.deepcopy(rng.choice(VALUES))
    return value


@pytest.fixture
def given(tmp_path, monkeypatch) -> list[dict[str, Any]]:
    """Configurations of every source of snapshots and text, as they are and with all keys."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    Path("envs").symlink_to(ROOT / "envs")
    Path("text.txt").write_text("some words of text\n" * 2000)
    for step in range(4):
        model = GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=64)
        GPT2LMHeadModel(model).save_pretrained(f"run/checkpoint-{step}")
    tokenizer = Tokenizer(WordLevel({"some": 0, "words": 1, "<end>": 2}, unk_token="<end>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained("run")
    local = tiny({"corpus": {"files": {"paths": ["text.txt"]}, "context": 16, "train_blocks": 64}})
    local["snapshots"] = {
        "steps": [0, 1, 2, 3],
        "local": {"folders": "run/checkpoint-{step}", "tokenizer": "run"},
    }
    hub = copy.deepcopy(local)
    hub["snapshots"] = {"steps": [0, 1, 512], "hub": {"repository": "EleutherAI/pythia-14m"}}
    every = schema.load(tiny()).model_dump(mode="json")
    default = yaml.safe_load((ROOT / "config.yaml").read_text())
    return [tiny(), local, hub, every, default]


def test_a_thousand_edits_end_in_lines_or_in_a_valid_configuration(given, tmp_path):
    rng, outcomes = random.Random(22), {"valid": 0, "refused": 0, "silent": 0}
    for number in range(EDITS):
        value = edited(rng.choice(given), rng)
        file = tmp_path / "edited.yaml"
        file.write_text(yaml.safe_dump(value, allow_unicode=True), encoding="utf-8")
        try:
            settings = sources.resolve(schema.load(file))
            preflight.check(settings, tmp_path / "results")
            preflight.check_room(settings, tmp_path / "results")
            outcomes["valid"] += 1
        except (SettingsError, InputError) as error:
            outcomes["refused" if str(error).strip() else "silent"] += 1
        except Exception as error:
            error.add_note(f"edit {number}: {yaml.safe_dump(value, allow_unicode=True)}")
            raise
    assert outcomes["silent"] == 0
    assert outcomes["valid"] > EDITS / 10
    assert outcomes["refused"] > EDITS / 2
