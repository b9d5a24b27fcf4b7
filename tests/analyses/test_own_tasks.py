"""Tasks of one's own: read from files, measured as the built-in ones, told where they cannot be."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pandas as pd
import pytest
import torch
from test_circuits import STEPS, outputs, small_settings
from test_tasks import CONTEXT, tokenizer_of, written
from transformers import AutoModelForCausalLM, GPTNeoXConfig

from ontogeny import doubts, preflight
from ontogeny.analyses.circuits import ablation, attribution, own, selection, tasks, words
from ontogeny.analyses.circuits.pairs import Text, Unfit
from ontogeny.analyses.circuits.settings import Circuits
from ontogeny.corpus.build import END_OF_TEXT
from ontogeny.crosscoder.model import Crosscoder, Description
from ontogeny.experiment import Experiment
from ontogeny.files import InputError
from ontogeny.settings import SettingsError
from ontogeny.snapshots import sites

WIDTH = 16
NOUNS = words.NOUNS[:20]
PROMPTS = [
    {
        "clean": f"The {one} near the {other}",
        "corrupted": f"The {several} near the {other}",
        "right": [" is", " was"],
        "wrong": " are",
    }
    for (one, several), (other, _) in itertools.pairwise(NOUNS)
]
SENTENCES = [
    {"sentence_good": f"The {noun} {good}.", "sentence_bad": f"The {noun} {bad}.", "UID": "x"}
    for noun, _ in NOUNS[:8]
    for good, bad in (("is here", "are here"), ("was not so", "so is not here"))
]


def file_of(path, rows) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_of(4000)


@pytest.fixture(scope="module")
def text(tokenizer) -> Text:
    return Text(tokenizer, tokenizer.token_to_id(END_OF_TEXT), CONTEXT)


@pytest.fixture(scope="module")
def stage(tokenizer, tmp_path_factory):
    """The stage's folder: three snapshots, a crosscoder of them, and two files made into tasks."""
    folder = tmp_path_factory.mktemp("own")
    for seed, step in enumerate(STEPS):
        torch.manual_seed(seed)
        config = GPTNeoXConfig(
            vocab_size=4000, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=CONTEXT, initializer_range=0.25,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_config(config)
        model.save_pretrained(folder / f"snapshots/step{step}")
    files = [file_of(folder / f"{name}.jsonl", rows)
             for name, rows in (("verbs", PROMPTS), ("pairs", SENTENCES))]  # fmt: skip
    s = small_settings(
        pairs=64,
        tasks=[],
        files=files,
        least_accuracy=0,
        curve_snapshots=1,
        curve_points=3,
    )
    there = written(folder, tokenizer)
    paths = s.section(Circuits).paths
    selection.build(
        s, folder / "snapshots", *there, paths, folder / "tasks.h5", folder / "tasks.csv"
    )
    torch.manual_seed(5)
    where = [(step, 0, "residual") for step in STEPS]
    F, size = 64, len(where) * WIDTH
    about = Description(
        "jumprelu", "feature", F, WIDTH, where, where, "full", 0.0, 0, {"dead_after_rows": 10},
        "digest", "0", "0",
    )  # fmt: skip
    tensors = {
        "W_enc": torch.randn(F, size) / size**0.5, "b_enc": torch.zeros(F),
        "W_dec": torch.randn(F, size) / 8, "b_dec": torch.randn(size) / 4,
        "log_threshold": torch.full((F,), -0.5), "mean_in": torch.zeros(size),
        "mean_out": torch.zeros(size), "silent_rows": torch.zeros(F),
        "scales_in": torch.linspace(1, 2, 3), "scales_out": torch.linspace(1, 2, 3),
    }  # fmt: skip
    Crosscoder(about, tensors).save(folder / "crosscoder")
    places = (folder / "crosscoder", folder / "snapshots", folder / "tasks.h5", *outputs(folder))
    attribution.measure(s, *places)
    ablation.measure(s, *places, folder / "curves.csv", folder / "circuits.csv")
    return folder


def log_probability(model, ids: list[int]) -> float:
    logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(1)
    return sum(logits[i, ids[i + 1]].item() for i in range(len(ids) - 1))


@torch.no_grad()
def test_behaviour_is_the_models_own(stage, tokenizer):
    """Of several right answers their probability together; of sentences their log-probability."""
    table = pd.read_csv(stage / "tasks.csv").set_index("task")
    assert list(table.index) == ["verbs", "pairs"]
    assert table.loc["verbs", "words"] == "19 of 19 lines can be used"
    assert table.loc["verbs", "right"] == " is or  was"
    behaviour = pd.read_csv(stage / "behaviour.csv").set_index(["task", "step"])
    made = {task.name: task for task in tasks.read(stage / "tasks.h5", "digest")}
    start = tokenizer.token_to_id(END_OF_TEXT)
    for step in STEPS:
        model = AutoModelForCausalLM.from_pretrained(stage / f"snapshots/step{step}").eval()
        task, m = made["verbs"], []
        assert task.right.shape == (19, 2)
        for ids in (task.clean, task.corrupted):
            for row, length in zip(ids, task.length, strict=True):
                p = model(input_ids=torch.tensor(row[None, :length])).logits[0, -1].softmax(0)
                ends = [
                    sum(p[tokenizer.token_to_id(f"Ġ{w}")].item() for w in some)
                    for some in (("is", "was"), ("are",))
                ]
                m.append(np.log(ends[0] / ends[1]))
        row = behaviour.loc["verbs", step]
        assert row["logit_difference"] == pytest.approx(np.mean(m[:19]), abs=1e-4)
        assert row["logit_difference_corrupted"] == pytest.approx(np.mean(m[19:]), abs=1e-4)
        m = []
        for row in SENTENCES:
            both = [[start, *tokenizer.encode(row[key], add_special_tokens=False).ids]
                    for key in own.SENTENCES]  # fmt: skip
            differing = [i for i, ids in enumerate(zip(*both, strict=False)) if len({*ids}) == 2]
            if len(differing) == 1:  # the verb alone, and not what follows it
                both = [ids[: differing[0] + 1] for ids in both]
            m.append(log_probability(model, both[0]) - log_probability(model, both[1]))
        row = behaviour.loc["pairs", step]
        assert row["logit_difference"] == pytest.approx(np.mean(m), abs=1e-3)
        assert row["accuracy"] == row["accuracy_clean"] == np.mean(np.array(m) > 0)
        assert np.isnan(row["accuracy_corrupted"])


def test_attributions_add_up(stage):
    """To what the good sentence is likelier by than with no feature active; RelIE adds up to 1."""
    behaviour = pd.read_csv(stage / "behaviour.csv").set_index(["task", "step"])
    table = pd.read_parquet(stage / "attribution.parquet")
    assert set(table["task"]) == {"verbs", "pairs"}
    assert (behaviour["path_error"] < 0.03).all()
    sums = table.groupby(["task", "step"])["attribution"].sum()
    for at, row in behaviour.iterrows():
        assert sums[at] == pytest.approx(row["attributed"], abs=1e-4)
        assert row["features"] > 10
    shares = table.groupby(["task", "feature"])["relie"].sum(min_count=1)
    assert shares.dropna().to_numpy() == pytest.approx(1)
    one = table[(table["task"] == "pairs") & (table["feature"] == -1)]
    size = one["attribution"].abs()
    assert one["relie"].to_numpy() == pytest.approx((size / size.sum()).to_numpy())


@torch.no_grad()
def test_sentences_without_active_features(stage):
    """The baseline of a pair is the reconstruction of nothing, from the first token on."""
    (task,) = [t for t in tasks.read(stage / "tasks.h5", "digest") if t.name == "pairs"]
    used = Crosscoder.load(stage / "crosscoder")
    folder = stage / f"snapshots/step{STEPS[-1]}"
    model = sites.load_model(folder, torch.device("cpu"), torch.float32)
    truth = []
    for pair in range(len(task.length)):
        sums = []
        for ids, target in zip((task.clean, task.corrupted), task.target[pair], strict=True):
            row = torch.tensor(ids[pair][None])
            value = sites.read(model, row, [(0, "residual")])[0, "residual"]
            value[:, 1:] = used.b_dec[2] / used.scales_out[2]
            with sites.replaced(model, 0, "residual", value):
                logits = model(input_ids=row).logits[0].log_softmax(1)
            sums.append(sum(logits[i, t].item() for i, t in enumerate(target) if t >= 0))
        truth.append(sums[0] - sums[1])
    row = pd.read_csv(stage / "behaviour.csv").set_index(["task", "step"]).loc["pairs", STEPS[-1]]
    assert row["logit_difference_corrupted"] == pytest.approx(np.mean(truth), abs=1e-3)
    curves = pd.read_csv(stage / "curves.csv").set_index(["task", "side", "group", "k", "error"])
    none = curves.loc["pairs", "sufficiency", "absolute", 0, False]["m"]
    assert none == pytest.approx(np.mean(truth), abs=1e-3)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"clean": "a"', "line 1: not JSON"),
        ('["clean"]', "line 1: not an object"),
        ('{"clean": "a", "right": "b", "wrong": "c"}', "line 1: has no corrupted; add it"),
        ('{"sentence_good": "a"}', "line 1: has no sentence_bad; add it"),
        ('{"clean": "a", "corrupted": 3, "right": "b", "wrong": "c"}', "corrupted is 3; write"),
        ('{"clean": "a", "corrupted": "b", "right": [], "wrong": "c"}', r"right is \[\]; write"),
        ("", r"mine\.jsonl: the file is empty; write one"),
        (json.dumps(PROMPTS[0]) + "\n\n" + json.dumps(SENTENCES[0]), "line 3: line 1 has a prompt"),
    ],
)
def test_lines_that_are_not_right(tmp_path, line, told):
    (tmp_path / "mine.jsonl").write_text(line)
    with pytest.raises(InputError, match=told):
        own.read(tmp_path / "mine.jsonl")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"right": " is not"}, 'the answer " is not" is 2 tokens; name one that is a single'),
        ({"right": "."}, None),
        ({"right": "s"}, "most need a space before"),
        ({"corrupted": "The"}, "tokens, corrupted .*; reword one so that they have as"),
        ({"corrupted": PROMPTS[0]["clean"]}, "both texts are the same"),
        ({"wrong": [" is", " are"]}, "an answer is right and wrong"),
        ({"clean": "The man " * 200}, "tokens exceed corpus.context, 256; shorten it"),
    ],
)
def test_prompts_that_the_tokenizer_cannot_express(text, change, told):
    row = PROMPTS[0] | change
    line = own._line(1, json.dumps(row).encode())
    if told is None:
        assert own.cut(line, text).answers[0] == text.ids(row["right"])
    else:
        with pytest.raises(Unfit, match=told):
            own.cut(line, text)


