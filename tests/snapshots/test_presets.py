"""The presets of the hub agree with what their families publish, and with transformers."""

import re
from fnmatch import fnmatchcase

import pytest
import torch
import yaml
from conftest import ROOT
from transformers import AutoConfig, AutoModelForCausalLM

from ontogeny import settings
from ontogeny.activations.sizes import most_dimensions
from ontogeny.cost import bill
from ontogeny.snapshots import presets

# The paper's snapshots of Pythia (arXiv 2509.17196).
PAPER = [
    *(0, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000, 9000),
    *(10000, 14000, 20000, 27000, 34000, 47000, 60000, 74000, 87000, 100000, 114000, 127000),
    143000,
]  # fmt: skip

# Counts that the models' cards give, the size of OLMo's and Amber's weights over four bytes.
PARAMETERS = {
    "EleutherAI/pythia-14m": 14_067_712,
    "EleutherAI/pythia-31m": 30_494_720,
    "EleutherAI/pythia-70m": 70_426_624,
    "EleutherAI/pythia-160m": 162_322_944,
    "EleutherAI/pythia-410m": 405_334_016,
    "EleutherAI/pythia-1b": 1_011_781_632,
    "EleutherAI/pythia-1.4b": 1_414_647_808,
    "EleutherAI/pythia-2.8b": 2_775_208_960,
    "EleutherAI/pythia-6.9b": 6_857_302_016,
    "EleutherAI/pythia-12b": 11_846_072_320,
    "allenai/OLMo-1B-hf": 4.71e9 / 4,
    "allenai/OLMo-1B-0724-hf": 1.28e9,
    "allenai/OLMo-7B-hf": 6.89e9,
    "allenai/OLMo-7B-Twin-2T-hf": 6.89e9,
    "allenai/OLMo-7B-0424-hf": 27.55e9 / 4,
    "allenai/OLMo-7B-0724-hf": 6.89e9,
    "allenai/OLMo-2-0425-1B": 5.94e9 / 4,
    "allenai/OLMo-2-0425-1B-early-training": 5.94e9 / 4,
    "allenai/OLMo-2-1124-7B": 7.30e9,
    "allenai/OLMo-2-1124-13B": 13.7e9,
    "allenai/OLMo-2-0325-32B": 32.2e9,
    "LLM360/Amber": 6_738_415_616,
    "allenai/Olmo-3-1025-7B": 7_298_011_136,
    "HuggingFaceTB/SmolLM3-3B-checkpoints": 3_075_098_624,
    "bigscience/bloom-560m-intermediate": 559_214_592,
    "bigscience/bloom-1b1-intermediate": 1_065_314_304,
    "bigscience/bloom-1b7-intermediate": 1_722_408_960,
    "bigscience/bloom-3b-intermediate": 3_002_557_440,
    "bigscience/bloom-7b1-intermediate": 7_069_016_064,
}
MODELS = [repository for family in presets.families().values() for repository in family["models"]]
EXPERIMENTS = ("pythia-14m", "pythia-160m", "pythia-160m-98k", "pythia-6.9b",
               "pythia-6.9b-streamed", "olmo-2-1b", "gpt2-crfm")  # fmt: skip


def published(repository: str) -> float:
    if "gpt2-small" in repository:
        return 124_439_808
    if "gpt2-medium" in repository:
        return 354_823_168
    return PARAMETERS[re.sub(r"-deduped|(-data|-weight)?-seed\d", "", repository)]


def test_steps_ascend_without_repeats():
    known = {name: presets.find(next(iter(f["models"]))) for name, f in presets.families().items()}
    assert {name for name, p in known.items() if p and p.steps is None} == {
        *(
            "olmo",
            "olmo-2-1124-7b",
            "olmo-2-1124-13b",
            "olmo-2-0325-32b",
            "gpt2-crfm-medium",
            "olmo-3",
            "bloom",
        )
    }
    for name, preset in known.items():
        assert preset is not None
        assert preset.name == name
        if preset.steps is not None:
            assert preset.steps == sorted(set(preset.steps)), name


@pytest.mark.parametrize(
    ("repository", "count", "last", "revision"),
    [
        ("EleutherAI/pythia-6.9b-deduped", 154, 143_000, "step143000"),
        ("stanford-crfm/alias-gpt2-small-x21", 609, 400_000, "checkpoint-400000"),
        ("allenai/OLMo-2-0425-1B", 195, 1_907_359, "stage1-step1907359-tokens*B"),
        ("allenai/OLMo-2-0425-1B-early-training", 37, 36_000, "stage1-step36000-tokens*B"),
        ("LLM360/Amber", 359, 358, "ckpt_358"),
        ("EleutherAI/pythia-410m-seed9", 154, 143_000, "step143000"),
        ("EleutherAI/pythia-160m-weight-seed2", 154, 143_000, "step143000"),
    ],
)
def test_published_grids(repository, count, last, revision):
    preset = presets.find(repository)
    assert (len(preset.steps), preset.steps[0], preset.steps[-1]) == (count, 0, last)
    assert preset.revision.format(step=last) == revision


