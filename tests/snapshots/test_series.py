"""Models one after another: each is what loading it alone gives, whichever way its weights came."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

from ontogeny.files import InputError
from ontogeny.snapshots import series
from ontogeny.snapshots.sites import load_model

CPU = torch.device("cpu")
IDS = torch.arange(6)[None]


def neox(tied: bool = True, layers: int = 1) -> GPTNeoXForCausalLM:
    config = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
    config |= {"tie_word_embeddings": tied, "num_hidden_layers": layers}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**config))


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=8))


@pytest.fixture
def snapshots(tmp_path):
    """Two of one model, two that are not tied, one that is deeper, and two of another kind."""
    every = [neox(), neox(), neox(False), neox(False), neox(layers=2), gpt2(), gpt2()]
    for step, model in enumerate(every):
        model.save_pretrained(tmp_path / f"step{step}")
    return tmp_path


def test_each_model_is_what_loading_it_alone_gives(snapshots):
    seen, steps = [], []
    for step, model in series.models(snapshots, range(7), CPU, torch.float32):
        alone = load_model(snapshots / f"step{step}", CPU, torch.float32)
        with torch.no_grad():
            torch.testing.assert_close(model(IDS).logits, alone(IDS).logits, rtol=0, atol=0)
        assert not model.training
        seen.append(model)
        steps.append(step)
    assert steps == list(range(7))
    same = [a is b for a, b in pairwise(seen)]
    # Of those that are not tied transformers renames a tensor, so that each is loaded.
    assert same == [True, False, False, False, False, True]


def test_a_damaged_file_is_told_as_when_it_is_loaded_alone(snapshots):
    file = snapshots / "step1" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    models = series.models(snapshots, [0, 1], CPU, torch.float32)
    assert next(models)[0] == 0
    with pytest.raises(InputError, match="step1: not a snapshot that transformers can load"):
        next(models)


def test_weights_of_another_shape_under_one_configuration_are_refused(snapshots):
    config = json.loads((snapshots / "step4" / "config.json").read_text())
    (snapshots / "step1" / "config.json").write_text(json.dumps(config))
    models = series.models(snapshots, [4, 1], CPU, torch.float32)
    assert next(models)[0] == 4
    with pytest.raises(InputError, match=r"step1: .*no weights of the right shape"):
        next(models)
