"""`ontogeny new` on folders as people have them, and on repositories of a hub."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from conftest import ROOT
from hub_server import HubServer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from ontogeny import new, settings
from ontogeny.cli import main
from ontogeny.files import InputError

SIZES = {"vocab_size": 300, "n_positions": 32, "n_embd": 16, "n_layer": 3, "n_head": 2}


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(**SIZES))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([__doc__] * 2, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>")


@pytest.fixture
def runs(tmp_path, monkeypatch, model, tokenizer) -> Path:
    """A run's folder as people leave it: checkpoints, text, and much else."""
    monkeypatch.chdir(tmp_path)
    for step in (0, 10, 200):
        folder = tmp_path / f"runs/my run/checkpoint-{step:06d}"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    (tmp_path / "runs/my run/logs/2026").mkdir(parents=True)
    model.save_pretrained(tmp_path / "runs/my run/best")
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.txt").write_text("One two three four five six seven.\n" * 4000)
    (tmp_path / "text/notes.json").write_text("[]")
    return tmp_path


def invoke(*words: str):
    return CliRunner().invoke(main, ["new", *words])


def test_a_folder_of_checkpoints_becomes_an_experiment_that_runs(runs):
    result = invoke("runs/my run", "--text", "text")
    assert result.exit_code == 0, result.output
    assert "3 snapshots, steps 0 to 200, of a model of 3 blocks of width 16" in result.output
    assert "tokens of text/**/*.txt\n" in result.output
    assert "next: ontogeny run" in result.output
    made = settings.load(Path("my-run.yaml"))
    assert made.snapshots.chosen == [0, 10, 200]
    assert made.activations.layers == [1]
    assert made.activations.leave_out == ["end_of_text", "first"]
    assert made.corpus.context == 32  # all that the model has positions for
    assert made.corpus.files is not None
    assert made.corpus.files.paths == ["text/**/*.txt"]
    # It has taken no more text than there is.
    tokens = (made.corpus.train_blocks + made.corpus.held_out_blocks) * made.corpus.context
    assert tokens < (runs / "text/a.txt").stat().st_size / 4
    done = CliRunner().invoke(main, ["corpus", "results/my-run"])
    checked = CliRunner().invoke(main, ["check", "my-run.yaml"])
    assert checked.exit_code == 0, done.output
    first, *advice = checked.output.splitlines()
    assert first == "my-run.yaml: can run"
    same = [line for line in advice if "have the same weights" in line]
    assert len(same) == 2  # the three are copies of one model
    assert set(same) <= set(result.output.splitlines())

    again = invoke("runs/my run")
    assert again.exit_code == 1
    assert "my-run.yaml: exists already" in again.stderr


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("runs/my run/best", "this is a single checkpoint; name the folder that holds it"),
        ("text", "has no checkpoints with a step in their names"),
        ("nowhere", "no such folder"),
        ("text/a.txt", "no such folder"),
    ],
)
def test_what_is_no_folder_of_checkpoints_is_told(runs, source, line):
    result = invoke(source)
    assert result.exit_code == 1
    assert line in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(Path().glob("*.yaml"))


def test_without_text_the_sources_of_python_are_read_and_said(runs):
    result = invoke("runs/my run")
    assert result.exit_code == 0, result.output
    assert "of the sources of Python packages, since no --text was given\n" in result.output


def test_the_most_checkpoints_that_differ_in_a_number_alone(runs, model):
    for step in range(1, 6):
        model.save_pretrained(runs / f"runs/v2/seed1/step{step}/hf")
    found = new.find("runs")
    assert found.steps == [1, 2, 3, 4, 5]
    assert yaml.safe_load(found.where) == {"folders": "runs/v2/seed1/step{step}/hf"}


def test_a_text_that_is_too_short_is_told(runs):
    (runs / "text/a.txt").write_text("A line.\n")
    result = invoke("runs/my run", "--text", "text/*.txt")
    assert result.exit_code == 1
    assert "hold about 1 tokens, but at least 16 blocks of 32 tokens are needed" in result.stderr


def test_many_checkpoints_are_thinned_evenly_in_their_logarithm():
    every = list(range(0, 100_001, 50))
    chosen = new.choose(every)
    assert len(chosen) == 32
    assert set(chosen) <= set(every)
    assert (chosen[0], chosen[-1]) == (0, 100_000)
    assert max(b / a for a, b in pairwise(chosen) if a >= 1000) < 2.2
    assert new.choose([5, 7, 9]) == [5, 7, 9]
    assert len(new.choose([*range(100), 10**6])) == 32


def test_a_known_repository_needs_no_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = new.write("EleutherAI/pythia-70m", ["owner/dataset"], None, Path("results"))
    made = settings.load(file)
    assert (made.name, len(made.snapshots.chosen)) == ("pythia-70m", 32)
    assert made.snapshots.chosen[-1] == 143_000
    assert made.corpus.dataset is not None
    assert made.corpus.dataset.name == "owner/dataset"
    assert made.activations.layers == [3]


def test_revisions_of_a_repository_that_has_no_preset(tmp_path):
    config = json.dumps(GPT2Config(**SIZES).to_dict()).encode()
    names = [f"ckpt-{step}-tokens{step * 2}B" for step in (1, 20, 300)]
    with HubServer() as hub:
        for name in ["main", "v1.0", *names]:
            hub.add("someone/theirs", name, {"config.json": config})
        words = [sys.executable, "-m", "ontogeny", "new", "someone/theirs", "--output", "it.yaml"]
        environment = hub.environment(tmp_path / "home", PYTHONPATH=str(ROOT / "src"))
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
    written = settings.load(tmp_path / "it.yaml")
    assert written.snapshots.hub is not None, done.stderr
    assert written.snapshots.hub.revision == "ckpt-{step}-tokens*B"
    assert written.snapshots.chosen == [1, 20, 300]
    assert "Traceback" not in done.stderr


def test_the_pattern_that_most_names_share():
    assert new.most_common_pattern(["main", "step1", "step20", "v2"]) == "step{step}"
    assert new.most_common_pattern([]) == "step{step}"


def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"^no-one/knows: no such folder here, and as a repo"):
        new.find("no-one/knows")
