"""What a hub's listings tell of revisions before a download, from a real server on loopback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_server import HubServer
from safetensors.numpy import save
from test_hub import MODEL, client

CONFIG = {"model_type": "gpt2", "n_embd": 8}
WORDS = {"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}}}


def files(seed: int, shards: int = 1, **more: bytes | str) -> dict[str, bytes | str]:
    """A revision: weights, in so many files, a configuration and a tokenizer."""
    random, made = np.random.default_rng(seed), {}
    for i in range(1, shards + 1):
        name = "model.safetensors" if shards == 1 else f"model-{i:05d}-of-{shards:05d}.safetensors"
        made[name] = save({f"w{i}": random.standard_normal(50, dtype=np.float32)})
    if shards > 1:
        where = {f"w{i}": f"model-{i:05d}-of-{shards:05d}.safetensors" for i in (1, 2)}
        made["model.safetensors.index.json"] = json.dumps({"weight_map": where})
    given = {"config.json": json.dumps(CONFIG), "tokenizer.json": json.dumps(WORDS)}
    return {**made, **given, **more}


@pytest.fixture
def server():
    with HubServer() as hub:
        for step in (0, 8, 64, 512):
            hub.add(MODEL, f"step{step}", files(step))
        yield hub


def compared(
    server: HubServer, home: Path, steps: list[int], **more: Any
) -> tuple[list[str], list[str]]:
    """Faults and doubts, in a process of its own, that keeps its listings in `home`."""
    listed = "__import__('ontogeny.snapshots.listed', fromlist=['compared'])"
    (found,) = client(
        server, home, f"{listed}.compared(settings, {steps}, {str(home / 'results')!r})", **more
    )
    return found[0], found[1]


def test_equal_weights_are_found_without_a_download(server, tmp_path) -> None:
    server.add(MODEL, "step1", files(0))
    server.add(MODEL, "step2", files(7, shards=2))
    server.add(MODEL, "step4", files(7, shards=2))
    faults, doubts = compared(server, tmp_path, [0, 1, 2, 4, 8])
    assert faults == []
    assert doubts == [
        f"snapshots.steps: of {MODEL} steps {a} and {b} have the same weights; one of them is not "
        "what its name says, or nothing was learned between them: leave one out"
        for a, b in ((0, 1), (2, 4))
    ]
    assert not [request for request in server.requests if request.method == "GET" and request.file]
    asked = len(server.requests)
    assert compared(server, tmp_path, [0, 1, 2, 4, 8]) == (faults, doubts)
    assert len(server.requests) == asked + 1  # the branches; listings of their commits are kept
    server.add(MODEL, "step1", files(1))
    assert len(compared(server, tmp_path, [0, 1, 2, 4, 8])[1]) == 1


def test_distinct_revisions_are_silent(server, tmp_path) -> None:
    assert compared(server, tmp_path, [0, 8, 64, 512]) == ([], [])


def test_a_configuration_that_differs_is_refused(server, tmp_path) -> None:
    server.add(MODEL, "step64", files(64, **{"config.json": json.dumps(CONFIG | {"n_embd": 16})}))
    (fault,), doubts = compared(server, tmp_path, [0, 8, 64, 512])
    assert fault.startswith(
        "snapshots.steps: config.json of step 64 has n_embd 16, not 8, as the others; "
    )
    assert doubts == []
    assert len(server.gets("config.json")) == 2  # one for each content


def test_a_tokenizer_that_differs_is_refused(server, tmp_path) -> None:
    turned = {"model": {"type": "WordLevel", "vocab": {"b": 0, "a": 1}}}
    server.add(MODEL, "step64", files(64, **{"tokenizer.json": json.dumps(turned)}))
    (fault,), _ = compared(server, tmp_path, [0, 8, 64, 512])
    assert "tokenizer.json of step 64 gives 'b' the id 0, but that of step 0 1" in fault
    assert compared(server, tmp_path, [0, 8, 64], tokenizer="someone/words") == ([], [])


def test_adapters_and_other_formats_are_named(server, tmp_path) -> None:
    server.add(MODEL, "step1", {"adapter_config.json": "{}", "adapter_model.safetensors": b"x"})
    server.add(MODEL, "step2", {"config.json": json.dumps(CONFIG), "tf_model.h5": b"x"})
    faults, _ = compared(server, tmp_path, [0, 1, 2])
    assert faults[0].startswith(
        f"snapshots.steps: {MODEL} at step 1 holds a PEFT adapter; merge it into its base model"
    )
    assert faults[1].startswith(
        f"snapshots.steps: {MODEL} at step 2 holds only TensorFlow weights; save the model "
    )


def test_a_hub_that_is_away_is_no_fault(server, tmp_path) -> None:
    for env in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        assert compared(server, tmp_path, [0, 8], env=env) == ([], [])


# The names that each family publishes, as its preset has to find them.
FAMILIES = {
    "EleutherAI/pythia-12b": {0: "step0", 143000: "step143000"},
    "EleutherAI/pythia-410m-seed3": {8: "step8", 1000: "step1000"},
    "EleutherAI/pythia-160m-data-seed1": {8: "step8", 1000: "step1000"},
    "allenai/OLMo-2-1124-7B": {
        150: "stage1-step150-tokens1B",
        1000: "stage1-step1000-tokens5B",
        928646: "stage1-step928646-tokens3896B",
    },
    "allenai/Olmo-3-1025-7B": {0: "stage1-step0", 1413814: "stage1-step1413814"},
    "HuggingFaceTB/SmolLM3-3B-checkpoints": {
        40000: "stage1-step-40000",
        4200000: "stage2-step-4200000",
        4720000: "stage3-step-4720000",
    },
    "LLM360/Amber": {0: "ckpt_000", 358: "ckpt_358"},
    "bigscience/bloom-560m-intermediate": {
        1000: "global_step1000",
        600000: "global_step600000",
    },
    "stanford-crfm/alias-gpt2-small-x21": {0: "checkpoint-0", 400000: "checkpoint-400000"},
}
BESIDE = [
    "stage2-step1000",
    "it-SFT",
    "lc-4k-to-32k-step-4000",
    "stage2-ingredient1-step1000-tokens9B",
]


@pytest.mark.parametrize("repository", FAMILIES)
def test_presets_find_the_revisions_of_their_families(tmp_path, repository) -> None:
    with HubServer() as server:
        for i, (step, revision) in enumerate(FAMILIES[repository].items()):
            tag = repository.startswith(("stanford", "bigscience"))
            server.add(repository, revision, files(step + i), tag=tag)
        for revision in BESIDE:
            server.add(repository, revision, files(1))
        steps = list(FAMILIES[repository])
        listed = "__import__('ontogeny.snapshots.listed', fromlist=['compared'])"
        found = client(
            server,
            tmp_path / "home",
            f"hub.revisions(settings, {steps})",
            f"hub.faults(settings, {steps})",
            f"hub.publish(settings, {steps[-1]}, Path({str(tmp_path / 'out')!r}))",
            f"{listed}.compared(settings, {steps}, {str(tmp_path / 'results')!r})",
            repository=repository,
            revision=None,
        )
        revisions, faults, published, differing = found
        assert {int(step): name for step, name in revisions.items()} | FAMILIES[repository] == (
            FAMILIES[repository] | {int(s): n for s, n in revisions.items() if "*" in n}
        )
        assert (faults, published, differing) == ([], None, [[], []])
        about = json.loads((tmp_path / "out/source.json").read_text())
        assert about["revision"] == FAMILIES[repository][steps[-1]]
