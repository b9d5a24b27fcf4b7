"""What runs and is doubtful is told in a line, before and after."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from runs import Run, small
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from ontogeny import doubts, summary
from ontogeny.cli import main
from ontogeny.experiment import Experiment

WORDS = ["<end>", "<s>", "<pad>", *(f"w{i}" for i in range(61))]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Four checkpoints of a tiny model whose tokenizer puts <s> first and has a padding token."""
    folder = tmp_path_factory.mktemp("home")
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    marks = {"eos_token": "<end>", "bos_token": "<s>", "pad_token": "<pad>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks)
    config = GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=2, n_head=2,
                        bos_token_id=1, eos_token_id=0)  # fmt: skip
    for step in (0, 10, 100, 1000):
        for made in (GPT2LMHeadModel(config), fast):
            made.save_pretrained(folder / f"run/checkpoint-{step}")
    for path in folder.glob("run/*/*"):  # finished long ago
        os.utime(path, (1e9, 1e9))
    rng = np.random.default_rng(0)
    (folder / "text.txt").write_text(" ".join(rng.choice(WORDS[3:], 4000)))
    ids = rng.integers(3, 64, (60, 32))
    np.save(folder / "ids.npy", ids)
    ids[:, 20:] = 2
    np.save(folder / "padded.npy", ids)
    return folder


CAN_RUN = """\
FILE: can run
device here: cpu (the processor): models run in float32, crosscoders' products are in float32
"""


def check(home: Path, tmp_path: Path, corpus: dict[str, Any], **changes: Any) -> tuple[str, str]:
    """What `ontogeny check` prints, and what it says on stderr."""
    given: dict[str, Any] = {
        "name": "case",
        "device": "cpu",
        "corpus": {"context": 32, "train_blocks": 40, "held_out_blocks": 8} | corpus,
        "snapshots": {"steps": "all", "local": {"folders": f"{home}/run/checkpoint-{{step}}"}},
        "activations": {"layers": [0]} | changes.get("activations", {}),
        "crosscoders": {
            "main": {"inputs": {"layers": [0]}, "features": 32, "steps": 400, "batch_rows": 512}
            | changes.get("main", {})
        },
        "primary": "main",
    }
    (tmp_path / "case.yaml").write_text(yaml.safe_dump(given))
    words = ["check", str(tmp_path / "case.yaml"), "--results", str(tmp_path)]
    done = CliRunner().invoke(main, words)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.stdout.replace(str(tmp_path / "case.yaml"), "FILE"), done.stderr


def test_ordinary_experiments_raise_no_doubts(home, tmp_path):
    corpus = {"tokens": {"path": str(home / "ids.npy")}}
    assert check(home, tmp_path, corpus) == (CAN_RUN, "")
    text = {"files": {"paths": [str(home / "text.txt")]}, "bos": True}
    assert check(home, tmp_path, text) == (CAN_RUN, "")


def test_what_is_doubtful_beforehand_is_advice_of_check(home, tmp_path):
    said, _ = check(home, tmp_path, {"tokens": {"path": str(home / "padded.npy")}})
    assert said.splitlines()[2:] == [
        "advice: id 2 (<pad>) is 38% of the training rows, which looks like padding; set "
        "activations.leave_out: [end_of_text, padding]"
    ]
    leave_out = {"leave_out": ["end_of_text", "padding"]}
    corpus = {"tokens": {"path": str(home / "padded.npy")}}
    assert check(home, tmp_path, corpus, activations=leave_out) == (CAN_RUN, "")
    said, _ = check(home, tmp_path, {"files": {"paths": [str(home / "text.txt")]}})
    assert "advice: the tokenizer puts a token (<s>) before a text, but the blocks" in said
    said, _ = check(home, tmp_path, corpus, main={"dead_after_rows": "1e6"})
    assert (
        "advice: crosscoders.main.dead_after_rows: 1,000,000 exceeds the 204,800 training rows, "
        "so training cannot recognise dead features; set at most 51200"
    ) in said.splitlines()
    (tmp_path / "empty.txt").touch()
    paths = [str(home / "text.txt"), str(tmp_path / "empty.txt")]
    said, _ = check(home, tmp_path, {"files": {"paths": paths}, "bos": True})
    assert f"advice: corpus.files.paths: {tmp_path / 'empty.txt'} is empty" in said


def test_ids_that_the_model_lacks_are_faults_of_check(home, tmp_path):
    ids = np.load(home / "ids.npy")
    ids[11, 5] = 64
    np.save(tmp_path / "beyond.npy", ids)
    said, fault = check(home, tmp_path, {"tokens": {"path": str(tmp_path / "beyond.npy")}})
    assert said == ""
    assert (
        "beyond.npy holds 64 at [11, 5], but the model's embedding has only ids below 64" in fault
    )
    _, fault = check(
        home, tmp_path, {"tokens": {"path": str(home / "ids.npy")}},
        activations={"leave_out": [70]},
    )  # fmt: skip
    assert fault.startswith("ontogeny: activations.leave_out: 70 is not an id of the tokenizer")


def test_l0_that_is_not_k_is_told(tmp_path):
    run = Run(tmp_path, {"crosscoders.topk.basis": "full"})
    run.stages("corpus", "pretrain", "extract", "token_table", "train", "fidelity")
    l0 = run.map.table("fidelity", "topk", seed=0)["l0"].mean()

    def told(k: int) -> list[str]:
        changed = small(tmp_path / "text.txt", {"crosscoders.topk.k": k})
        found = doubts.found(Experiment(run.map.folder, changed))
        return [line for line in found if "L0 of seed 0" in line]

    assert l0 == pytest.approx(6, rel=0.1)  # after 20 steps alone
    assert told(6) == []
    (line,) = told(12)
    assert line.startswith(
        f"crosscoders.topk.k: L0 of seed 0 is {l0:.1f} on held-out text, but k is 12"
    )


def test_what_is_not_known_is_null_in_a_summary():
    values = {"a": float("nan"), "b": float("inf"), "c": 1.5, "d": "nan", "e": None, "f": 3}
    assert summary.known(values) == {"a": None, "b": None, "c": 1.5, "d": "nan", "e": None, "f": 3}
