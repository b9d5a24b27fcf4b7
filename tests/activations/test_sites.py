"""Streams of tiny random models of many architectures, held to what transformers itself returns."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from ontogeny.files import InputError
from ontogeny.snapshots import sites

VOCABULARY, D, LAYERS = 40, 24, 3
STREAMS = ("residual", "attention_out", "mlp_in", "mlp_out")
CPU = torch.device("cpu")
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": D,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def pre_norm(norm):
    """Attention, then an MLP behind `norm`, each added to the stream."""

    def equations(block, h, attention, mlp):
        return getattr(block, norm)(h + attention), h + attention + mlp

    return equations


def parallel(norm):
    """Attention and MLP, behind `norm`, both read the stream as it came."""

    def equations(block, h, attention, mlp):
        return getattr(block, norm)(h), h + attention + mlp

    return equations


def olmo2(block, h, attention, mlp):
    middle = h + block.post_attention_layernorm(attention)
    return middle, middle + block.post_feedforward_layernorm(mlp)


def gemma2(block, h, attention, mlp):
    middle = h + block.post_attention_layernorm(attention)
    mlp_in = block.pre_feedforward_layernorm(middle)
    return mlp_in, middle + block.post_feedforward_layernorm(mlp)


def mlp(block, x):
    out = block.mlp(x)
    return out[0] if isinstance(out, tuple) else out


def opt_mlp(block, x):
    return block.fc2(block.activation_fn(block.fc1(x)))


def bloom_mlp(block, x):
    return block.mlp(x, torch.zeros_like(x))


RMS = pre_norm("post_attention_layernorm")
MODELS = {
    "gpt_neox-sequential": (COMMON | {"use_parallel_residual": False}, RMS, mlp),
    "gpt_neox-parallel": (
        COMMON | {"use_parallel_residual": True}, parallel("post_attention_layernorm"), mlp,
    ),
    "gpt2": (
        COMMON | {"n_embd": D, "n_layer": LAYERS, "n_head": 2, "n_positions": 32},
        pre_norm("ln_2"), mlp,
    ),
    "llama": (COMMON | {"num_key_value_heads": 1}, RMS, mlp),
    "mistral": (COMMON | {"num_key_value_heads": 1}, RMS, mlp),
    "qwen2": (COMMON, RMS, mlp),
    "qwen3": (COMMON | {"head_dim": 8}, RMS, mlp),
    "olmo2": (COMMON, olmo2, mlp),
    "gemma": (COMMON | {"head_dim": 16}, RMS, mlp),
    "gemma2": (COMMON | {"head_dim": 8}, gemma2, mlp),
    "gemma3_text": (COMMON | {"head_dim": 8}, gemma2, mlp),
    "opt": (
        COMMON | {"ffn_dim": 32, "word_embed_proj_dim": 16}, pre_norm("final_layer_norm"), opt_mlp,
    ),
    "bloom": (COMMON | {"n_layer": LAYERS, "n_head": 2}, RMS, bloom_mlp),
    # It writes its attention's output into its MLP's, in place.
    "falcon": (COMMON | {"parallel_attn": True}, parallel("input_layernorm"), mlp),
    "mixtral": (COMMON | {"num_local_experts": 4}, RMS, mlp),
}  # fmt: skip


def randomise(model):
    """Weights that leave no term of a block's equation nought or negligible."""
    with torch.no_grad():
        for w in model.parameters():
            w.normal_(0, 0.4 if w.ndim < 2 else 1.5 / w.shape[-1] ** 0.5)
            if w.ndim < 2:
                w += 0.7
    return model.eval()


def made(name):
    torch.manual_seed(3)
    config = AutoConfig.for_model(name.split("-")[0], **MODELS[name][0])
    return randomise(AutoModelForCausalLM.from_config(config))


def some_ids():
    return torch.randint(VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(1))


def all_streams(model, layers):
    return sites.read(model, some_ids(), [(i, s) for i in layers for s in STREAMS])


