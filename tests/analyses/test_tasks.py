"""Tasks: pairs align, and what cannot be made is left out with its reason."""

from __future__ import annotations

import pydoc_data.topics
from typing import get_args

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from test_circuits import STEPS, logit_differences, small_settings
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, GPTNeoXConfig

from ontogeny.analyses.circuits import pairs, python_words, selection, tasks, words
from ontogeny.analyses.circuits.settings import Circuits, TaskName
from ontogeny.corpus.build import END_OF_TEXT, train_tokenizer
from ontogeny.files import InputError

NAMES = list(get_args(TaskName))
AGREEMENT, PYTHON = NAMES[:4], NAMES[7:]
CONTEXT = 256


def tokenizer_of(vocabulary: int) -> Tokenizer:
    """Trained on English that Python itself brings, and some of the tasks' own words."""
    text = list(pydoc_data.topics.topics.values())
    some = [w for pair in (*words.VERBS, *words.NOUNS[:20]) for w in pair] + words.NAMES[:20]
    names = python_words.NAMES[:20]
    body = "    if {0}:\n        if {0}:\n            {0}_{0} = ({0})\n"
    code = "".join(body.format(name) for name in names)
    return train_tokenizer([*text, *[" ".join(["", *some]) + code] * 200], vocabulary)


@pytest.fixture(scope="module", params=[1024, 4000])
def tokenizer(request) -> Tokenizer:
    return tokenizer_of(request.param)


def made(tokenizer: Tokenizer, name: str, seed: int = 0, pairs: int = 32) -> tasks.Task:
    end = tokenizer.token_to_id(END_OF_TEXT)
    return tasks.make(name, tokenizer, end, CONTEXT, pairs, seed)[0]


@pytest.mark.parametrize("name", NAMES)
def test_pairs_align(tokenizer, name):
    task = made(tokenizer, name)
    P, T = task.clean.shape
    assert task.corrupted.shape == (P, T)
    assert P == (16 if name == "copying" else 32)
    assert T <= CONTEXT
    assert (task.clean[:, 0] == tokenizer.token_to_id(END_OF_TEXT)).all()
    inside = np.arange(T) < task.length[:, None]
    differs = task.clean != task.corrupted
    assert differs.any(1).all()
    assert not differs[:, 0].any()
    assert not (differs & ~inside).any()
    assert (task.right != task.wrong).all()
    assert not np.isin(task.right, [0]).any()
    rows = {(*clean, right) for clean, right in zip(task.clean.tolist(), task.right, strict=True)}
    assert len(rows) == P
    opened = task.open
    assert (opened.argmax(1) == differs.argmax(1)).all()
    assert (opened.sum(1) == task.length - differs.argmax(1)).all()


@pytest.mark.parametrize("name", AGREEMENT)
def test_agreement_is_of_the_subject(tokenizer, name):
    """Only the subject's tokens differ; the right answer has its number; each as often clean."""
    task = made(tokenizer, name)
    plural = {second for _, second in words.VERBS}
    plurals = {form for _, form in words.NOUNS}
    numbers = []
    for clean, corrupted, length, right, wrong in zip(
        task.clean, task.corrupted, task.length, task.right, task.wrong, strict=True
    ):
        texts = [tokenizer.decode(ids[:length].tolist()).split() for ids in (clean, corrupted)]
        where = [i for i, (a, b) in enumerate(zip(*texts, strict=True)) if a != b]
        assert len(where) == 1
        one, two = (text[where[0]] for text in texts)
        assert (one in plurals) != (two in plurals)
        place = {"agreement_within_rc": len(texts[0]) - 1}
        assert where[0] == place.get(name, 1 if texts[0][0] == "The" else 2)
        answers = [tokenizer.decode([i]) for i in (right, wrong)]
        assert all(answer.startswith(" ") for answer in answers)
        assert (answers[0].strip() in plural) == (one in plurals)
        assert (answers[0].strip(), answers[1].strip()) in [
            v if one not in plurals else v[::-1] for v in words.VERBS
        ]
        whole = tokenizer.decode(clean[1:length].tolist()) + answers[0]
        ids = tokenizer.encode(whole, add_special_tokens=False).ids
        assert ids == [*clean[1:length], right]
        numbers.append(one in plurals)
    assert sum(numbers) == len(numbers) / 2