def test_smollm3_has_the_three_stages_of_its_card():
    preset = presets.find("HuggingFaceTB/SmolLM3-3B-checkpoints")
    stages = [(0, 3_450_000), (3_450_000, 4_200_000), (4_200_000, 4_720_000)]
    counts = [sum(low < step <= high for step in preset.steps) for low, high in stages]
    assert counts == [86, 19, 13]
    assert preset.revision.format(step=3_440_000) == "stage*-step-3440000"
    assert preset.tokenizer == "HuggingFaceTB/SmolLM3-3B-Base"


def test_public_reports_are_told_of_the_steps_that_they_are_about():
    (line,) = presets.doubts("EleutherAI/pythia-160m", PAPER)
    assert line == (
        "snapshots.steps: 0, 2 of EleutherAI/pythia-160m: these are said to have the same weights "
        "(EleutherAI/pythia#83, #198); keep one of them"
    )
    assert presets.doubts("EleutherAI/pythia-160m", [0, 4, 8]) == []
    (alike, final) = presets.doubts("EleutherAI/pythia-2.8b", PAPER)
    assert "#198" in alike
    assert final.startswith("snapshots.steps: 0, 2, 4, 8, 16, 32, … of EleutherAI/pythia-2.8b:")
    (shard,) = presets.doubts("EleutherAI/pythia-12b", [49_000, 50_000])
    assert "50000 of EleutherAI/pythia-12b" in shard
    assert shard.endswith("(EleutherAI/pythia#206); leave it out")
    (bloom,) = presets.doubts("bigscience/bloom-7b1-intermediate", [100_000, 150_000, 200_000])
    assert "discussions/3" in bloom
    assert presets.doubts("someone/model", [0, 1, 2]) == []


def test_the_report_on_pythia_2_8b_counts_86_steps():
    wrong = next(
        fault
        for fault in yaml.safe_load(presets.FAULTS.read_text())
        if fault["repositories"] == ["EleutherAI/pythia-2.8b"]
    )
    steps = presets._expand(wrong["steps"])
    assert len(steps) == len(set(steps)) == 86
    assert set(steps) <= set(presets.find("EleutherAI/pythia-2.8b").steps)


def test_the_first_revision_of_amber_is_padded():
    preset = presets.find("LLM360/Amber")
    assert preset.revision.format(step=preset.steps[0]) == "ckpt_000"
    families = presets.families()
    assert families[preset.name]["unit"].startswith("checkpoint")
    assert "unit" not in families[presets.find("EleutherAI/pythia-70m").name]


def test_the_papers_snapshots_of_pythia_exist():
    assert len(PAPER) == 32
    assert set(PAPER) <= set(presets.find("EleutherAI/pythia-160m").steps)


def test_a_tokenizer_of_another_repository():
    assert presets.find("EleutherAI/pythia-160m").tokenizer is None
    early = presets.find("allenai/OLMo-2-0425-1B-early-training")
    assert early.tokenizer == "allenai/OLMo-2-0425-1B"


@pytest.mark.parametrize("repository", MODELS)
def test_every_model_has_one_family(repository):
    mine = [
        name
        for name, family in presets.families().items()
        if any(fnmatchcase(repository, pattern) for pattern in family["repositories"])
    ]
    assert mine == [presets.find(repository).name]
    assert repository in presets.families()[mine[0]]["models"]
    assert MODELS.count(repository) == 1


@pytest.mark.parametrize(
    "repository",
    ["EleutherAI/pythia-160m-v0", "EleutherAI/gpt-neox-20b", "allenai/OLMo-1B", "gpt2", "me/mine"],
)
def test_other_repositories_have_no_preset(repository):
    assert presets.find(repository) is None
    assert presets.architecture(repository) is None


def test_every_family_says_where_it_is_documented():
    for name, family in presets.families().items():
        assert "https://" in family["source"], name
        assert "{step" in family["revision"], name
        known = {"source", "repositories", "revision", "steps", "unit", "tokens_per_step",
                 "tokenizer", "models"}  # fmt: skip
        assert known - {"unit"} <= set(family) <= known, name


@pytest.mark.parametrize("repository", MODELS)
def test_architectures_have_the_published_size(repository):
    given = presets.architecture(repository)
    config, plain = AutoConfig.for_model(**given), AutoConfig.for_model(given["model_type"])
    for key, value in given.items():
        if key == "dtype":
            assert config.dtype == getattr(torch, value)
        elif key in ("rope_theta", "rotary_pct"):
            inside = {"rotary_pct": "partial_rotary_factor"}.get(key, key)
            assert config.rope_parameters[inside] == value
        else:
            assert hasattr(plain, key), key
            assert getattr(config, key) == value, key
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert model.dtype == config.dtype
    count = sum(parameter.numel() for parameter in model.parameters())
    expected = published(repository)
    assert count == pytest.approx(expected, rel=0 if isinstance(expected, int) else 0.01)