def test_what_is_not_used_is_counted(text, tmp_path):
    rows = [*PROMPTS[:17], PROMPTS[17] | {"right": " is not"}, PROMPTS[18] | {"clean": "The"}]
    path = tmp_path / "mine.jsonl"
    file_of(path, rows)
    task, row, unused = own.make("mine", path, text, 64, 0)
    assert (len(task.length), row["words"]) == (17, "17 of 19 lines can be used")
    assert "2 of 19 lines are not used: line 18: the answer" in unused
    assert "line 19: clean has 2 tokens, corrupted" in unused
    file_of(path, rows[10:])
    with pytest.raises(Unfit, match="7 of 9 lines can be used; 16 are needed"):
        own.make("mine", path, text, 64, 0)


def test_files_that_cannot_be(tmp_path):
    taken, strange, plain = (
        file_of(tmp_path / name, PROMPTS)
        for name in ("induction.jsonl", "a b.jsonl", "prompts.txt")
    )
    with pytest.raises(SettingsError, match="induction is a task of circuits"):
        small_settings(files=[taken])
    for name in (strange, plain):
        with pytest.raises(SettingsError, match="the file's name is the task's"):
            small_settings(files=[name])
    with pytest.raises(SettingsError, match=r"circuits\.tasks: the list is empty; name some"):
        small_settings(tasks=[])