def test_indirect_object(tokenizer):
    task = made(tokenizer, "indirect_object")
    for clean, corrupted, length, right, wrong in zip(
        task.clean, task.corrupted, task.length, task.right, task.wrong, strict=True
    ):
        assert (clean != corrupted).sum() == 1
        texts = [tokenizer.decode(ids[1:length].tolist()) for ids in (clean, corrupted)]
        names = [tokenizer.decode([i]).strip() for i in (right, wrong)]
        for text, answer, giver in zip(texts, names, names[::-1], strict=True):
            listed = text.split(" and ")[0].split()[-1], text.split(" and ")[1].split()[0]
            assert set(listed) == set(names)
            assert text.split(", ")[1].startswith(f"{giver} gave")
            assert answer != giver


@pytest.mark.parametrize("name", ["induction", "copying"])
def test_copies_tell_the_answer(tokenizer, name):
    """The last token stands once before, and what followed it there is the answer."""
    task = made(tokenizer, name)
    distances = set()
    for clean, corrupted, length, right, wrong in zip(
        task.clean, task.corrupted, task.length, task.right, task.wrong, strict=True
    ):
        for ids, answer in ((clean, right), (corrupted, wrong)):
            last = length - 1
            (before,) = np.flatnonzero(ids[:last] == ids[last])
            assert ids[before + 1] == answer
            if ids is clean:
                distances.add(int(last - before))
        assert (clean != corrupted).sum() == 2
        assert sorted(clean) == sorted(corrupted)
    assert distances == {128} if name == "copying" else len(distances) > 4


def test_tasks_repeat_and_stand_alone(tokenizer):
    for name in NAMES:
        first, again, other = (made(tokenizer, name, seed) for seed in (3, 3, 4))
        for field in ("clean", "corrupted", "length", "right", "wrong"):
            assert np.array_equal(getattr(first, field), getattr(again, field)), name
        assert not np.array_equal(first.clean, other.clean)
    # More pairs begin with the same ones.
    assert np.array_equal(
        made(tokenizer, "induction", 3).clean, made(tokenizer, "induction", 3, 64).clean[:32]
    )


@pytest.mark.parametrize("name", PYTHON)
def test_python_prompts_hold_their_answer(tokenizer, name):
    """Clean and corrupted differ in what the answer copies, closes or goes deeper than."""
    task = made(tokenizer, name)
    deeper = {"(": ")", "[": "]", "\n   ": "\n       ", "\n       ": "\n           "}
    order = []
    for clean, corrupted, length, *answers in zip(
        task.clean, task.corrupted, task.length, task.right, task.wrong, strict=True
    ):
        where = np.flatnonzero(clean != corrupted)
        slots = [tokenizer.decode(ids[where].tolist()) for ids in (clean, corrupted)]
        texts = [tokenizer.decode([answer]) for answer in answers]
        if name in ("closing_bracket", "indentation"):
            assert texts == [deeper[slot] for slot in slots]
            order.append(slots[0] < slots[1])
        else:
            assert [text.strip() for text in texts] == [slot.strip() for slot in slots]
            assert all(text.strip() in python_words.NAMES for text in texts)
        whole = tokenizer.decode(clean[1:length].tolist()) + texts[0]
        ids = tokenizer.encode(whole, add_special_tokens=False).ids
        assert ids == [*clean[1:length], answers[0]]
    assert not order or sum(order) == len(order) / 2


def test_what_follows_the_differing_piece():
    pairs_of = {
        ("The boy near the dog", "The boys near the dog"): " near the dog",
        ("top_k = 1\nreturn top_", "top_n = 1\nreturn top_"): " = 1\nreturn top_",
        ("x:\n    if a:", "x:\n        if a:"): " if a:",
        ("f(a", "f[a"): "a",
    }
    for texts, end in pairs_of.items():
        assert pairs.common_end(*texts) == end


def written(folder, tokenizer: Tokenizer, context: int = CONTEXT):
    """tokens.h5, of which tasks need the attributes, and tokenizer.json."""
    with h5py.File(folder / "tokens.h5", "w") as file:
        file["tokens"] = np.zeros((4, context), np.uint16)
        for name, bounds in (("held_out", (0, 1)), ("train", (1, 3)), ("pretrain", (3, 4))):
            file.attrs[name] = bounds
        file.attrs["end_of_text"] = tokenizer.token_to_id(END_OF_TEXT)
        file.attrs["vocabulary"] = tokenizer.get_vocab_size()
        for name in ("tokenizer", "corpus", "digest"):
            file.attrs[name] = name
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokens.h5", folder / "tokenizer.json"


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory):
    """A folder with the last snapshot of `small_settings`, at random, for any of the tokenizers."""
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=4000, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=CONTEXT, initializer_range=0.3,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tasks")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / f"step{STEPS[-1]}")
    return folder


