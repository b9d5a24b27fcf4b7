"""Text and token files as other tools leave them."""

from __future__ import annotations

import bz2
import json
import lzma
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ontogeny import settings
from ontogeny.activations import doubts
from ontogeny.corpus import arrays, build, text
from ontogeny.corpus.marks import of_folder
from ontogeny.files import InputError
from ontogeny.settings import Corpus

DOCUMENTS = [f"document {i}, with an é and a 𝄞" for i in range(40)]
ROWS = [{"id": i, "text": document} for i, document in enumerate(DOCUMENTS)]


def of(source: dict[str, Any], **more: Any) -> Corpus:
    return settings.Corpus.model_validate({**source, "context": 16} | more)


def of_files(*paths: Path, column: str = "text") -> Corpus:
    return of({"files": {"paths": list(map(str, paths)), "column": column}})


def read(corpus: Corpus) -> list[str]:
    return sorted(text.documents(corpus))


def stream(path: Path) -> None:
    table = pa.table({"text": DOCUMENTS})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


def random_access(path: Path) -> None:
    table = pa.table({"text": DOCUMENTS})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


JSON_LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
WRITERS = {
    "stream.arrow": stream,
    "file.arrow": random_access,
    "a.feather": lambda path: pyarrow.feather.write_feather(pa.table({"text": DOCUMENTS}), path),
    "array.json": lambda path: path.write_text(json.dumps(ROWS)),
    "pretty.json": lambda path: path.write_text("\ufeff" + json.dumps(ROWS, indent=2)),
    "texts.json": lambda path: path.write_text(json.dumps(DOCUMENTS)),
    "columns.json": lambda path: path.write_text(json.dumps({"text": DOCUMENTS}, indent=1)),
    "lines.json": lambda path: path.write_text(JSON_LINES),
    "a.jsonl.bz2": lambda path: path.write_bytes(bz2.compress(JSON_LINES.encode())),
    "array.json.xz": lambda path: path.write_bytes(lzma.compress(json.dumps(ROWS).encode())),
    "windows.jsonl": lambda path: path.write_bytes(JSON_LINES.replace("\n", "\r\n").encode()),
    "bytes.parquet": lambda path: pq.write_table(
        pa.table({"text": [document.encode() for document in DOCUMENTS]}), path
    ),
    "nulls.parquet": lambda path: pq.write_table(pa.table({"text": [*DOCUMENTS, None, ""]}), path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_is_read_as_it_comes(name, tmp_path):
    WRITERS[name](tmp_path / name)
    corpus = of_files(tmp_path / name)
    assert text.faults(corpus) == []
    assert read(corpus) == sorted(DOCUMENTS)
    if name != "texts.json":  # which has no columns
        (said,) = text.faults(of_files(tmp_path / name, column="body"))
        assert said.startswith("corpus.files.column: body is not a column of")


def test_files_that_were_joined_have_several_marks(tmp_path):
    (tmp_path / "a.jsonl").write_text(2 * ("\ufeff" + JSON_LINES))
    assert read(of_files(tmp_path / "a.jsonl")) == sorted(2 * DOCUMENTS)


# What save_to_disk leaves


def test_a_saved_dataset_is_read_by_its_folder_from_either_key(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "ds", num_shards=3)
    for source in (
        {"files": {"paths": [str(tmp_path / "ds")]}},
        {"files": {"paths": [str(tmp_path / "ds/*.arrow")]}},
        {"dataset": {"name": str(tmp_path / "ds")}},
    ):
        assert text.faults(of(source)) == []
        assert read(of(source)) == sorted(DOCUMENTS)
    (said,) = text.faults(of({"dataset": {"name": str(tmp_path / "ds"), "column": "body"}}))
    assert said.startswith("corpus.dataset.column: body is not a column of")


def test_the_splits_of_a_saved_dataset(tmp_path):
    parts = {"train": ROWS[:30], "test": ROWS[30:]}
    held = {name: datasets.Dataset.from_list(rows) for name, rows in parts.items()}
    datasets.DatasetDict(held).save_to_disk(tmp_path / "both")
    name = str(tmp_path / "both")
    assert read(of({"dataset": {"name": name}})) == sorted(DOCUMENTS[:30])
    assert read(of({"dataset": {"name": name, "split": "test"}})) == sorted(DOCUMENTS[30:])
    assert read(of({"files": {"paths": [f"{name}/test"]}})) == sorted(DOCUMENTS[30:])
    (said,) = text.faults(of({"files": {"paths": [name]}}))
    assert f"has the splits train, test; name one of them, as in {name}/train" in said
    (said,) = text.faults(of({"dataset": {"name": name, "split": "dev"}}))
    assert said == f"corpus.dataset.split: {name} has no dev; it has train, test"


def test_a_saved_dataset_that_is_not_whole(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "ds")
    (file,) = (tmp_path / "ds").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:-600])
    (said,) = text.faults(of_files(tmp_path / "ds"))
    assert f"{file}: cannot be read (" in said
    file.unlink()
    (said,) = text.faults(of_files(tmp_path / "ds"))
    assert f"ds lacks {file.name}; save the dataset again" in said
    (tmp_path / "ds/state.json").write_text("{}")
    (said,) = text.faults(of_files(tmp_path / "ds"))
    assert "not a complete folder of save_to_disk" in said
    (said,) = text.faults(of({"dataset": {"name": "./nowhere"}}))
    assert said == "corpus.dataset.name: ./nowhere: no such folder; correct it"


