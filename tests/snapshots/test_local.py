"""Snapshots from folders, and the weights of any folder in Hugging Face format."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ontogeny.files import InputError
from ontogeny.settings import Local
from ontogeny.snapshots import local, weights


def checkpoint(folder: Path, seed: int = 0, tokenizer: bool = True) -> Path:
    """A folder as a Trainer leaves it: weights, and much that no snapshot needs."""
    folder.mkdir(parents=True)
    tensor = np.random.default_rng(seed).standard_normal((8, 4), dtype=np.float32)
    save_file({"w": tensor}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    for name in ("optimizer.pt", "training_args.bin", "trainer_state.json", "rng_state.pth"):
        (folder / name).write_bytes(b"never read")
    if tokenizer:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_text(f'{{"of": "{folder.name}"}}')
    return folder


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """Checkpoints 5, 20 and 100 in runs/a, seen from the folder that holds runs."""
    monkeypatch.chdir(tmp_path)
    for step in (100, 5, 20):
        checkpoint(Path(f"runs/a/checkpoint-{step}"), seed=step)
    return tmp_path / "runs"


TRAINER = Local(folders="runs/a/checkpoint-{step}")


def test_folders_by_step_in_the_order_of_steps(runs) -> None:
    (runs / "a/checkpoint-7").write_text("no folder")
    (runs / "a/checkpoint-best").mkdir()
    (runs / "a/checkpoint-12-old").mkdir()
    found = local.folders(TRAINER)
    assert list(found.items()) == [(s, Path(f"runs/a/checkpoint-{s}")) for s in (5, 20, 100)]
    assert local.resolve_steps(TRAINER) == [5, 20, 100]
    assert list(local.folders(Local(folders=f"{runs}/a/checkpoint-{{step}}"))) == [5, 20, 100]


@pytest.mark.parametrize(
    ("pattern", "steps"),
    [
        ("runs/?/checkpoint-{step}", [5, 20, 100]),
        ("runs/[ab]/check*-{step}", [5, 20, 100]),
        ("runs/[!a]/checkpoint-{step}", []),
        ("runs/**/checkpoint-{step}", [5, 20, 100]),
        ("./runs//a/*{step}", [5, 20, 100]),
        ("runs/a/checkpoint-{step}0", []),
        ("runs/b/step{step:06d}/*", [3, 40]),
    ],
)
def test_patterns(runs, pattern, steps) -> None:
    for name in ("step000003", "step000040"):
        (runs / "b" / name / "hf").mkdir(parents=True)
    assert list(local.folders(Local(folders=pattern))) == steps


def test_two_folders_of_one_step_are_one_line(runs) -> None:
    checkpoint(runs / "b/checkpoint-20")
    (fault,) = local.faults(Local(folders="runs/*/checkpoint-{step}"), [5])
    assert fault == (
        "snapshots.local.folders: runs/a/checkpoint-20 and runs/b/checkpoint-20 are both step 20; "
        "make the pattern more specific"
    )


def test_faults_name_what_is_missing(runs) -> None:
    assert local.faults(TRAINER, [5, 100]) == local.faults(TRAINER, "all") == []
    assert local.faults(TRAINER, [5, 50, 7]) == [
        "snapshots.steps: runs/a/checkpoint-{step} has no step 50; nearest: 5, 20",
        "snapshots.steps: runs/a/checkpoint-{step} has no step 7; nearest: 5, 20",
    ]
    (fault,) = local.faults(Local(folders="runs/none-{step}"), "all")
    assert fault.startswith("snapshots.local.folders: no folder matches runs/none-{step} (from ")
    with pytest.raises(InputError, match="no folder matches runs/none"):
        local.resolve_steps(Local(folders="runs/none-{step}"))
    (runs / "a/checkpoint-5/config.json").unlink()
    (runs / "a/checkpoint-20/model.safetensors").unlink()
    assert local.faults(TRAINER, "all") == [
        "snapshots.steps: runs/a/checkpoint-5 has no config.json; remove step 5 or save it again",
        "snapshots.steps: runs/a/checkpoint-20 has no model.safetensors or pytorch_model.bin; "
        "remove step 20 or save it again",
    ]


def test_publish_links_what_a_snapshot_needs(runs) -> None:
    out = Path("results/step20")
    local.publish(TRAINER, 20, out)
    assert sorted(os.listdir(out)) == ["config.json", "model.safetensors", "source.json"]
    there = runs / "a/checkpoint-20/model.safetensors"
    assert os.path.samefile(out / "model.safetensors", there)
    assert not (out / "model.safetensors").is_symlink()
    about = json.loads((out / "source.json").read_text())
    assert (about["folder"], about["step"]) == ("runs/a/checkpoint-20", 20)
    digest = hashlib.sha256(there.read_bytes()).hexdigest()
    assert about["files"]["model.safetensors"] == {
        "sha256": digest,
        "size": there.stat().st_size,
    }
    assert sorted(about["files"]) == ["config.json", "model.safetensors"]
    with pytest.raises(InputError, match=r"has no step 21; nearest: 5, 20$"):
        local.publish(TRAINER, 21, Path("results/step21"))
    assert os.listdir("results") == ["step20"]


def test_a_file_system_without_links_gets_copies(runs, monkeypatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    local.publish(TRAINER, 5, Path("out"))
    there, here = runs / "a/checkpoint-5/model.safetensors", Path("out/model.safetensors")
    assert here.read_bytes() == there.read_bytes()
    assert not os.path.samefile(here, there)


def test_tokenizer_of_the_last_step_or_of_its_own_folder(runs) -> None:
    local.tokenizer(TRAINER, [5, 20], Path("last"))
    assert sorted(os.listdir("last")) == ["config.json", "tokenizer.json", "tokenizer_config.json"]
    assert json.loads(Path("last/tokenizer.json").read_text()) == {"of": "checkpoint-20"}
    own = Local(folders=TRAINER.folders, tokenizer="runs/words")
    checkpoint(runs / "words")
    local.tokenizer(own, [5, 20], Path("own"))
    assert json.loads(Path("own/tokenizer.json").read_text()) == {"of": "words"}


def test_a_missing_tokenizer_is_told_with_its_key(runs) -> None:
    checkpoint(runs / "a/checkpoint-200", tokenizer=False)
    wanted = (
        "snapshots.local.tokenizer: runs/a/checkpoint-200 has no tokenizer files "
        "(tokenizer.json); name the tokenizer's folder there"
    )
    assert local.faults(TRAINER, [20, 200]) == [wanted]
    with pytest.raises(InputError) as raised:
        local.tokenizer(TRAINER, [20, 200], Path("out"))
    assert str(raised.value) == wanted
    assert not Path("out").exists()
    elsewhere = Local(folders=TRAINER.folders, tokenizer="runs/none")
    assert local.faults(elsewhere, [20]) == [
        "snapshots.local.tokenizer: runs/none is not a folder; correct it"
    ]


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-4], lambda b: b + b"more", lambda b: b"\xff" * 64, lambda b: b""]
)
def test_damaged_safetensors_are_one_line(tmp_path, damage) -> None:
    source = checkpoint(tmp_path / "a")
    file = source / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InputError) as raised:
        weights.publish(source, tmp_path / "out", {})
    assert str(raised.value).startswith(f"{file}: damaged safetensors (")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_shard_that_lacks_what_the_index_names(tmp_path) -> None:
    source = checkpoint(tmp_path / "a")
    shard = "model-00001-of-00002.safetensors"
    (source / "model.safetensors").rename(source / shard)
    index = {"weight_map": {"w": shard, "v": shard}}
    (source / weights.INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match=rf"{shard}: lacks v, which {weights.INDEX} names"):
        weights.publish(source, tmp_path / "out", {})
    index["weight_map"]["v"] = "model-00002-of-00002.safetensors"
    (source / weights.INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"names model-00002-of-00002.safetensors, which is miss"):
        weights.publish(source, tmp_path / "out", {})
    index["weight_map"] = {"w": "../a/model.safetensors"}
    (source / weights.INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"not a \.safetensors file beside it"):
        weights.publish(source, tmp_path / "out", {})


class Malicious:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


@pytest.mark.parametrize("way", ["torch", "legacy", "pickle"])
def test_a_malicious_pickle_is_never_run(tmp_path, way) -> None:
    import torch

    source, trap = checkpoint(tmp_path / "a"), tmp_path / "trap"
    (source / "model.safetensors").unlink()
    file = source / "pytorch_model.bin"
    state = {"w": torch.ones(2), "trap": Malicious(trap)}
    if way == "pickle":
        file.write_bytes(pickle.dumps(state["trap"]))
    else:
        torch.save(state, file, _use_new_zipfile_serialization=way == "torch")
    with pytest.raises(InputError) as raised:
        weights.publish(source, tmp_path / "out", {})
    assert str(raised.value).startswith(f"{file}: cannot be loaded as plain tensors (")
    assert "\n" not in str(raised.value)
    assert not trap.exists()
    assert not (tmp_path / "out").exists()
    if way == "torch":  # the trap is real
        torch.load(file, weights_only=False)
        assert trap.exists()


@pytest.mark.parametrize("damage", [lambda b: b[:-500], lambda b: b"\0" * 100, lambda b: b""])
def test_a_damaged_pickle_is_one_line(tmp_path, damage) -> None:
    import torch

    source = checkpoint(tmp_path / "a")
    (source / "model.safetensors").unlink()
    file = source / "pytorch_model.bin"
    torch.save({"w": torch.ones(2)}, file)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InputError) as raised:
        weights.publish(source, tmp_path / "out", {})
    assert str(raised.value).startswith(f"{file}: cannot be loaded as plain tensors (")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_tensors_become_safetensors(tmp_path, legacy) -> None:
    """Tied, overlapping, transposed and 16-bit tensors keep their values and types."""
    import torch
    from safetensors.torch import load_file as load_torch

    source = checkpoint(tmp_path / "a")
    (source / "model.safetensors").unlink()
    base = torch.arange(12, dtype=torch.bfloat16).reshape(3, 4)
    state = {
        "w": base,
        "tied": base,
        "row": base[1],
        "turned": base.T,
        "mask": torch.tensor([True, False]),
        "one": torch.tensor(3),
        "none": torch.empty(0),
    }
    file = source / "pytorch_model.bin"
    torch.save(state, file, _use_new_zipfile_serialization=not legacy)
    assert weights.publish(source, tmp_path / "out", {"step": 1}) == ["pytorch_model.bin"]
    about = json.loads((tmp_path / "out/source.json").read_text())
    assert about["step"] == 1
    stored = load_torch(tmp_path / "out/model.safetensors")
    assert set(stored) == set(state)
    for name, tensor in state.items():
        assert stored[name].dtype == tensor.dtype
        assert torch.equal(stored[name], tensor)
    assert about["converted"]["pytorch_model.bin"]["size"] == file.stat().st_size
    assert sorted(about["files"]) == ["config.json", "model.safetensors"]


def test_pickles_of_other_things_are_refused(tmp_path) -> None:
    import torch

    source = checkpoint(tmp_path / "a")
    (source / "model.safetensors").unlink()
    file = source / "pytorch_model.bin"
    for state, said in (
        ({"w": {"x": torch.ones(1)}}, "w is a dict, not a dense tensor"),
        ({"w": torch.ones(2, 2).to_sparse()}, "w is a Tensor, not a dense tensor"),
        ([torch.ones(1)], "holds no tensors by name"),
    ):
        torch.save(state, file)
        with pytest.raises(InputError, match=said):
            weights.publish(source, tmp_path / "out", {})


def test_safetensors_come_before_pickles(tmp_path) -> None:
    source = checkpoint(tmp_path / "a", seed=3)
    (source / "pytorch_model.bin").write_bytes(pickle.dumps(Malicious(tmp_path / "trap")))
    weights.publish(source, tmp_path / "out", {})
    there, here = source / "model.safetensors", tmp_path / "out/model.safetensors"
    assert np.array_equal(load_file(here)["w"], load_file(there)["w"])
    assert sorted(os.listdir(tmp_path / "out")) == [
        "config.json",
        "model.safetensors",
        "source.json",
    ]
    (source / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json: damaged"):
        weights.publish(source, tmp_path / "out", {})