@pytest.mark.parametrize("name", MODELS)
def test_streams_satisfy_the_equations_of_the_architecture(name):
    _, equations, mlp_of = MODELS[name]
    model = made(name)
    before = torch.get_rng_state()
    got = all_streams(model, range(LAYERS))
    torch.testing.assert_close(torch.get_rng_state(), before, rtol=0, atol=0)
    assert sites.width(model) == D
    with torch.no_grad():
        hidden = model(input_ids=some_ids(), output_hidden_states=True).hidden_states
        for i, block in enumerate(sites.blocks(model)):
            attention, mlp_out = got[i, "attention_out"], got[i, "mlp_out"]
            assert min(attention.std(), mlp_out.std()) > 1e-2
            mlp_in, residual = equations(block, hidden[i], attention, mlp_out)
            torch.testing.assert_close(got[i, "mlp_in"], mlp_in)
            torch.testing.assert_close(mlp_out, mlp_of(block, mlp_in), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(got[i, "residual"], residual)
            if i < LAYERS - 1:
                torch.testing.assert_close(got[i, "residual"], hidden[i + 1], rtol=0, atol=0)


@pytest.mark.parametrize("name", MODELS)
def test_a_stream_replaced_by_itself_changes_nothing_and_by_noughts_does(name):
    model = made(name)
    got = all_streams(model, [1])
    with torch.no_grad():
        logits = model(input_ids=some_ids()).logits
        scale = logits.std()
        for stream in STREAMS:
            with sites.replaced(model, 1, stream, got[1, stream]):
                again = model(input_ids=some_ids()).logits
            torch.testing.assert_close(again / scale, logits / scale, rtol=1e-4, atol=1e-4)
            with sites.replaced(model, 1, stream, torch.zeros_like(got[1, stream])):
                without = model(input_ids=some_ids()).logits
            assert (without - logits).abs().max() > 1e-2 * scale, stream
        torch.testing.assert_close(model(input_ids=some_ids()).logits, logits, rtol=0, atol=0)


@pytest.mark.parametrize("name", MODELS)
def test_a_truncated_snapshot_gives_the_same_values_and_holds_nothing_else(name, tmp_path):
    model = made(name)
    model.save_pretrained(tmp_path)
    wanted = all_streams(model, [0, 1])
    cut = sites.load_model(tmp_path, CPU, torch.float32, last_layer=1)
    got = all_streams(cut, [0, 1])
    for key, value in wanted.items():
        torch.testing.assert_close(got[key], value, rtol=0, atol=0)
    names = [n for n, _ in cut.named_parameters()]
    assert not any(".2." in n for n in names)
    assert not any(n.startswith("lm_head") for n in names)
    whole = dict(model.named_parameters())
    outside = {n for n in whole if not any(f".{i}." in n for i in range(LAYERS))}
    first = {n for n in outside if "emb" in n or "project_in" in n or ".wte." in n or ".wpe." in n}
    assert {n for n in names if n in outside} == first - {"embed_out.weight", "lm_head.weight"}
    with pytest.raises(InputError, match=r"activations\.layers: layer 3 does not exist; the "):
        sites.load_model(tmp_path, CPU, torch.float32, last_layer=3)


def test_a_projection_that_is_nought_at_the_first_step_hides_nothing():
    model = made("llama")
    with torch.no_grad():
        for block in sites.blocks(model):
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    hidden = model(input_ids=some_ids(), output_hidden_states=True).hidden_states
    got = all_streams(model, [1])
    assert not got[1, "attention_out"].any()
    assert not got[1, "mlp_out"].any()
    mlp_in = sites.blocks(model)[1].post_attention_layernorm(hidden[1])
    torch.testing.assert_close(got[1, "mlp_in"], mlp_in)


@pytest.mark.parametrize("layer", [-1, LAYERS])
def test_a_layer_that_the_model_lacks(layer):
    said = f"activations.layers: layer {layer} does not exist; the model has 3, numbered 0 to 2"
    with pytest.raises(InputError, match=said):
        sites.read(made("gpt2"), some_ids(), [(layer, "residual")])


# Models whose modules' names say nothing


class Mean(nn.Module):
    """Mixes positions: the mean of all up to each, between two matrices; a tuple as output."""

    def __init__(self):
        super().__init__()
        self.x, self.y = nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, *, hidden_states):
        counts = torch.arange(1, hidden_states.shape[1] + 1)[:, None]
        return self.y(self.x(hidden_states).cumsum(1) / counts), None


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.norm = nn.Linear(D, 2 * D), nn.Linear(2 * D, D)

    def forward(self, x):
        return self.norm(self.attention(x).relu())


class Around(nn.Module):
    """Norm and mixing in one module, which hands on the stream and what is to be added."""

    def __init__(self):
        super().__init__()
        self.s, self.t = nn.LayerNorm(D), Mean()

    def forward(self, stream):
        return stream, self.t(hidden_states=self.s(stream))[0]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        # Registered in another order than they run, and as if their names were the others'.
        self.self_attn, self.norm, self.mlp = Two(), nn.LayerNorm(D), Around()

    def forward(self, x):
        stream, more = self.mlp(x)
        middle = stream + more
        return (middle + self.self_attn(x=self.norm(middle)), "aside")


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.all = nn.ModuleList([Block()])

    def forward(self, x):
        return self.all[0](x)


class MeanAlone(nn.Module):
    def __init__(self):
        super().__init__()
        self.only = Mean()

    def forward(self, x):
        return x + self.only(hidden_states=x)[0]


