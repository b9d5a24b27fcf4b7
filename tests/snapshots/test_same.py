"""Snapshots are one model at several steps: configurations, tokenizers, weights, advice."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from ontogeny import settings as schema
from ontogeny.cli import main
from ontogeny.files import InputError
from ontogeny.snapshots import same, sources, weights

STEPS = (0, 50, 100, 200)
CONFIG = {"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1, "vocab_size": 4,
          "n_positions": 32}  # fmt: skip
WORDS = {"a": 0, "b": 1, "c": 2, "d": 3}
EXPERIMENT: dict[str, Any] = {
    "name": "mine",
    "device": "cpu",
    "corpus": {"files": {"paths": ["text.jsonl"]}, "context": 32, "train_blocks": 8,
               "held_out_blocks": 2},
    "snapshots": {"steps": "all", "local": {"folders": "run/checkpoint-{step}"}},
    "activations": {"layers": [0]},
    "crosscoders": {"main": {"inputs": {"layers": [0]}, "features": 16, "k": 2, "steps": 4,
                             "batch_rows": 64, "aux_features": 0, "dead_after_rows": 64}},
    "primary": "main",
    "analyses": [],
}  # fmt: skip


def tensors(seed: int) -> dict[str, np.ndarray]:
    """A model's weights, of which the first stays as it begins."""
    random = np.random.default_rng(seed)
    return {
        "transformer.h.0.ln_1.weight": np.ones(8, np.float32),
        "transformer.wte.weight": random.standard_normal((4, 8), dtype=np.float32),
        "transformer.wpe.weight": random.standard_normal((32, 8), dtype=np.float32),
    }