def test_told_before_any_job(tokenizer, tmp_path):
    """A missing file and broken lines at once; what the tokenizer decides once it is there."""
    few = file_of(tmp_path / "few.jsonl", PROMPTS[:3])
    mixed = file_of(tmp_path / "mixed.jsonl", [*PROMPTS, PROMPTS[0] | {"right": " is not"}])
    s = small_settings(files=[few, mixed, str(tmp_path / "absent*.jsonl")])
    with pytest.raises(InputError) as told:
        preflight.check(s, tmp_path)
    lines = str(told.value).splitlines()
    assert lines == [
        f"circuits.files: {tmp_path}/absent*.jsonl: no such file; correct the path or pattern",
        f"{few}: 3 lines; add some, 16 are needed",
    ]
    s = small_settings(files=[mixed])
    assert not any("mixed" in line for line in doubts.before(s, tmp_path))
    (tmp_path / "x/corpus").mkdir(parents=True)
    experiment = Experiment(tmp_path / "x", s)
    for path in written(tmp_path, tokenizer):
        path.rename(experiment.path("tokens" if path.suffix == ".h5" else "tokenizer"))
    preflight.check(s, tmp_path)
    (advice,) = [line for line in doubts.before(s, tmp_path) if "mixed" in line]
    assert advice == (
        f'{mixed}: 1 of 20 lines are not used: line 20: the answer " is not" is 2 tokens; name one '
        "that is a single token"
    )
    file_of(tmp_path / "mixed.jsonl", [*PROMPTS[:15], PROMPTS[0] | {"right": " is not"}])
    with pytest.raises(InputError, match="15 of 16 lines can be used, 16 are needed; mend them"):
        preflight.check(s, tmp_path)