class Nameless(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.names = nn.ModuleDict({"a": nn.Embedding(VOCABULARY, D), "b": nn.LayerNorm(D)})
        self.names["z"] = nn.ModuleList(block() for _ in range(LAYERS))
        self.o = nn.Linear(D, VOCABULARY)
        text = SimpleNamespace(num_hidden_layers=LAYERS, hidden_size=D, vocab_size=VOCABULARY)
        self.config = SimpleNamespace(get_text_config=lambda: text)

    def forward(self, input_ids, use_cache):
        x = self.names["a"](input_ids)
        for block in self.names["z"]:
            out = block(x)
            x = out[0] if isinstance(out, tuple) else out
        return self.o(self.names["b"](x))


@pytest.mark.parametrize("kind", [Block, Wrapped])
def test_streams_are_found_where_names_mislead(kind):
    model = randomise(Nameless(kind))
    got = all_streams(model, range(LAYERS))
    h = model.names["a"](some_ids())
    for i, outer in enumerate(sites.blocks(model)):
        block = outer.all[0] if kind is Wrapped else outer
        attention = block.mlp(h)[1]
        mlp_in = block.norm(h + attention)
        torch.testing.assert_close(got[i, "attention_out"], attention)
        torch.testing.assert_close(got[i, "mlp_in"], mlp_in)
        torch.testing.assert_close(got[i, "mlp_out"], block.self_attn(mlp_in))
        h = h + attention + block.self_attn(mlp_in)
        torch.testing.assert_close(got[i, "residual"], h)
    own = got[1, "mlp_in"]
    logits = model(some_ids(), use_cache=False)
    with sites.replaced(model, 1, "mlp_in", own):
        torch.testing.assert_close(model(some_ids(), use_cache=False), logits)
    with sites.replaced(model, 1, "mlp_in", own + 1):
        assert not torch.allclose(model(some_ids(), use_cache=False), logits, atol=1e-2)
    sites.truncate(model, 1)
    assert [n for n, _ in model.named_parameters() if n[:7] != "names.z"] == ["names.a.weight"]
    again = all_streams(model, [0, 1])
    assert all(torch.equal(again[key], got[key]) for key in again)


def test_a_stream_that_the_model_lacks():
    model = randomise(Nameless(MeanAlone))
    got = sites.read(model, some_ids(), [(0, "attention_out"), (0, "residual")])
    h = model.names["a"](some_ids())
    torch.testing.assert_close(got[0, "residual"], h + got[0, "attention_out"])
    said = r"^activations\.streams: Nameless has no mlp_out in layer 1: .*; remove it$"
    with pytest.raises(InputError, match=said):
        sites.read(model, some_ids(), [(1, "mlp_out")])


# Snapshots that cannot be loaded


@pytest.fixture
def snapshot(tmp_path):
    made("qwen2").save_pretrained(tmp_path / "step7")
    return tmp_path / "step7"


def refused(folder):
    with pytest.raises(InputError) as error:
        sites.load_model(folder, CPU, torch.float32)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("change", ["missing", "another shape"])
def test_weights_that_do_not_fit_the_configuration(change, snapshot):
    file = snapshot / "model.safetensors"
    weights = load_file(file)
    weight = weights.pop("model.layers.1.mlp.up_proj.weight")
    if change == "another shape":
        weights["model.layers.1.mlp.up_proj.weight"] = weight[:-1].contiguous()
    save_file(weights, file, {"format": "pt"})
    said = refused(snapshot)
    assert said.startswith(f"{snapshot}: not a snapshot that transformers can load (")
    assert "model.layers.1.mlp.up_proj.weight" in said


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_file_that_is_cut_or_absent(file, snapshot):
    whole = (snapshot / file).read_bytes()
    (snapshot / file).write_bytes(whole[: len(whole) // 2])
    start = f"{snapshot}: not a snapshot that transformers can load ("
    assert refused(snapshot).startswith(start)
    (snapshot / file).unlink()
    assert refused(snapshot).startswith(start)


CODE = """
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel


class OwnConfig(PretrainedConfig):
    model_type = "own_architecture"


class Mix(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.w = nn.Linear(d, d)

    def forward(self, x):
        return self.w(x).cumsum(1)


class Own(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.one, self.two = Mix(d), nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, d))

    def forward(self, x):
        x = x + self.one(x)
        return x + self.two(x)


class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.e = nn.Embedding(config.vocab_size, config.hidden_size)
        self.l = nn.ModuleList(Own(config.hidden_size) for _ in range(config.num_hidden_layers))
        self.post_init()

    def forward(self, input_ids, use_cache=False):
        x = self.e(input_ids)
        for block in self.l:
            x = block(x)
        return x
"""


def test_code_that_a_snapshot_brings_runs_only_when_it_may(tmp_path, monkeypatch):
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "own.py").write_text(CODE + f'\nopen({str(tmp_path / "ran")!r}, "w").close()\n')
    config = {
        "model_type": "own_architecture",
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
        "vocab_size": VOCABULARY, "hidden_size": D, "num_hidden_layers": 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    weights = {"e.weight": torch.randn(VOCABULARY, D)}
    for i in (0, 1):
        for name in ("one.w", "two.0", "two.2"):
            weights[f"l.{i}.{name}.weight"] = torch.randn(D, D) / 5
            weights[f"l.{i}.{name}.bias"] = torch.randn(D)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert refused(folder) == (
        f"{folder}: transformers does not know the architecture 'own_architecture'; set "
        "snapshots.remote_code: true to run the code in the model's repository"
    )
    assert not (tmp_path / "ran").exists()
    model = sites.load_model(folder, CPU, torch.float32, remote_code=True)
    got = all_streams(model, [0, 1])
    h = got[0, "residual"] + got[1, "attention_out"]
    torch.testing.assert_close(got[1, "mlp_in"], h)
    torch.testing.assert_close(got[1, "residual"], h + got[1, "mlp_out"])
