"""Checkpoints as they come: wrapped, in a Lightning file, as an adapter, in shards of others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from ontogeny.files import InputError
from ontogeny.settings import Local
from ontogeny.snapshots import local, naming, sites, weights

SIZE = {"vocab_size": 32, "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2}
LLAMA = {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip
IDS = torch.arange(10)[None]


def model(kind: str = "gpt2", **more: Any) -> Any:
    """A tiny model; of a Llama, the head is tied unless told otherwise."""
    torch.manual_seed(0)
    config = GPT2Config(**SIZE) if kind == "gpt2" else LlamaConfig(**LLAMA, **more)
    return AutoModelForCausalLM.from_config(config).eval()


def logits(folder: Path) -> torch.Tensor:
    loaded = sites.load_model(folder, torch.device("cpu"), torch.float32)
    with torch.no_grad():
        return loaded(IDS).logits


def own(of: Any) -> torch.Tensor:
    with torch.no_grad():
        return of(IDS).logits


def saved(folder: Path, of: Any, prefix: str = "", kind: str = "safetensors") -> Path:
    """A checkpoint of a model whose names have a prefix; tied tensors once."""
    of.save_pretrained(folder)
    state = {prefix + n: t.clone() for n, t in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    if kind == "safetensors":
        save_file(state, folder / "model.safetensors", {"format": "pt"})
    elif kind == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    elif kind == "ckpt":
        about = {"epoch": 3, "global_step": 7, "pytorch-lightning_version": "2.5", "loops": {}}
        torch.save({**about, "state_dict": state, "optimizer_states": []}, folder / "last.ckpt")
    return folder


@pytest.mark.parametrize("kind", ["safetensors", "bin", "ckpt"])
@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "_fsdp_wrapped_module.", "module._orig_mod.", "model.",
               "net.backbone.", "_forward_module.model._orig_mod.", ""],
)  # fmt: skip
def test_what_wraps_a_model_leaves_its_logits(tmp_path, prefix, kind) -> None:
    one = model()
    source = saved(tmp_path / "a", one, prefix, kind)
    weights.publish(source, tmp_path / "out", {})
    assert torch.equal(logits(tmp_path / "out"), own(one))
    plain = not prefix and kind == "safetensors"
    linked = (tmp_path / "out/model.safetensors").stat().st_nlink == 2
    assert linked == plain


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "model.", "model.module.", "student."])
def test_a_llama_keeps_the_model_of_its_own_names(tmp_path, tied, prefix) -> None:
    one = model("llama", tie_word_embeddings=tied)
    weights.publish(saved(tmp_path / "a", one, prefix), tmp_path / "out", {})
    assert torch.equal(logits(tmp_path / "out"), own(one))
    names = set(load_file(tmp_path / "out/model.safetensors"))
    assert {name.split(".")[0] for name in names} == ({"model"} if tied else {"model", "lm_head"})


def test_wrappers_inside_of_the_model(tmp_path) -> None:
    """FSDP and activation checkpoints wrap each block."""
    one = model()
    source = saved(tmp_path / "a", one)
    state = load_file(source / "model.safetensors")
    inner = "_fsdp_wrapped_module._checkpoint_wrapped_module."
    state = {n.replace("h.0.", f"h.0.{inner}").replace("h.1.", f"h.1.{inner}"): t
             for n, t in state.items()}  # fmt: skip
    save_file(state, source / "model.safetensors", {"format": "pt"})
    weights.publish(source, tmp_path / "out", {})
    assert torch.equal(logits(tmp_path / "out"), own(one))


def test_wrapped_shards_have_an_index_of_the_new_names(tmp_path) -> None:
    one = model()
    source = saved(tmp_path / "a", one, "_orig_mod.")
    state = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    where = {}
    for i, name in enumerate(sorted(state)):
        where[name] = f"model-{i % 2 + 1:05d}-of-00002.safetensors"
    for file in set(where.values()):
        part = {n: t for n, t in state.items() if where[n] == file}
        save_file(part, source / file, {"format": "pt"})
    (source / weights.INDEX).write_text(json.dumps({"weight_map": where}))
    weights.publish(source, tmp_path / "out", {})
    assert torch.equal(logits(tmp_path / "out"), own(one))
    named = weights.shards(tmp_path / "out" / weights.INDEX)
    assert sorted(n for names in named.values() for n in names) == [
        name.removeprefix("_orig_mod.") for name in sorted(where)
    ]


def test_names_that_only_a_models_own_code_knows_stay() -> None:
    names = ["model.transformer.wte.weight", "model.transformer.ff_out.weight"]
    assert naming.unwrapped(names, {}, code=True) == {name: name for name in names}
    assert naming.unwrapped(["w", "v"], {}) == {"w": "w", "v": "v"}
    assert naming.unwrapped([], {}) == {}


def test_flattened_parameters_are_named(tmp_path) -> None:
    source = saved(tmp_path / "a", model())
    (source / "model.safetensors").unlink()
    torch.save({"_fsdp_wrapped_module._flat_param": torch.ones(9)}, source / "pytorch_model.bin")
    with pytest.raises(
        InputError, match=r"_flat_param has parameters in FSDP's flattened form; sa"
    ):
        weights.publish(source, tmp_path / "out", {})


# Lightning


@pytest.fixture
def lightning(tmp_path, monkeypatch) -> Any:
    """Files of a Lightning run, whose model has its configuration elsewhere."""
    monkeypatch.chdir(tmp_path)
    one = model()
    saved(tmp_path / "made", one, "model.", "ckpt")
    (tmp_path / "run").mkdir()
    for step in (5, 10):
        (tmp_path / f"run/epoch=0-step={step}.ckpt").write_bytes(
            (tmp_path / "made/last.ckpt").read_bytes()
        )
    (tmp_path / "hf").mkdir()
    one.config.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf/tokenizer.json").write_text("{}")
    return one


def test_files_of_lightning_with_a_configuration_beside(lightning, tmp_path) -> None:
    pattern = "run/epoch=*-step={step}.ckpt"
    where = Local(folders=pattern, config="hf", tokenizer="hf")
    assert local.resolve_steps(where) == [5, 10]
    assert local.faults(where, "all") == []
    local.publish(where, 10, Path("out"))
    assert torch.equal(logits(Path("out")), own(lightning))
    about = json.loads(Path("out/source.json").read_text())
    assert about["read"] == ["hf/config.json", "run/epoch=0-step=10.ckpt"]
    assert local.faults(Local(folders=pattern, tokenizer="hf"), [5]) == [
        "snapshots.local.config: run/epoch=0-step=5.ckpt has only weights; name the model's "
        "config.json"
    ]


# Adapters


def adapter(folder: Path, base: str | None, **more: Any) -> Path:
    """A LoRA adapter of GPT-2's attention, as PEFT saves it."""
    folder.mkdir(parents=True)
    about = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["c_attn"],
             "base_model_name_or_path": base, "fan_in_fan_out": True, "bias": "none"}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(about | more))
    torch.manual_seed(1)
    state = {}
    for layer in range(2):
        name = f"base_model.model.transformer.h.{layer}.attn.c_attn"
        state[f"{name}.lora_A.weight"] = torch.randn(2, 8)
        state[f"{name}.lora_B.weight"] = torch.randn(24, 2)
    save_file(state, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(("slora", "scale"), [(False, 8 / 2), (True, 8 / 2**0.5)])
@pytest.mark.parametrize("named", [True, False])
def test_lora_is_merged_into_its_base(tmp_path, monkeypatch, slora, scale, named) -> None:
    monkeypatch.chdir(tmp_path)
    one = model()
    saved(Path("base"), one)
    folder = adapter(Path("run/checkpoint-5"), "base" if named else "someone/base",
                     use_rslora=slora)  # fmt: skip
    (folder / "tokenizer.json").write_text("{}")
    where = Local(folders="run/checkpoint-{step}", base=None if named else "base")
    assert local.faults(where, [5]) == []
    local.publish(where, 5, Path("out"))
    state = load_file(folder / "adapter_model.safetensors")
    with torch.no_grad():
        for layer, block in enumerate(one.transformer.h):
            name = f"base_model.model.transformer.h.{layer}.attn.c_attn"
            A, B = state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"]
            block.attn.c_attn.weight += scale * (B @ A).T
    assert torch.allclose(logits(Path("out")), own(one), atol=1e-5)
    assert {str(p) for p in local.sources(where, 5)} >= {
        "base/config.json", "run/checkpoint-5/adapter_model.safetensors"
    }  # fmt: skip


def test_an_adapter_without_its_base_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    adapter(Path("run/checkpoint-5"), "someone/base")
    where = Local(folders="run/checkpoint-{step}")
    (line,) = local.faults(where, [5])
    assert line == (
        "snapshots.steps: run/checkpoint-5 holds a PEFT adapter; merge it into its base model "
        "first (merge_and_unload of peft), or name the base model's folder in snapshots.local.base"
    )
    (line,) = local.faults(Local(folders=where.folders, base="none"), [5])
    assert line.startswith("snapshots.local.base: none is not a folder")
    saved(Path("base"), model())
    for more, said in (
        ({"use_dora": True}, "a PEFT adapter (LORA with use_dora), but only plain LoRA is "),
        ({"peft_type": "IA3"}, "a PEFT adapter (IA3), but only plain LoRA is merged here; "),
    ):
        folder = adapter(Path(f"run/other-{said[16:20]}"), "base", **more)
        with pytest.raises(InputError) as raised:
            weights.publish(folder, Path("out"), {})
        assert said in str(raised.value)
    assert not Path("out").exists()


def test_an_adapter_of_another_base_is_named(tmp_path) -> None:
    saved(tmp_path / "base", model("llama"))
    folder = adapter(tmp_path / "a", None)
    with pytest.raises(InputError, match=r"its base model has no transformer\.h\.0\.attn"):
        weights.publish(folder, tmp_path / "out", {}, base=str(tmp_path / "base"))


# Shards of others


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            ["global_step5/mp_rank_00_model_states.pt", "zero_to_fp32.py", "latest"],
            "shards of DeepSpeed; merge them with `python run/checkpoint-5/zero_to_fp32.py "
            "run/checkpoint-5 run/checkpoint-5 --safe_serialization`",
        ),
        (
            ["pytorch_model_fsdp_0/__0_0.distcp", "pytorch_model_fsdp_0/.metadata"],
            "shards of FSDP; merge them with `accelerate merge-weights "
            "run/checkpoint-5/pytorch_model_fsdp_0 run/checkpoint-5`",
        ),
        (
            ["__0_0.distcp", ".metadata"],
            "shards of torch.distributed.checkpoint; merge them with `python -m "
            "torch.distributed.checkpoint.format_utils dcp_to_torch run/checkpoint-5 "
            "run/checkpoint-5/pytorch_model.bin`",
        ),
        (
            ["mp_rank_00/model_optim_rng.pt"],
            "a checkpoint of Megatron; convert it to Hugging Face format first",
        ),
    ],
)
def test_shards_are_named_with_the_command_that_merges_them(
    tmp_path, monkeypatch, files, said
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (*files, "optimizer.pt", "trainer_state.json"):
        path = Path("run/checkpoint-5", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    where = Local(folders="run/checkpoint-{step}")
    assert local.faults(where, [5]) == [f"snapshots.steps: run/checkpoint-5 holds {said}"]
    with pytest.raises(InputError) as raised:
        weights.publish(Path("run/checkpoint-5"), Path("out"), {})
    assert str(raised.value) == f"run/checkpoint-5 holds {said}"
