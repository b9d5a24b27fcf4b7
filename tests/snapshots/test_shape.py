"""A model's shape from its configuration, held to real models and to torch's own FLOP counter."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from ontogeny.files import InputError
from ontogeny.settings import Pretrain
from ontogeny.snapshots import shape, sites

CONTEXT = 128  # so long that attention is half of a block of width 32
COMMON = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
CONFIGS = {
    "gpt_neox": COMMON,
    "gpt2": COMMON | {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": CONTEXT},
    "llama": COMMON | {"tie_word_embeddings": False},
    "qwen3": COMMON | {"head_dim": 16, "tie_word_embeddings": True},
    "olmo2": COMMON,
    "gemma2": COMMON | {"head_dim": 16},
    "opt": COMMON | {"ffn_dim": 64, "word_embed_proj_dim": 16},
    "mixtral": COMMON | {"num_local_experts": 4, "num_experts_per_tok": 2},
}
DENSE = [name for name in CONFIGS if name != "mixtral"]


def described(name):
    return {"model_type": name} | CONFIGS[name] | {"a_key_of_somebody": [1, 2]}


def made(config):
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).eval()


def count(module):
    return sum(w.numel() for w in module.parameters())


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_of_the_model(name):
    config = described(name)
    got, model = shape.of_config(config), made(config)
    blocks = sites.blocks(model)
    table, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert got.parameters == count(model)
    assert got.parameters_by_block == tuple(map(count, blocks))
    assert got.embedding_parameters == table.numel()
    assert got.unembedding_parameters == (0 if output is table else output.numel())
    assert (got.width, got.layers, got.heads, got.vocabulary) == (32, 3, 4, 96)
    assert got.positions == CONTEXT
    for layer in (2, 1, 0):
        sites.truncate(model, layer)
        assert got.parameters_to(layer) == count(model)
    assert got.parameters_to(0) < got.parameters


def test_widths_of_attention():
    got = shape.of_config(described("qwen3"))
    attention = sites.blocks(made(described("qwen3")))[0].self_attn
    assert got.attention_width == attention.q_proj.out_features == 64
    assert got.key_value_width == attention.k_proj.out_features == 32
    other = shape.of_config({k: v for k, v in described("gpt2").items() if "key_value" not in k})
    assert (other.attention_width, other.key_value_width) == (32, 32)


def counted(run):
    """FLOPs that torch counts, with attention as plain matrix products: others it may not count."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", DENSE)
def test_flops_are_those_that_torch_counts(name):
    config = described(name)
    got, model = shape.of_config(config), made(config)
    ids = torch.randint(96, (2, CONTEXT), generator=torch.Generator().manual_seed(0))
    forward = counted(lambda: model(input_ids=ids, use_cache=False))
    assert got.flops_per_token(CONTEXT) * ids.numel() == pytest.approx(forward, rel=0.02)
    # Attention is not negligible here: without it the count would be far off.
    assert got.flops_per_token(0) * ids.numel() < 0.75 * forward
    for layer in (0, 1):
        part = counted(lambda i=layer: sites.read(model, ids, [(i, "residual")]))
        assert got.flops_per_token(CONTEXT, layer) * ids.numel() == pytest.approx(part, rel=0.02)
    both = counted(lambda: model(input_ids=ids, use_cache=False).logits.sum().backward())
    assert 3 * got.flops_per_token(CONTEXT) * ids.numel() == pytest.approx(both, rel=0.05)


def test_experts_count_as_far_as_a_token_goes_through_them():
    got = shape.of_config(described("mixtral"))
    experts = 3 * 32 * 64
    attention = 2 * 32 * 32 + 2 * 32 * 16
    assert got.parameters_by_block[0] == 4 * experts + attention + 4 * 32 + 2 * 32
    assert got.block_matrix_parameters == 2 * experts + attention + 4 * 32


def test_blocks_of_different_sizes_are_told_apart():
    sparse = {"num_experts": 4, "num_experts_per_tok": 1, "moe_intermediate_size": 48}
    config = {"model_type": "qwen3_moe"} | COMMON | sparse | {"mlp_only_layers": [0]}
    got, model = shape.of_config(config), made(config)
    assert got.parameters_by_block == tuple(map(count, sites.blocks(model)))
    assert got.parameters_by_block[0] < got.parameters_by_block[1]
    sites.truncate(model, 0)
    assert got.parameters_to(0) == count(model)