def test_architectures_are_copies():
    presets.architecture("EleutherAI/pythia-14m")["hidden_size"] = 1
    presets.find("EleutherAI/pythia-14m").steps.clear()
    assert presets.architecture("EleutherAI/pythia-14m")["hidden_size"] == 128
    assert presets.architecture("EleutherAI/pythia-14m-deduped")["hidden_size"] == 128
    assert len(presets.find("EleutherAI/pythia-14m").steps) == 154


def test_nearest_steps():
    steps = presets.find("EleutherAI/pythia-160m").steps
    assert presets.nearest(1430, steps) == [1000, 2000]
    assert presets.nearest(600, steps, 3) == [256, 512, 1000]
    assert presets.nearest(200_000, steps) == [142_000, 143_000]
    assert presets.nearest(3, [5, 1, 2], 1) == [2]
    assert presets.nearest(3, [1, 5], 1) == [1]
    assert presets.nearest(3, [7], 2) == [7]
    assert presets.nearest(3, []) == []


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_on_the_hub_can_run(name):
    path = ROOT / "experiments" / f"{name}.yaml"
    loaded = settings.load(path)
    assert loaded.name == name
    preset = presets.find(loaded.snapshots.hub.repository)
    assert set(loaded.snapshots.chosen) <= set(preset.steps)
    assert len(loaded.snapshots.chosen) == 32
    if name.startswith("pythia"):
        assert loaded.snapshots.chosen == PAPER
    config = AutoConfig.for_model(**presets.architecture(loaded.snapshots.hub.repository))
    assert max(loaded.activations.layers) < config.num_hidden_layers
    assert loaded.corpus.context <= config.max_position_embeddings
    rows = loaded.corpus.train_blocks * loaded.corpus.context
    wide = len(loaded.snapshots.chosen) * config.hidden_size
    most = most_dimensions(loaded.basis.largest, loaded.basis.dimensions, config.hidden_size)
    assert most <= min(loaded.basis.rows, wide)
    assert loaded.basis.dimensions is None  # as many as lose 1% of no snapshot, up to
    assert most >= 4 * config.hidden_size
    assert loaded.basis.least_kept == 0.95
    assert loaded.basis.rows <= rows
    text = path.read_text()
    assert f"ontogeny plan experiments/{name}.yaml" in text
    assert f"--configfile experiments/{name}.yaml" in text
    for crosscoder in loaded.crosscoders.values():
        passes = crosscoder.steps * crosscoder.batch_rows / rows
        assert passes < 1 or loaded.activations.mode == "cached"


@pytest.mark.parametrize("name", presets.families())
def test_every_family_can_be_planned_without_the_hub(name, tmp_path, monkeypatch):
    """The smallest model of each: what it costs follows from the preset alone."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    repository = next(iter(presets.families()[name]["models"]))
    steps = (presets.find(repository).steps or [1000, 2000, 4000, 8000])[-4:]
    given = {
        "name": "planned",
        "device": "cpu",
        "corpus": {"files": {"paths": ["text.jsonl"]}, "context": 64, "train_blocks": 64},
        "snapshots": {"steps": steps, "hub": {"repository": repository}},
        "activations": {"layers": [1]},
        "basis": {"dimensions": 16},
        "crosscoders": {"main": {"inputs": {"layers": [1]}, "features": 64, "k": 4, "steps": 10,
                                 "batch_rows": 128, "aux_features": 0}},
        "primary": "main",
        "analyses": [],
    }  # fmt: skip
    planned = bill.bill(settings.load(given), tmp_path)
    parameters = published(repository)
    per_weight = 2 if presets.architecture(repository)["dtype"].endswith("16") else 4
    assert planned.line("snapshot").jobs == 4
    (size, *_) = (file.size for file in planned.line("snapshot").files)
    # Old files of GPT-2 and GPT-NeoX hold masks too, which weigh on small models alone.
    assert 0.98 < size / (parameters * per_weight) < (2 if parameters < 1e8 else 1.3)


def test_the_papers_experiment_has_the_papers_numbers():
    paper = settings.load(ROOT / "experiments" / "pythia-160m.yaml")
    assert paper.corpus.train_blocks * paper.corpus.context == 800_000_000
    assert paper.activations.layers == [6]
    assert paper.crosscoders["batchtopk"].features == 32_768
    wide = yaml.safe_load((ROOT / "experiments" / "pythia-160m-98k.yaml").read_text())
    assert wide["crosscoders"]["batchtopk"]["features"] == 98_304
    assert settings.load(ROOT / "experiments" / "pythia-6.9b.yaml").activations.layers == [16]