def checkpoint(step: int, **config: Any) -> Path:
    """A checkpoint as a Trainer leaves it."""
    folder = Path(f"run/checkpoint-{step}")
    folder.mkdir(parents=True)
    save_file(tensors(step), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    words = {"model": {"type": "WordLevel", "vocab": WORDS}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(words))
    for path in folder.iterdir():  # finished long ago
        os.utime(path, (1e9, 1e9))
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """Four checkpoints, an experiment on them and its text."""
    monkeypatch.chdir(tmp_path)
    for step in STEPS:
        checkpoint(step)
    Path("text.jsonl").write_text(json.dumps({"text": "a b c d " * 100}) + "\n")
    Path("mine.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    return tmp_path / "run"


def loaded(**changes: Any) -> schema.Settings:
    given = EXPERIMENT | {"snapshots": EXPERIMENT["snapshots"] | changes}
    return sources.resolve(schema.load(given))


def publish_all() -> None:
    """What a run of the experiment keeps: its snapshots, tokenizer and resolved configuration."""
    settings, home = loaded(), Path("results/mine")
    for step in settings.snapshots.chosen:
        sources.publish(settings, step, home / f"snapshots/step{step}")
    sources.tokenizer(settings, home / "corpus/own-tokenizer")
    (home / "config.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))


def check() -> tuple[int, list[str]]:
    """Exit code and lines of `ontogeny check mine.yaml`."""
    done = CliRunner().invoke(main, ["check", "mine.yaml"], catch_exceptions=True)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    lines = done.output.splitlines()
    if done.exit_code == 0:
        assert lines.pop(0) == "mine.yaml: can run"
        assert lines.pop(0).startswith("device here: ")
    return done.exit_code, lines


# Configurations


def test_a_wider_step_is_named_with_its_key(run) -> None:
    (run / "checkpoint-100/config.json").write_text(json.dumps(CONFIG | {"n_embd": 16}))
    code, lines = check()
    assert code == 1
    assert lines[0] == (
        "ontogeny: snapshots.steps: config.json of step 100 has n_embd 16, not 8, as the others; "
        "leave them out: all snapshots must be one model"
    )


@pytest.mark.parametrize(
    ("changes", "fault", "doubt"),
    [
        ({"vocab_size": 5}, "vocab_size 5, not 4", None),
        ({"n_head": 4}, "n_head 4, not 2", None),
        ({"activation_function": "relu"}, 'activation_function "relu", not "gelu_new"', None),
        ({"rope_theta": 5e6}, None, "rope_theta 5000000.0, not null"),
        ({"transformers_version": "4.0", "torch_dtype": "float16", "use_cache": False}, None, None),
        ({"resid_pdrop": 0.5, "pad_token_id": 3}, None, None),
        ({"activation_function": "gelu_new"}, None, None),  # the default, written out
    ],
)
def test_which_keys_have_to_agree(changes, fault, doubt) -> None:
    configs = {step: dict(CONFIG) for step in STEPS} | {100: CONFIG | changes}
    faults, doubts = same.config_lines(configs)
    for lines, wanted in ((faults, fault), (doubts, doubt)):
        assert len(lines) == (wanted is not None)
        if wanted is not None:
            assert lines[0].startswith(
                f"snapshots.steps: config.json of step 100 has {wanted}, as the others; "
            )


@pytest.mark.parametrize(
    "changes",
    [{"n_embd": "wide"}, {"n_embd": 9}, {"n_layer": 0}, {"model_type": ["gpt2"]}, {"n_head": None}],
)
def test_a_configuration_that_makes_no_model_is_a_line(run, changes) -> None:
    for steps in (STEPS, (200,)):
        for step in steps:
            (run / f"checkpoint-{step}/config.json").write_text(json.dumps(CONFIG | changes))
        code, lines = check()
        assert code == 1
        assert all(line.startswith("ontogeny: snapshots") for line in lines), lines
        for step in STEPS:
            (run / f"checkpoint-{step}/config.json").write_text(json.dumps(CONFIG))


def test_tensors_of_another_shape_under_the_same_configuration(run) -> None:
    wide = tensors(200) | {"transformer.wte.weight": np.zeros((6, 8), np.float32)}
    save_file(wide, run / "checkpoint-200/model.safetensors", {"format": "pt"})
    (line,) = sources.faults(loaded(), "results")
    assert line.startswith(
        "snapshots.steps: transformer.wte.weight of step 200 has the shape [6, 8], that of steps "
        "0, 50 and 100 [4, 8]; "
    )


# Tokenizers


def tokenizer(folder: Path, words: dict[str, int], **more: Any) -> None:
    given = {"model": {"type": "WordLevel", "vocab": words}, "added_tokens": [], **more}
    (folder / "tokenizer.json").write_text(json.dumps(given))
    os.utime(folder / "tokenizer.json", (1e9, 1e9))


def test_ids_that_mean_other_text_are_refused(run) -> None:
    tokenizer(run / "checkpoint-50", {"b": 0, "a": 1, "c": 2, "d": 3})
    (line,) = sources.faults(loaded(), "results")
    assert line == (
        "snapshots.steps: tokenizer.json of step 50 gives 'b' the id 0, but that of step 0 1; "
        "leave them out: ids must mean the same text for all snapshots"
    )
    tokenizer(run / "checkpoint-50", {"z": 0, "b": 1, "c": 2, "d": 3})
    (line,) = sources.faults(loaded(), "results")
    assert "of step 50 gives 'z' the id 0, but that of step 0 has 'a' there" in line


def test_a_tokenizer_that_grows_is_a_doubt(run) -> None:
    tokenizer(run / "checkpoint-200", WORDS, added_tokens=[{"content": "<asker>", "id": 4}])
    assert sources.faults(loaded(), "results") == []
    (line,) = sources.advice(loaded(), "results")
    assert line.startswith(
        "snapshots.steps: tokenizer.json of step 200 has 1 tokens more than that of step 0 "
        "('<asker>'); "
    )
    tokenizer(run / "checkpoint-200", WORDS, version="1.0")
    (line,) = sources.advice(loaded(), "results")
    assert "has the same tokens as that of step 0" in line


def test_sentencepiece_alone_is_one_line(run) -> None:
    for step in STEPS:
        (run / f"checkpoint-{step}/tokenizer.json").rename(
            run / f"checkpoint-{step}/tokenizer.model"
        )
    if any(map(installed, ("sentencepiece", "google.protobuf"))):
        pytest.skip("the libraries that read it are here")
    code, lines = check()
    assert code == 1
    assert lines[0].startswith(
        "ontogeny: snapshots.local.tokenizer: run/checkpoint-200 has tokenizer.model "
        "(SentencePiece or tiktoken) but no tokenizer.json; make one in an environment with `pip "
    )
    assert "AutoTokenizer.from_pretrained('run/checkpoint-200').save_pretrained(" in lines[0]


def installed(module: str) -> bool:
    from ontogeny.snapshots import local

    return local._installed(module)


# Weights


def test_equal_weights_are_advice_for_each_pair(run) -> None:
    for step, other in ((50, 0), (200, 100)):
        source = run / f"checkpoint-{other}/model.safetensors"
        shutil.copy2(source, run / f"checkpoint-{step}/model.safetensors")
    code, lines = check()
    assert code == 0
    assert lines == [
        *(
            f"advice: snapshots.steps: of run/checkpoint-{{step}} {pair} have the same weights; "
            "one of them is not what its name says, or nothing was learned between them: leave "
            "one out"
            for pair in ("steps 0 and 50", "steps 100 and 200")
        ),
    ]


def test_equal_weights_in_other_files_are_found(run) -> None:
    """In shards, and under the names of a compiled model."""
    state = load_file(run / "checkpoint-0/model.safetensors")
    folder = run / "checkpoint-50"
    (folder / "model.safetensors").unlink()
    files = {name: f"model-{i:05d}-of-00003.safetensors" for i, name in enumerate(state, 1)}
    for name, file in files.items():
        save_file({name: state[name]}, folder / file, {"format": "pt"})
    (folder / weights.INDEX).write_text(json.dumps({"weight_map": files}))
    wrapped = {f"_orig_mod.{name}": value for name, value in state.items()}
    save_file(wrapped, run / "checkpoint-100/model.safetensors", {"format": "pt"})
    found = {step: weights.find(run / f"checkpoint-{step}") for step in STEPS}
    assert same.equal_weights(same.contents(found)) == [[0, 50, 100]]


def test_one_bit_makes_two_checkpoints(run) -> None:
    state = load_file(run / "checkpoint-0/model.safetensors")
    state["transformer.h.0.ln_1.weight"].view(np.uint8)[0] ^= 1  # outside of what is sampled
    save_file(state, run / "checkpoint-50/model.safetensors", {"format": "pt"})
    found = {step: weights.find(run / f"checkpoint-{step}") for step in (0, 50)}
    assert same.equal_weights(same.contents(found)) == []


def test_many_equal_checkpoints_are_one_line() -> None:
    (line,) = same.equal_lines([list(range(10))], "run")
    assert line.startswith("snapshots.steps: of run steps 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 have the")


def test_a_file_that_was_cut_is_named_before_any_work(run) -> None:
    path = run / "checkpoint-100/model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    os.utime(path, (1e9, 1e9))
    code, lines = check()
    assert code == 1
    assert lines[0].startswith(
        "ontogeny: snapshots.steps: run/checkpoint-100/model.safetensors: damaged safetensors ("
    )
    assert "seconds ago" not in lines[0]
    os.utime(path)
    assert check()[1][0].endswith("seconds ago: wait until the training has saved it")


def test_a_checkpoint_of_just_now_is_advice(run) -> None:
    os.utime(run / "checkpoint-200/config.json")
    code, lines = check()
    assert code == 0
    assert lines[0].startswith("advice: snapshots.steps: run/checkpoint-200 was written ")
    assert lines[0].endswith("; if a training is still saving it, wait until it is done")
    assert len(lines) == 1


# What was read stays


def test_a_checkpoint_that_vanished_takes_no_step_out_of_the_experiment(run) -> None:
    publish_all()
    read = Path("results/mine/snapshots/step50/model.safetensors").read_bytes()
    files = sources.read_from(loaded(), "results", 50)
    shutil.rmtree(run / "checkpoint-50")
    settings = loaded()
    assert settings.snapshots.chosen == list(STEPS)
    assert Path("results/mine/snapshots/step50/model.safetensors").read_bytes() == read
    assert sources.read_from(settings, "results", 50) == files != []
    code, lines = check()
    assert code == 0
    assert lines == [
        "advice: snapshots.steps: run/checkpoint-{step} no longer has step 50; what results/mine "
        "has read from them stays in use; to leave them out, write steps: [0, 100, 200]",
    ]
    listed = loaded(steps=[0, 50, 100])
    assert sources.faults(listed, "results") == []
    assert sources.faults(loaded(steps=[0, 60]), "results") == [
        "snapshots.steps: run/checkpoint-{step} has no step 60; nearest: 0, 100"
    ]


def test_all_checkpoints_may_vanish(run) -> None:
    publish_all()
    files = sources.tokenizer_files(loaded(), "results")
    shutil.rmtree(run)
    settings = loaded()
    assert settings.snapshots.chosen == list(STEPS)
    assert sources.faults(settings, "results") == []
    assert sources.architecture(settings, "results")["n_embd"] == 8
    kept = sources.tokenizer_files(settings, "results")
    assert [path.name for path in kept] == [path.name for path in files]
    assert [path.read_bytes() for path in kept] == [
        Path("results/mine/corpus/own-tokenizer", path.name).read_bytes() for path in files
    ]
    assert check()[0] == 0


def test_a_step_that_nothing_holds_any_more_is_refused(run) -> None:
    publish_all()
    shutil.rmtree(run / "checkpoint-50")
    shutil.rmtree("results/mine/snapshots/step50")
    with pytest.raises(InputError) as raised:
        loaded()
    assert str(raised.value) == (
        "snapshots.steps: run/checkpoint-{step} had step 50 when results/mine ran last, but no "
        "longer has; to continue without, write steps: [0, 100, 200]"
    )
    assert loaded(steps=[0, 100, 200]).snapshots.chosen == [0, 100, 200]


def test_a_new_checkpoint_is_told(run) -> None:
    publish_all()
    checkpoint(300)
    code, lines = check()
    assert code == 0
    assert lines[0].startswith(
        "advice: snapshots.steps: run/checkpoint-{step} has step 300, new since results/mine ran "
    )
    assert lines[0].endswith("write steps: [0, 50, 100, 200]")


def test_other_folders_under_the_same_name_have_no_memory(run) -> None:
    publish_all()
    shutil.move(run, "other")
    shutil.rmtree("other/checkpoint-50")
    local = {"folders": "other/checkpoint-{step}"}
    assert loaded(local=local).snapshots.chosen == [0, 100, 200]
    assert sources.faults(loaded(local=local, steps=[0, 50]), "results") == [
        "snapshots.steps: other/checkpoint-{step} has no step 50; nearest: 0, 100"
    ]


def test_the_plan_counts_links_only_where_they_can_be_made(run) -> None:
    """Also of files that belong to another user, where the system protects them."""
    found = weights.find(run / "checkpoint-0")
    Path("home").mkdir()
    assert weights.linked(found, Path("home"))
    wrapped = {f"module.{n}": v for n, v in tensors(0).items()}
    save_file(wrapped, run / "checkpoint-50/model.safetensors", {"format": "pt"})
    assert not weights.linked(weights.find(run / "checkpoint-50"), Path("home"))
    protected = Path("/proc/sys/fs/protected_hardlinks")
    if os.getuid() != 0 or not protected.exists() or protected.read_text().strip() != "1":
        return
    os.chmod(run.parent, 0o777)
    os.chmod("home", 0o777)
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        os._exit(int(weights.linked(found, Path("home"))))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_two_models_are_a_list_of_folders(run) -> None:
    """They are steps 0 and 1; one that is missing, or counts its tokens otherwise, is refused."""
    own = EXPERIMENT | {
        "snapshots": {
            "steps": "all",
            "local": {"folders": [f"run/checkpoint-{s}" for s in (50, 0)]},
        }
    }
    Path("two.yaml").write_text(yaml.safe_dump(own))
    resolved = sources.resolve(schema.load("two.yaml"))
    assert resolved.snapshots.chosen == [0, 1]
    assert not sources.faults(resolved, "results")
    sources.publish(resolved, 1, Path("published"))
    published = load_file("published/model.safetensors")["transformer.wte.weight"]
    assert (published == tensors(0)["transformer.wte.weight"]).all()

    tokenizer = run / "checkpoint-50/tokenizer.json"
    words = {"model": {"type": "WordLevel", "vocab": WORDS | {"a": 1, "b": 0}}}
    tokenizer.write_text(json.dumps(words | {"added_tokens": []}))
    (line,) = sources.faults(resolved, "results")
    assert "tokenizer.json of step" in line
    shutil.rmtree(run / "checkpoint-50")
    (line,) = sources.faults(resolved, "results")
    assert line == "snapshots.local.folders: run/checkpoint-50: no such folder; correct it"