def test_an_encoder_of_images_is_neither_run_nor_kept():
    text = {k: v for k, v in COMMON.items() if k != "vocab_size"} | {"vocab_size": 300}
    config = {
        "model_type": "gemma3",
        "text_config": text | {"head_dim": 8},
        "vision_config": {
            "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
            "intermediate_size": 32, "image_size": 28, "patch_size": 14,
        },
        "mm_tokens_per_image": 4, "image_token_index": 299, "boi_token_index": 298,
        "eoi_token_index": 297,
    }  # fmt: skip
    got, model = shape.of_config(config), made(config)
    assert got.parameters == count(model)
    ids = torch.zeros((1, CONTEXT), dtype=torch.long)
    run = counted(lambda: model(input_ids=ids, use_cache=False))
    assert got.flops_per_token(CONTEXT) * ids.numel() == pytest.approx(run, rel=0.02)
    sites.truncate(model, 1)
    assert got.parameters_to(1) == count(model)


def test_a_large_model_takes_no_memory():
    pythia = {"model_type": "gpt_neox", "vocab_size": 50432, "hidden_size": 4096}
    pythia |= {"num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 16384}
    got = shape.of_config(pythia | {"tie_word_embeddings": False})
    assert got.parameters == 6_857_302_016  # Pythia-6.9B's model card
    assert got.embedding_parameters == got.unembedding_parameters == 50432 * 4096
    assert got.block_matrix_parameters == 12 * 4096**2


def test_a_shape_is_kept_and_read_without_torch(tmp_path):
    config = described("gemma2")
    got = shape.cached(config, tmp_path / "shapes")
    assert got == shape.of_config(config)
    (file,) = (tmp_path / "shapes").iterdir()
    program = (
        "import json, sys; from pathlib import Path; from dataclasses import asdict\n"
        "from ontogeny.snapshots import shape\n"
        "kept = shape.cached(json.loads(sys.argv[1]), Path(sys.argv[2]))\n"
        "assert kept.parameters_to(1) and not {'torch', 'transformers'} & sys.modules.keys()\n"
        "print(json.dumps(asdict(kept)))"
    )
    words = [sys.executable, "-c", program, json.dumps(config), str(file.parent)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(json.dumps(asdict(got)))
    file.write_text('{"width": 32}')  # as another version may have left
    assert shape.cached(config, file.parent) == got
    assert json.loads(file.read_text())["layers"] == 3
    assert shape.cached(config | {"num_hidden_layers": 2}, file.parent).layers == 2
    assert len(list(file.parent.iterdir())) == 2


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("nobodys", "transformers does not know the architecture 'nobodys'"),
        (None, "transformers does not know the architecture 'None'"),
        (
            "clip",
            "this configuration does not give a causal language model of the architecture 'clip'",
        ),
    ],
)
def test_an_architecture_that_has_no_shape(kind, said):
    with pytest.raises(InputError, match=f"^snapshots: {said}") as error:
        shape.of_config({} if kind is None else {"model_type": kind})
    assert "\n" not in str(error.value)


def test_a_layer_that_the_model_lacks():
    got = shape.of_config(described("llama"))
    said = "activations.layers: layer 3 does not exist; the model has 3, numbered 0 to 2"
    with pytest.raises(InputError, match=said):
        got.parameters_to(3)
    with pytest.raises(InputError, match=said):
        got.flops_per_token(CONTEXT, 3)


@pytest.mark.parametrize("tied", [False, True])
def test_the_shape_of_the_model_that_is_trained_here_is_known_in_advance(tied):
    for width, layers, heads, rotary, vocabulary in ((32, 3, 4, 1.0, 96), (48, 1, 6, 0.5, 1000)):
        p = Pretrain(
            width=width, layers=layers, heads=heads, rotary_share=rotary, tied_embeddings=tied
        )
        config = shape.config_of_pretrain(p, vocabulary, CONTEXT)
        assert shape.of_pretrain(p, vocabulary, CONTEXT) == shape.of_config(config)


def test_the_model_that_is_trained_here():
    p = Pretrain(width=32, layers=3, heads=4)
    config = shape.config_of_pretrain(p, 96, CONTEXT)
    got, model = shape.of_config(config), made(config)
    assert type(model).__name__ == "GPTNeoXForCausalLM"
    assert got.parameters == count(model)
    assert got.unembedding_parameters == got.embedding_parameters == 96 * 32
    # Full rotary positions, and a residual that runs through attention and MLP in turn.
    assert model.gpt_neox.rotary_emb.inv_freq.shape == (32 // 4 // 2,)
    ids = torch.zeros((1, 5), dtype=torch.long)
    streams = [(0, "attention_out"), (0, "mlp_in")]
    read = sites.read(model, ids, streams)
    after = model.gpt_neox.embed_in(ids) + read[0, "attention_out"]
    torch.testing.assert_close(
        read[0, "mlp_in"], model.gpt_neox.layers[0].post_attention_layernorm(after)
    )