# What is no text in UTF-8

GOOD = JSON_LINES.encode()
FAULTY = {
    "utf16.txt": ("one\ntwo".encode("utf-16"), "line 1: UTF-16, not UTF-8; convert the file, as"),
    "utf16be.txt": (b"\xfe\xff" + "one".encode("utf-16-be"), "line 1: UTF-16, not UTF-8"),
    "utf32.jsonl": ("one".encode("utf-32"), "line 1: UTF-32, not UTF-8"),
    "bare16.txt": (
        "one\ntwo".encode("utf-16-le"),
        "line 1: a NUL byte, which is not allowed",
    ),
    "nul.txt": (b"one\ntwo\nthr\0ee", "line 3: a NUL byte"),
    "nul.jsonl": (GOOD + b"\0" * 500, "line 41: a NUL byte"),
    "nul.json": (b'[{"text": "a"},\n{"text": "\0"}]', "line 2: a NUL byte"),
    "latin.txt": ("one\ntwo é".encode("latin-1"), "line 2: byte 8 is not UTF-8"),
    "half.jsonl": (GOOD[: len(GOOD) // 2], r"line 2[01]: not JSON"),
    "half.json": (json.dumps(ROWS, indent=0).encode()[:-20], r"line \d+: not JSON"),
    "empty.arrow": (b"", "cannot be read"),
    "half.parquet": (b"PAR1 and no more", "cannot be read"),
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_fault_is_named_with_file_and_line_before_any_job(name, tmp_path):
    contents, message = FAULTY[name]
    (tmp_path / "docs.jsonl").write_bytes(GOOD)  # read first, and sound
    (tmp_path / name).write_bytes(contents)
    corpus = of_files(tmp_path / "docs.jsonl", tmp_path / name)
    (said,) = text.faults(corpus)
    with pytest.raises(InputError, match=rf"{name}(, |: ){message}") as told:
        read(corpus)
    assert str(told.value) == said


def test_empty_files_are_told_and_refused_only_where_no_text_is_left(tmp_path):
    (tmp_path / "docs.jsonl").write_bytes(GOOD)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "blank.txt").write_text(" \n\n")
    assert text.faults(of_files(tmp_path / "*.txt", tmp_path / "docs.jsonl")) == []
    assert text.empty(of_files(tmp_path / "*.txt")) == [tmp_path / "empty.txt"]
    (said,) = text.faults(of_files(tmp_path / "*.txt"))
    assert "neither this file nor any other has text" in said


def test_files_too_small_for_the_blocks_are_told_before_any_job(tmp_path):
    sizes = {"context": 16, "held_out_blocks": 2, "train_blocks": 3}
    file = tmp_path / "a.txt"

    def short(name: str, characters: int) -> list[str]:
        (tmp_path / name).write_text("a" * characters)
        return text.short(of({"files": {"paths": [str(tmp_path / name)]}}, **sizes))

    assert short(file.name, 76) == []  # 76 tokens of a byte each and 4 marks: 5 blocks of 16
    (said,) = short(file.name, 75)
    assert said.startswith("corpus.train_blocks: 5 blocks are needed, but the corpus has at most 4")
    assert short("a.txt.gz", 75) == []  # of a packed file nothing is known
    assert text.short(of({"files": {"paths": [str(tmp_path / "no.txt")]}}, **sizes)) == []


# Token files

IDS = np.random.default_rng(0).integers(0, 200, 2000)


def of_tokens(path: Path, **more: Any) -> Corpus:
    return of({"tokens": {"path": str(path)} | more}, train_blocks=20, held_out_blocks=4)


def with_header(ids: np.ndarray, magic: int, version: int, dtype: str) -> bytes:
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(ids)
    return header.tobytes() + ids.astype(dtype).tobytes()


@pytest.mark.parametrize(
    ("contents", "more"),
    [
        (IDS.astype("<u2").tobytes(), {}),  # nanoGPT
        (with_header(IDS, 20240520, 1, "<u2"), {}),
        (with_header(IDS, 20240520, 1, "<u2"), {"dtype": "uint16"}),
        (with_header(IDS, 20240801, 7, "<u4"), {}),
        (IDS.astype("<u4").tobytes(), {"dtype": "uint32"}),
        (IDS.astype("<i8").tobytes(), {"dtype": "int64"}),
    ],
)
def test_token_files_of_nanogpt_and_llm_c(contents, more, tmp_path):
    (tmp_path / "train.bin").write_bytes(contents)
    corpus = of_tokens(tmp_path / "train.bin", **more)
    assert text.faults(corpus) == []
    assert corpus.tokens is not None
    assert np.array_equal(arrays.opened(corpus.tokens, 16), IDS)


@pytest.mark.parametrize("name", ["train.bin.json", "train.json", "meta.json"])
@pytest.mark.parametrize("key", ["dtype", "token_dtype"])
def test_a_file_beside_it_says_the_type(name, key, tmp_path):
    IDS.astype("<u4").tofile(tmp_path / "train.bin")
    (tmp_path / name).write_text(json.dumps({key: "uint32"}))
    corpus = of_tokens(tmp_path / "train.bin")
    assert corpus.tokens is not None
    assert np.array_equal(arrays.opened(corpus.tokens, 16), IDS)
    (said,) = text.faults(of_tokens(tmp_path / "train.bin", dtype="uint16"))
    assert f"uint16 is set, but {name} of" in said


def test_plain_integers_under_the_name_npy(tmp_path):
    IDS.astype("<u2").tofile(tmp_path / "part-0.npy")  # as OLMo's data are
    assert text.faults(of_tokens(tmp_path / "part-0.npy", dtype="uint16")) == []
    (said,) = text.faults(of_tokens(tmp_path / "part-0.npy"))
    assert "not a complete .npy array" in said


LARGE = np.random.default_rng(0).integers(0, 128_000, 2000)
WRONG = {
    "uint32 as uint16": (IDS.astype("<u4").tobytes(), {}, "integers would be; set uint32"),
    "of a large vocabulary": (LARGE.astype("<u4").tobytes(), {}, "integers would be; set uint32"),
    "though it is said": (IDS.astype("<u4").tobytes(), {"dtype": "uint16"}, "set uint32"),
    "int64 as uint16": (IDS.astype("<i8").tobytes(), {}, "as int64 integers would be; set int64"),
    "cut": (with_header(IDS, 20240520, 1, "<u2")[:-10], {}, "1,995 integers, but its header says"),
    "odd": (IDS.astype("<u2").tobytes()[:-1], {}, "3,999 bytes, which is not a whole"),
    "against the header": (
        with_header(IDS, 20240801, 7, "<u4"), {"dtype": "uint16"}, "its header of .* says uint32",
    ),
    "another version": (with_header(IDS, 20240520, 3, "<u2"), {}, "of version 3, which is not"),
    "a header and no more": (with_header(IDS[:0], 20240520, 1, "<u2"), {}, "not a whole number of"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_token_file_of_another_type_is_refused(case, tmp_path):
    contents, more, message = WRONG[case]
    (tmp_path / "train.bin").write_bytes(contents)
    (said,) = text.faults(of_tokens(tmp_path / "train.bin", **more))
    assert str(tmp_path / "train.bin") in said
    with pytest.raises(InputError, match=message):
        raise InputError(said)


@pytest.mark.parametrize("blocks", [False, True])
def test_ids_beyond_the_embedding_are_named_with_file_and_place(blocks, tmp_path):
    ids = IDS[:1600].copy()
    ids[333] = 512
    np.save(tmp_path / "a.npy", ids.reshape(100, 16) if blocks else ids)
    given = of_tokens(tmp_path / "a.npy").tokens
    assert given is not None
    place = "[20, 13]" if blocks else "[333]"
    said = arrays.beyond(given, 16, 100, 512)
    assert said is not None
    assert f"a.npy holds 512 at {place}, but the model's embedding has only ids below 512" in said
    assert arrays.beyond(given, 16, 100, 513) is None
    assert arrays.beyond(given, 16, 20, 512) is None  # no block that is read has it


# A tokenizer that puts a token before a text


@pytest.fixture
def begins(tmp_path) -> Path:
    """The folder of a tokenizer that puts <s> first."""
    words = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(40))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(tmp_path / "tokenizer")
    words_drawn = np.random.default_rng(0).choice(words[3:], 2000)
    (tmp_path / "text.txt").write_text(" ".join(words_drawn))
    return tmp_path


def test_bos_stands_at_the_start_of_each_block_where_it_is_asked_for(begins):
    plain = of({"files": {"paths": [str(begins / "text.txt")]}}, train_blocks=50, held_out_blocks=4)
    told = []
    for name, corpus in (("plain", plain), ("bos", plain.model_copy(update={"bos": True}))):
        place = begins / name / "tokens.h5"
        build.build(corpus, None, begins / "tokenizer", place, begins / "t.json", pretrain=False)
        tokens = build.Tokens(place)
        told.append(tokens.blocks)
        assert (tokens.marks.bos, tokens.marks.first, tokens.end_of_text) == (1, 1, 2)
        assert tokens.marks.special == (0, 1, 2)
    without, with_bos = told
    assert not (without == 1).any()
    assert (with_bos[:, 0] == 1).all()
    assert np.array_equal(with_bos[:, 1:].ravel(), without.ravel()[: with_bos[:, 1:].size])
    known = of_folder(begins / "tokenizer")
    assert known is not None
    assert (known[1].bos, known[1].first, known[1].end, known[1].padding) == (1, 1, 2, None)
    assert "puts a token (<s>) before a text" in doubts.missing_bos(" (<s>)")


def test_bos_of_a_tokenizer_without_one_is_one_line(begins):
    given = json.loads((begins / "tokenizer/tokenizer.json").read_text())
    given["post_processor"] = None
    (begins / "tokenizer/tokenizer.json").write_text(json.dumps(given))
    named = json.loads((begins / "tokenizer/tokenizer_config.json").read_text())
    del named["bos_token"]
    (begins / "tokenizer/tokenizer_config.json").write_text(json.dumps(named))
    corpus = of({"files": {"paths": [str(begins / "text.txt")]}}, bos=True)
    with pytest.raises(
        InputError, match=r"^corpus\.bos: the tokenizer has no token for the beginning"
    ):
        build.build(corpus, None, begins / "tokenizer", begins / "t.h5", begins / "t.json", False)