def built(snapshots, there, folder, **circuits):
    """The stage's table, with its tasks in tasks.h5."""
    s = small_settings(pairs=16, **circuits)
    files = s.section(Circuits).paths
    selection.build(s, snapshots, *there, files, folder / "tasks.h5", folder / "tasks.csv")
    return pd.read_csv(folder / "tasks.csv").set_index("task")


def test_a_task_that_cannot_be_made_is_left_out_with_its_reason(snapshots, tmp_path):
    """Letters alone: no word is one token, and a plural has always one more."""
    there = written(tmp_path, tokenizer_of(257))
    found = built(snapshots, there, tmp_path, least_accuracy=0)
    assert list(found.index) == NAMES
    made_ = ["induction", "copying", "closing_bracket"]
    assert (found["pairs"] > 0)[lambda kept: kept].index.tolist() == made_
    assert (
        "nouns have as many tokens in the plural; 4 are needed"
        in found.loc["agreement_simple", "left_out"]
    )
    assert found.loc["indirect_object", "left_out"].startswith("0 of 83 names")
    assert found.loc["import_alias", "left_out"].startswith("0 of 117 answers are one token; 2")
    assert found.loc[made_, "left_out"].isna().all()
    assert [task.name for task in tasks.read(tmp_path / "tasks.h5", "digest")] == made_
    with pytest.raises(InputError, match=r"circuits\.tasks: none can be made"):
        built(snapshots, there, tmp_path, tasks=NAMES[:2])


def test_short_context_leaves_out_what_does_not_fit(snapshots, tmp_path):
    there = written(tmp_path, tokenizer_of(1024), context=24)
    found = built(snapshots, there, tmp_path, least_accuracy=0)
    assert "33 tokens are needed of a context of 24" in found.loc["induction", "left_out"]
    assert found.loc["copying", "tokens"] == 1 + 12 + 6


def test_what_the_last_snapshot_does_not_do_is_left_out(snapshots, tmp_path):
    there = written(tmp_path, tokenizer_of(1024))
    names = ["closing_bracket", "self_attribute", "recalled_argument"]
    every = built(snapshots, there, tmp_path, tasks=names, least_accuracy=0)
    model = AutoModelForCausalLM.from_pretrained(snapshots / f"step{STEPS[-1]}").eval()
    for task in tasks.read(tmp_path / "tasks.h5", "digest"):
        with torch.no_grad():
            clean, corrupted = (
                logit_differences(model, task, ids) for ids in (task.clean, task.corrupted)
            )
        share = ((clean > 0).mean() + (corrupted < 0).mean()) / 2
        assert every.loc[task.name, "accuracy"] == pytest.approx(share)
    # Between the best of them and the others: it alone is kept.
    best, next_best = every["accuracy"].sort_values(ascending=False).iloc[:2]
    assert best > next_best
    found = built(snapshots, there, tmp_path, tasks=names, least_accuracy=best)
    kept = [task.name for task in tasks.read(tmp_path / "tasks.h5", "digest")]
    assert kept == [every["accuracy"].idxmax()]
    assert found["left_out"].isna().sum() == 1
    reason = found.loc[every["accuracy"].idxmin(), "left_out"]
    assert reason.startswith(f"right in {every['accuracy'].min():.2f} of the prompts at step 30")
    assert found["accuracy"].equals(every["accuracy"])


def test_damaged_files(snapshots, tmp_path):
    tokens, tokenizer = written(tmp_path, tokenizer_of(300))
    tokenizer.write_text("{")
    with pytest.raises(InputError, match=r"tokenizer\.json: not a tokenizer"):
        built(snapshots, (tokens, tokenizer), tmp_path)
    (tmp_path / "t.h5").write_bytes(b"x")
    with pytest.raises(InputError, match=r"t\.h5: truncated or not a file of tasks"):
        tasks.read(tmp_path / "t.h5", "digest")
