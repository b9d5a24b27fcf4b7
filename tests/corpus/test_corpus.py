"""From any text to blocks of tokens: every source, every format, every complaint."""

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from itertools import islice
from pathlib import Path

import datasets
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from conftest import HANGS, ROOT, tiny
from hub_server import HubServer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ontogeny import settings
from ontogeny.corpus import arrays, build, formats, text
from ontogeny.corpus import wheels as wheel_text
from ontogeny.files import InputError, digest_file

CONTEXT = 32
EXTRA = ["héllo 𝄞 world", "two\r\nlines\r\n", "<|endoftext|> as text", "x"]


@pytest.fixture(scope="session")
def standard_library() -> list[str]:
    """Sources of the standard library: 40 documents of real text, about half a megabyte."""
    sources = sorted(Path(os.__file__).parent.glob("*.py"))[:40]
    return [path.read_text(encoding="utf-8")[:15_000] for path in sources] + EXTRA


def write(folder: Path, ending: str, texts: list[str], column: str = "text") -> str:
    """The documents in files of one format, in two folders. Returns a pattern for them."""
    half = len(texts) // 2
    for name, part in (("a", texts[:half]), ("a/b", texts[half:])):
        (folder / name).mkdir(parents=True, exist_ok=True)
        if ending.startswith(".txt"):
            contents = {f"{name}/{i}": document for i, document in enumerate(part)}
        else:
            rows = [json.dumps({"id": i, column: d}) for i, d in enumerate(part)]
            contents = {f"{name}/rows": "\n\n".join(rows) + "\n"}
        for place, content in contents.items():
            path = folder / f"{place}{ending}"
            raw = content.encode("utf-8")
            if ending == ".parquet":
                table = pa.table({"id": list(range(len(part))), column: part})
                pq.write_table(table, path, row_group_size=7)
            elif ending.endswith(".gz"):
                path.write_bytes(gzip.compress(raw))
            elif ending.endswith(".zst"):  # in two frames, as parallel compressors write them
                frames = [zstandard.compress(raw[:100]), zstandard.compress(raw[100:])]
                path.write_bytes(b"".join(frames))
            else:
                path.write_bytes(raw)
    return str(folder / f"**/*{ending}")


def of_files(*patterns: object, column: str = "text", **changes) -> settings.Corpus:
    section = {"files": {"paths": [str(p) for p in patterns], "column": column}}
    blocks = {"context": CONTEXT, "train_blocks": 20, "held_out_blocks": 5, "vocabulary": 300}
    return settings.Corpus(**(section | blocks | changes))


def of_array(path: object, **changes) -> settings.Corpus:
    known = {k: changes.pop(k) for k in ("dtype", "end_of_text") if k in changes}
    blocks = {"context": CONTEXT, "train_blocks": 20, "held_out_blocks": 5}
    return settings.Corpus(tokens={"path": str(path)} | known, **(blocks | changes))


@pytest.fixture(scope="session")
def library(standard_library, tmp_path_factory) -> str:
    """A pattern for the documents as JSON lines."""
    return write(tmp_path_factory.mktemp("library"), ".jsonl", standard_library)


@pytest.fixture(scope="session")
def models_folder(standard_library, tmp_path_factory):
    """Folders of models' tokenizers: with an end of text, a beginning alone, neither."""
    folder = tmp_path_factory.mktemp("models")
    backend = build.train_tokenizer(standard_library[:8], 400)
    backend.enable_truncation(8)
    backend.enable_padding(length=8, pad_token=build.END_OF_TEXT)
    roles = {"eos": {"eos_token": build.END_OF_TEXT}, "bos": {"bos_token": "!"}, "none": {}}
    for name, special in roles.items():
        PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder / name)
    return folder


@pytest.fixture
def made(tmp_path):
    """A function that builds a corpus and opens its tokens."""

    def make(corpus, model=None, pretrain=False, wheels=None) -> build.Tokens:
        paths = tmp_path / "made/tokens.h5", tmp_path / "made/tokenizer.json"
        build.build(corpus, wheels, model, *paths, pretrain=pretrain)
        return build.Tokens(paths[0])

    return make


def complaint(function, *arguments, **named) -> str:
    """The one line that a call refuses its input with."""
    with pytest.raises(InputError) as caught:
        function(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def first(corpus) -> str | None:
    return next(text.documents(corpus), None)


def plain_blocks(documents, encode, end, context=CONTEXT) -> np.ndarray:
    """Documents → blocks, the obvious way."""
    stream = []
    for document in documents:
        stream += encode(document) + ([] if end is None else [end])
    count = len(stream) // context
    return np.array(stream[: count * context]).reshape(count, context)


FORMATS = [".txt", ".txt.gz", ".txt.zst", ".jsonl", ".json", ".jsonl.gz", ".jsonl.zst", ".parquet"]


@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_holds_the_same_documents(standard_library, tmp_path, ending):
    corpus = of_files(write(tmp_path, ending, [*standard_library, "", " \n"]))
    assert sorted(text.documents(corpus)) == sorted(standard_library)
    assert text.faults(corpus) == []


def test_the_seed_fixes_the_order(library, standard_library):
    orders = [list(text.documents(of_files(library, seed=seed))) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != standard_library
    assert sorted(orders[0]) == sorted(orders[2])


def test_patterns_that_overlap_name_a_file_once(library, standard_library):
    corpus = of_files(library, library.replace("**", "a"))
    assert len(text.files(corpus.files)) == 2
    assert sorted(text.documents(corpus)) == sorted(standard_library)


@pytest.mark.parametrize(("documents", "characters"), [(50, 1 << 30), (1 << 30, 5000)])
def test_the_mixing_buffer_is_bounded(monkeypatch, documents, characters):
    monkeypatch.setattr(text, "BUFFER_DOCUMENTS", documents)
    monkeypatch.setattr(text, "BUFFER_CHARACTERS", characters)
    given = 0

    def source():
        nonlocal given
        for i in range(2000):
            given += 1
            yield f"{i:0100}"

    mixed = []
    for document in text._mixed(source(), np.random.default_rng(0)):
        mixed.append(int(document))
        assert given - len(mixed) <= 50
    assert sorted(mixed) == list(range(2000))
    assert mixed[:200] != sorted(mixed[:200])


def test_a_long_text_is_cut_at_line_ends(monkeypatch, tmp_path, standard_library):
    monkeypatch.setattr(formats, "LONGEST", 1000)
    whole = "".join(standard_library[:10])
    (tmp_path / "long.txt").write_text("\ufeff" + whole + "word " * 500 + "x" * 3000, newline="")
    parts = list(formats.read(tmp_path / "long.txt", "text"))
    assert "".join(parts) == whole + "word " * 500 + "x" * 3000
    assert max(map(len, parts)) <= 1000
    assert sum(part.endswith("\n") for part in parts) > len(whole) // 1000


def test_half_characters_in_json_are_replaced(tmp_path, made):
    rows = ['{"text": "a\\ud800b"}', '{"text": "\\ud834\\udd1e"}']
    (tmp_path / "a.jsonl").write_text("\n".join(rows * 20))
    corpus = of_files(tmp_path / "a.jsonl", context=16, train_blocks=1, held_out_blocks=2)
    assert set(text.documents(corpus)) == {"a?b", "𝄞"}
    assert made(corpus, pretrain=True).size("pretrain") > 0


@pytest.mark.parametrize("pretrain", [False, True, 7])
@pytest.mark.parametrize("role", ["eos", "bos", "none"])
def test_blocks_are_the_documents_tokens_in_order(
    made, monkeypatch, library, models_folder, role, pretrain
):
    monkeypatch.setattr(build, "BATCH_CHARACTERS", 30_000)
    blocks = None if isinstance(pretrain, bool) else pretrain
    corpus = of_files(library, pretrain_blocks=blocks)
    tokens = made(corpus, models_folder / role, bool(pretrain))

    theirs = AutoTokenizer.from_pretrained(models_folder / role)
    end = {"eos": theirs.eos_token_id, "bos": theirs.bos_token_id, "none": None}[role]

    def encode(document: str) -> list[int]:
        return theirs(document, add_special_tokens=False).input_ids

    expected = plain_blocks(islice(text.documents(corpus), 30), encode, end)
    count = len(tokens.blocks)
    assert (count > len(expected)) == (pretrain is True)
    shared = min(count, len(expected))
    np.testing.assert_array_equal(tokens.blocks[:shared], expected[:shared])
    if pretrain is True:
        assert count == len(plain_blocks(text.documents(corpus), encode, end))
    else:
        assert count == 25 + (blocks or 0)
    assert tokens.splits == {"held_out": (0, 5), "train": (5, 25), "pretrain": (25, count)}
    assert [tokens.size(name) for name in build.SPLITS] == [5, 20, count - 25]
    np.testing.assert_array_equal(tokens.split("train"), tokens.blocks[5:25])
    assert (tokens.end_of_text, tokens.context, tokens.vocabulary) == (end, CONTEXT, 400)
    assert tokens.blocks.dtype == np.uint16


def test_the_written_tokenizer_is_the_models_without_limits(made, library, models_folder, tmp_path):
    tokens = made(of_files(library), models_folder / "eos")
    written = Tokenizer.from_file(str(tmp_path / "made/tokenizer.json"))
    assert tokens.tokenizer == digest_file(tmp_path / "made/tokenizer.json")
    assert (written.truncation, written.padding) == (None, None)
    theirs = AutoTokenizer.from_pretrained(models_folder / "eos")
    sample = "def f(x): return 'a rather long line of text', x"
    assert len(written.encode(sample).ids) > 8
    assert written.encode(sample).ids == theirs(sample, truncation=False).input_ids


def test_a_large_vocabulary_takes_four_bytes(made, tmp_path):
    words = {f"w{i}": i for i in range(70_000)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path / "large"
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="w1").save_pretrained(folder)
    (tmp_path / "a.txt").write_text(" ".join(f"w{69_999 - i}" for i in range(900)))
    tokens = made(of_files(tmp_path / "a.txt"), folder)
    np.testing.assert_array_equal(tokens.blocks.ravel(), 69_999 - np.arange(25 * CONTEXT))
    assert (tokens.blocks.dtype, tokens.vocabulary) == (np.uint32, 70_000)


def test_a_tokenizer_of_our_own_learns_from_the_first_text(made, monkeypatch, library, tmp_path):
    monkeypatch.setattr(build, "SAMPLE_CHARACTERS", 100_000)
    corpus = of_files(library)
    tokens = made(corpus, pretrain=True)
    sample, characters = [], 0
    for document in text.documents(corpus):
        sample.append(document)
        characters += len(document)
        if characters >= 100_000:
            break
    bpe = build.train_tokenizer(sample, 300)
    assert (tmp_path / "made/tokenizer.json").read_text() == bpe.to_str(pretty=True)
    expected = plain_blocks(text.documents(corpus), lambda d: bpe.encode(d).ids, 0)
    np.testing.assert_array_equal(tokens.blocks, expected)
    assert (tokens.vocabulary, tokens.end_of_text) == (300, 0)
    all_text = "\0".join(text.documents(corpus)).encode()
    assert tokens.corpus == hashlib.sha256(all_text).hexdigest()


@pytest.mark.slow
def test_the_text_in_wheels_is_packed_as_ever(made, wheels, tmp_path):
    corpus = settings.load(tiny()).corpus
    documents = wheel_text.documents(corpus.wheels, wheels, corpus.seed)
    tokens = made(corpus, pretrain=True, wheels=wheels)
    assert tokens.corpus == "64384c0a3194ae0da995568b8daadbc078b9c66f17684fe5968de7674d03983f"
    bpe = build.train_tokenizer(documents, corpus.vocabulary)
    assert (tmp_path / "made/tokenizer.json").read_text() == bpe.to_str(pretty=True)
    encoded = dict(zip(documents, bpe.encode_batch(documents), strict=True))
    expected = plain_blocks(documents, lambda d: encoded[d].ids, 0, corpus.context)
    np.testing.assert_array_equal(tokens.blocks, expected)
    assert tokens.splits == {"held_out": (0, 16), "train": (16, 144), "pretrain": (144, 42781)}


def test_of_a_package_sources_are_text_and_tests_are_not(tmp_path, monkeypatch):
    files = {f"one/m{i}.py": f"x{i} = {i}\r\n" * 10 for i in range(9)}
    others = ["one/tests/a.py", "one/test_b.py", "one/_vendor/c.py", "one/conftest.py", "one/d.txt"]
    wheel = tmp_path / "one-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text_ in (files | dict.fromkeys(others, "no")).items():
            archive.writestr(name, text_)
    whole = {text_.replace("\r\n", "\n") for text_ in files.values()}
    assert set(wheel_text.python([wheel, wheel])) == whole
    assert len(list(wheel_text.python([wheel, wheel]))) == 18
    monkeypatch.setattr(wheel_text, "PACKAGE_BYTES", 340)  # of files of 80 bytes
    some = list(wheel_text.python([wheel, wheel]))
    assert some[:4] == some[4:]
    assert (len(some), len(set(some) & whole)) == (8, 4)


def test_no_more_text_is_read_than_is_needed(made, monkeypatch, library, models_folder):
    monkeypatch.setattr(build, "BATCH_CHARACTERS", 1)
    monkeypatch.setattr(text, "BUFFER_DOCUMENTS", 3)
    read, given = text._of_files, []

    def counted(*arguments):
        for document in read(*arguments):
            given.append(document)
            yield document

    monkeypatch.setattr(text, "_of_files", counted)
    made(of_files(library), models_folder / "eos")
    assert 3 < len(given) < 10
    given.clear()
    made(of_files(library), models_folder / "eos", pretrain=True)
    assert len(given) == 44


def test_memory_does_not_grow_with_the_tokens(made, tmp_path, models_folder):
    peaks = []
    for tokens in (4 << 20, 12 << 20):
        large = np.lib.format.open_memmap(tmp_path / "large.npy", "w+", np.uint16, (tokens,))
        large[:] = np.arange(tokens) % 400
        corpus = of_array(tmp_path / "large.npy", train_blocks=tokens // CONTEXT - 5)
        tracemalloc.start()
        try:
            made(corpus, models_folder / "eos")
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        with h5py.File(tmp_path / "made/tokens.h5") as file:
            assert file["tokens"].shape == (tokens // CONTEXT, CONTEXT)
            np.testing.assert_array_equal(file["tokens"][-1], large[-CONTEXT:])
    assert peaks[1] < 1.05 * peaks[0]


ARRAYS = {
    "flat.npy": lambda ids, path: np.save(path, ids.astype(np.int64)),
    "uint8.npy": lambda ids, path: np.save(path, ids.astype(np.uint8)),
    "big-endian.npy": lambda ids, path: np.save(path, ids.astype(">i4")),
    "blocks.npy": lambda ids, path: np.save(path, ids[:960].reshape(30, CONTEXT)),
    "fortran.npy": lambda ids, path: np.save(path, np.asfortranarray(ids[:960].reshape(30, -1))),
    "uint16.bin": lambda ids, path: ids.astype("<u2").tofile(path),
    "uint32.bin": lambda ids, path: ids.astype("<u4").tofile(path),
    "int32.bin": lambda ids, path: ids.astype("<i4").tofile(path),
    "int64.bin": lambda ids, path: ids.astype("<i8").tofile(path),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_are_taken_as_they_are(made, monkeypatch, tmp_path, models_folder, name):
    monkeypatch.setattr(arrays, "PIECE", 100)
    ids = np.random.default_rng(0).integers(0, 256, 1000)
    ARRAYS[name](ids, tmp_path / name)
    kind = {"dtype": name[:-4]} if name.endswith(".bin") else {}
    corpus = of_array(tmp_path / name, **kind)
    assert text.faults(corpus) == []
    tokens = made(corpus, models_folder / "eos")
    np.testing.assert_array_equal(tokens.blocks.ravel(), ids[: 25 * CONTEXT])
    assert tokens.end_of_text == AutoTokenizer.from_pretrained(models_folder / "eos").eos_token_id
    assert made(of_array(tmp_path / name, end_of_text=7, **kind), models_folder / "eos")


def test_an_arrays_own_end_of_text(made, tmp_path, models_folder):
    np.save(tmp_path / "a.npy", np.zeros(1000, np.uint16))
    tokens = made(of_array(tmp_path / "a.npy", end_of_text=7), models_folder / "eos")
    assert tokens.end_of_text == 7
    said = complaint(made, of_array(tmp_path / "a.npy", end_of_text=400), models_folder / "eos")
    assert said.startswith("corpus.tokens.end_of_text: 400 is not an id of the tokenizer, which")


def ids(path, array, **changes):
    np.save(path, array)
    return of_array(path, **changes)


WRONG_ARRAYS = {
    "missing": (lambda f: of_array(f / "no.npy"), r"no\.npy: no such file; correct the path"),
    "ending": (lambda f: of_array(__file__), r"test_corpus\.py: unknown format; name a \.npy or"),
    "reals": (lambda f: ids(f / "a.npy", np.zeros(2000)), "holds float64, not integers; write"),
    "cube": (lambda f: ids(f / "a.npy", np.zeros((2, 2, 2), int)), r"shape \(2, 2, 2\); write"),
    "context": (
        lambda f: ids(f / "a.npy", np.zeros((50, 48), int)),
        r"blocks of 48 tokens, but corpus\.context is 32; set it to their length",
    ),
    "objects": (
        lambda f: ids(f / "a.npy", np.array([{}])),
        r"not a complete \.npy array \(.*restore",
    ),
    "short": (
        lambda f: ids(f / "a.npy", np.zeros(500, int)),
        r"^corpus\.train_blocks: 25 blocks are needed, but the corpus has only 15 blocks of 32 "
        r"tokens; lower it or name a longer array in corpus\.tokens\.path",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), WRONG_ARRAYS.values(), ids=WRONG_ARRAYS)
def test_wrong_arrays_are_found_before_any_job(make, message, made, tmp_path, models_folder):
    corpus = make(tmp_path)
    said = complaint(made, corpus, models_folder / "eos")
    assert re.search(message, said)
    assert text.faults(corpus) == [said]
    assert not (tmp_path / "made/tokens.h5").exists()


@pytest.mark.parametrize("name", ["a.bin", "a.npy", "blocks.npy"])
def test_ids_that_the_tokenizer_lacks(made, monkeypatch, tmp_path, models_folder, name):
    monkeypatch.setattr(arrays, "PIECE", 320)
    array = np.zeros(960, np.int32)
    array[700], array[800] = 400, -1
    if name == "a.bin":
        array.tofile(tmp_path / name)
    else:
        np.save(tmp_path / name, array.reshape(30, CONTEXT) if name == "blocks.npy" else array)
    said = complaint(made, of_array(tmp_path / name, dtype="int32"), models_folder / "eos")
    place = "[21, 28]" if name == "blocks.npy" else "[700]"
    assert f"{name} holds 400 at {place}, but the tokenizer has only ids below 400; use the" in said
    array[700] = -7
    array.tofile(tmp_path / "b.bin")
    said = complaint(made, of_array(tmp_path / "b.bin", dtype="int32"), models_folder / "eos")
    assert "b.bin holds -7 at [700]" in said


def test_a_bin_file_of_another_type(tmp_path):
    np.zeros(999, np.uint16).tofile(tmp_path / "a.bin")
    (said,) = text.faults(of_array(tmp_path / "a.bin", dtype="uint32"))
    assert said.endswith(
        "a.bin has 1,998 bytes, which is not a whole number of uint32 integers; restore it or "
        "correct corpus.tokens.dtype"
    )


def test_ids_need_the_models_tokenizer(made, tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(1000, np.uint16))
    said = complaint(made, of_array(tmp_path / "a.npy"))
    assert said == "corpus.tokens: ids need the model's tokenizer; use text instead"


def lines(path: Path, *rows: bytes) -> Path:
    path.write_bytes(b"\n".join(rows))
    return path


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-9])
    return path


def packed(folder: Path, ending: str) -> Path:
    write(folder, ending, ["some text " * 500] * 2)
    return folder / f"a/rows{ending}"


def parquet(path: Path, column: pa.Array) -> Path:
    pq.write_table(pa.table({"text": column}), path)
    return path


GOOD = b'{"text": "good"}'
WRONG_FILES = {
    "nothing there": (lambda f: f / "no-*.jsonl", r"^corpus\.files\.paths: .*no-\*.jsonl: no su"),
    "folder": (lambda f: f, r"^corpus\.files\.paths: .*: is a folder; add a pattern such as /\*"),
    "csv": (lambda f: lines(f / "a.csv", b"x"), r"a\.csv: unknown format; name files that end in"),
    "zipped parquet": (lambda f: lines(f / "a.parquet.gz", b"x"), r"a\.parquet\.gz: unknown form"),
    "no column": (
        lambda f: lines(f / "a.jsonl", b'{"body": "x", "id": 1}'),
        r"^corpus\.files\.column: text is not a column of .*a\.jsonl, line 1; it has body, id$",
    ),
    "no column in parquet": (
        lambda f: Path(write(f, ".parquet", ["x"], "body").replace("**", "a/b")),
        r"^corpus\.files\.column: text is not a column of .*rows\.parquet; it has id, body$",
    ),
    "not JSON": (
        lambda f: lines(f / "a.jsonl", b'{"text": "x" "y"}'),
        r"a\.jsonl, line 1: not JSON \(Expecting ',' delimiter.*\); correct or remove the line$",
    ),
    "a list": (lambda f: lines(f / "a.json", b"[3]"), r"a\.json, item 1: not an object; the fi"),
    "deep": (lambda f: lines(f / "a.jsonl", b"[" * 100_000), r"a\.jsonl, line 1: not JSON \(maxim"),
    "a number": (
        lambda f: lines(f / "a.jsonl", b'{"text": 3}'),
        r"^corpus\.files\.column: text holds int, not text \(.*a\.jsonl, line 1\); name a column",
    ),
    "numbers in parquet": (
        lambda f: parquet(f / "a.parquet", pa.array([1, 2])),
        r"^corpus\.files\.column: text holds int, not text \(.*a\.parquet\)",
    ),
    "JSON of another encoding": (
        lambda f: lines(f / "a.jsonl", '{"text": "é"}'.encode("latin-1")),
        r"a\.jsonl, line 1: byte 10 is not UTF-8; convert the file to UTF-8$",
    ),
    "parquet of another encoding": (
        lambda f: parquet(f / "a.parquet", pa.array([b"\xe9"]).view(pa.string())),
        r"a\.parquet: byte 0 of a document is not UTF-8; write the file in UTF-8$",
    ),
    "cut gzip": (lambda f: cut(packed(f, ".jsonl.gz")), r"rows\.jsonl\.gz: cannot be read \(Comp"),
    "no gzip": (lambda f: lines(f / "a.jsonl.gz", GOOD), r"a\.jsonl\.gz: cannot be read \(Not a g"),
    "no zstd": (lambda f: lines(f / "a.jsonl.zst", GOOD), r"a\.jsonl\.zst: cannot be read \(zstd"),
    "cut parquet": (lambda f: cut(packed(f, ".parquet")), r"rows\.parquet: cannot be read \(Parq"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_wrong_files_are_found_before_any_job(make, message, tmp_path):
    corpus = of_files(make(tmp_path))
    said = complaint(first, corpus)
    assert re.search(message, said)
    assert text.faults(corpus) == [said]


LATE_FAULTS = {
    "broken line": (
        lambda f: lines(f / "a.jsonl", *[GOOD] * 300, b"", b'{"text": '),
        r"a\.jsonl, line 302: not JSON \(Expecting value",
    ),
    "column that goes": (
        lambda f: lines(f / "a.jsonl", *[GOOD] * 300, b'{"t": 1}'),
        r"text is not a column of .*a\.jsonl, line 301; it has t$",
    ),
    "text of another encoding": (
        lambda f: lines(f / "a.txt", "\ufeff".encode(), b"x" * 300_000, "é".encode("latin-1")),
        r"a\.txt, line 3: byte 300,005 is not UTF-8; convert the file to UTF-8, or leave it out$",
    ),
    "text that ends within a character": (
        lambda f: lines(f / "a.txt", b"x", "é".encode()[:1]),
        r"a\.txt, line 2: byte 2 is not UTF-8",
    ),
    "cut zstd": (
        lambda f: cut(packed(f, ".jsonl.zst")),
        r"rows\.jsonl\.zst: cannot be read \(the compressed data ends too early\); restore it",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), LATE_FAULTS.values(), ids=LATE_FAULTS)
def test_late_faults_leave_no_tokens(make, message, made, library, tmp_path, models_folder):
    corpus = of_files(make(tmp_path), context=16, train_blocks=1, held_out_blocks=2)
    assert re.search(message, complaint(made, corpus, models_folder / "eos", pretrain=True))
    assert [p.name for p in (tmp_path / "made").iterdir()] == []


def test_faults_are_a_line_each(tmp_path, library):
    patterns = [tmp_path / "no.txt", library, tmp_path / "nor.jsonl"]
    said = text.faults(of_files(*patterns, column="body"))
    assert [line.split(": ")[0] for line in said] == [
        "corpus.files.paths", "corpus.files.paths", "corpus.files.column",
    ]  # fmt: skip


TOO_LITTLE = [
    (
        {"train_blocks": 99_999},
        False,
        r"^corpus\.train_blocks: 100004 blocks are needed, but the corpus has only (\d+) blocks of "
        r"32 tokens; lower it or add corpus\.files\.paths$",
    ),
    (
        {"train_blocks": 99_999},
        True,
        r"100004 blocks are needed in addition to those for pre-training, but the",
    ),
    (
        {"pretrain_blocks": 99_975},
        True,
        r"^corpus\.pretrain_blocks: 100000 blocks are needed together with those of held_out",
    ),
]


@pytest.mark.parametrize(("changes", "pretrain", "message"), TOO_LITTLE)
def test_too_little_text(made, library, models_folder, tmp_path, changes, pretrain, message):
    said = complaint(made, of_files(library, **changes), models_folder / "eos", pretrain)
    assert re.search(message, said)
    assert not list((tmp_path / "made").iterdir())


def test_just_enough_text(made, tmp_path, models_folder):
    """Text for exactly the blocks that are needed: enough, unless a model is to train on more."""
    np.save(tmp_path / "a.npy", np.zeros(25 * CONTEXT, np.uint16))
    assert len(made(of_array(tmp_path / "a.npy"), models_folder / "eos").blocks) == 25
    (tmp_path / "a.txt").write_text("~" * 25 * CONTEXT)
    assert len(made(of_files(tmp_path / "a.txt"), models_folder / "none").blocks) == 25
    said = complaint(made, of_files(tmp_path / "a.txt"), models_folder / "none", True)
    assert (
        "corpus.train_blocks: 25 blocks are needed in addition to those for pre-training, but the "
        in said
    )


@pytest.mark.parametrize(
    "files",
    [{}, {"config.json": '{"model_type": "gpt2"}'}, {"config.json": "{}", "tokenizer.json": "{"}],
)
def test_folders_without_a_tokenizer(made, library, tmp_path, files):
    (tmp_path / "model").mkdir()
    for name, content in files.items():
        (tmp_path / "model" / name).write_text(content)
    said = complaint(made, of_files(library), tmp_path / "model")
    assert re.match(rf"{tmp_path / 'model'}: (has )?no .*fast", said)
    assert said.endswith(
        "put the model's tokenizer.json there, or set snapshots.hub.tokenizer or "
        "snapshots.local.tokenizer"
    )


def test_a_tokenizers_own_code_never_runs(made, library, tmp_path, models_folder):
    folder = shutil.copytree(models_folder / "eos", tmp_path / "model")
    about = json.loads((folder / "tokenizer_config.json").read_text())
    about |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    said = complaint(made, of_files(library), folder)
    assert said.startswith(f"{folder}: no fast tokenizer that transformers can load")
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def tokens(library, models_folder, tmp_path_factory) -> build.Tokens:
    """All text as blocks. Look, do not change."""
    folder = tmp_path_factory.mktemp("tokens")
    paths = folder / "tokens.h5", folder / "tokenizer.json"
    build.build(of_files(library), None, models_folder / "eos", *paths, pretrain=True)
    return build.Tokens(paths[0])


@pytest.mark.parametrize("kind", ["any", "run", "backwards", "repeated", "none", "all"])
def test_blocks_by_number(tokens, kind):
    count = len(tokens.blocks)
    assert count > 3 * 64  # several chunks
    rng = np.random.default_rng(0)
    numbers = {
        "any": rng.choice(count, 100, replace=False),
        "run": np.arange(60, 140),
        "backwards": np.arange(140, 60, -1),
        "repeated": rng.integers(0, count, 300),
        "none": np.empty(0, np.int64),
        "all": np.arange(count),
    }[kind]
    found = tokens.take(numbers)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, tokens.blocks[numbers])


def test_blocks_that_are_not_there(tokens):
    for number in (-1, len(tokens.blocks)):
        with pytest.raises(IndexError, match="has blocks 0 to"):
            tokens.take(np.array([0, number]))


def test_the_digest_is_of_the_contents(made, library, models_folder, tmp_path):
    corpus = of_files(library)
    again = [made(corpus, models_folder / "eos").digest for _ in range(2)]
    assert again[0] == again[1]
    others = [
        made(of_files(library, seed=1), models_folder / "eos"),
        made(of_files(library, held_out_blocks=6, train_blocks=19), models_folder / "eos"),
        made(corpus, models_folder / "eos", pretrain=True),
        made(of_files(library, context=16, train_blocks=45), models_folder / "eos"),
    ]
    np.save(tmp_path / "a.npy", np.zeros(1000, np.int16))
    for end in (None, 7):
        others.append(made(of_array(tmp_path / "a.npy", end_of_text=end), models_folder / "eos"))
    others.append(made(of_array(tmp_path / "a.npy", end_of_text=7), models_folder / "bos"))
    digests = {again[0], *(other.digest for other in others)}
    assert len(digests) == 1 + len(others)
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)


def test_a_damaged_block_is_noticed_where_it_is_read(tokens, tmp_path):
    path = shutil.copy(tokens.path, tmp_path / "tokens.h5")
    with h5py.File(path) as file:
        place = file["tokens"].id.get_chunk_info(1).byte_offset
    content = bytearray(path.read_bytes())
    content[place + 100] ^= 1
    path.write_bytes(content)
    opened = build.Tokens(path)
    np.testing.assert_array_equal(opened.take(np.arange(64)), tokens.blocks[:64])
    for read in (lambda: opened.take(np.array([64])), lambda: opened.blocks):
        assert complaint(read).startswith(
            f"{path}: truncated, or not a file of tokens; delete it to m"
        )


def test_files_that_are_no_tokens(tokens, tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["tokens"] = np.zeros((3, 4), np.uint16)
    cut(shutil.copy(tokens.path, tmp_path / "cut.h5"))
    for path in (tmp_path / f"{name}.h5" for name in ("other", "missing", "cut")):
        assert complaint(build.Tokens, path).startswith(
            f"{path}: truncated, or not a file of tokens; "
        )


def test_looking_for_faults_imports_no_heavy_library(library):
    code = (
        "import sys, yaml; from ontogeny.corpus import text, wheels; from ontogeny import settings;"
        f"c = settings.Corpus(files={{'paths': [{library!r}]}}); assert text.faults(c) == [];"
        "print({'torch', 'transformers', 'datasets', 'pandas', 'h5py'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


READ_DATASETS = """
import json, sys
import datasets
from ontogeny.corpus import text
from ontogeny.files import InputError
from ontogeny.settings import Corpus
datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0
datasets.config.STREAMING_READ_RETRY_INTERVAL = 0
datasets.disable_progress_bars()
said = []
for wanted in json.loads(sys.argv[1]):
    try:
        said.append(list(text.documents(Corpus(dataset=wanted))))
    except InputError as fault:
        said.append(str(fault))
print(json.dumps(said))
"""


def read_datasets(hub: HubServer, home: Path, *wanted: dict[str, str], **environment: str) -> list:
    """What a process of its own reads from the hub's datasets: documents, or a complaint."""
    done = subprocess.run(
        [sys.executable, "-c", READ_DATASETS, json.dumps(wanted)],
        env=hub.environment(home, PYTHONPATH=str(ROOT / "src"), **environment),
        capture_output=True, text=True, timeout=HANGS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def hub(tmp_path, standard_library):
    """A hub with a dataset of three Parquet shards, one of JSON lines, and one that is gated."""
    with HubServer() as server:
        shards = {}
        for i in range(3):
            pq.write_table(pa.table({"text": standard_library[i::3]}), tmp_path / "shard")
            shards[f"data/train-{i}-of-3.parquet"] = (tmp_path / "shard").read_bytes()
        server.add("some/shards", "main", shards, "dataset")
        rows = "".join(json.dumps({"body": d}) + "\n" for d in standard_library[:9])
        files = {"train.jsonl.gz": gzip.compress(rows.encode()), "test.jsonl": rows[:0]}
        server.add("some/lines", "main", files, "dataset")
        server.add("some/lines", "v2", {"train.jsonl": '{"body": "second"}'}, "dataset", tag=True)
        about = "---\nconfigs:\n" + "".join(
            f"- config_name: {c}\n  data_files: {c}.jsonl\n" for c in ("one", "two")
        )
        files = {"README.md": about + "---\n", "one.jsonl": '{"text": "1"}', "two.jsonl": ""}
        server.add("some/configs", "main", files, "dataset")
        server.add("some/secrets", "main", {"a.jsonl": '{"text": "x"}'}, "dataset", gated=True)
        yield server


def test_datasets_of_a_hub(hub, tmp_path, standard_library):
    shards, rows = {"name": "some/shards"}, {"name": "some/lines", "column": "body"}
    hub.misbehave("data/train-1-of-3.parquet", "cut", 1)
    hub.misbehave("train.jsonl.gz", "error", 1)
    wanted = [
        shards, shards, rows, rows | {"revision": "v2"},
        {"name": "some/configs", "config": "one"},
        {"name": "some/nothing"}, shards | {"split": "test"}, shards | {"column": "body"},
        {"name": "some/lines"}, rows | {"revision": "v3"}, {"name": "some/configs"},
        {"name": "some/configs", "config": "three"}, {"name": "some/secrets"},
    ]  # fmt: skip
    once, again, short, second, one, *faults = read_datasets(hub, tmp_path / "home", *wanted)
    assert sorted(once) == sorted(standard_library)
    assert once == again != standard_library
    assert sorted(short) == sorted(standard_library[:9])
    assert (second, one) == (["second"], ["1"])
    assert not [fault for fault in faults if "\n" in fault]
    for fault, message in zip(
        faults,
        [
            r"corpus\.dataset\.name: some/nothing: Dataset 'some/nothing' doesn't exist on the Hub"
            r".*; correct it, or set HF_TOKEN if it needs access$",
            r"corpus\.dataset\.split: test: Bad split: test\. Available splits: \['train'\]; name",
            r"corpus\.dataset\.column: body is not in .*some/shards; it has text$",
            r"corpus\.dataset\.column: text is not in .*some/lines",
            r"corpus\.dataset\.revision: v3: Revision 'v3' doesn't exist for .*; correct it$",
            r"corpus\.dataset\.config: some/configs: Config name is missing\. .*'one', 'two'",
            r"corpus\.dataset\.config: three: BuilderConfig 'three' not found\. .*\['one', 'two'\]",
            r"corpus\.dataset\.name: some/secrets: .*; correct it, or set HF_TOKEN if it needs acc",
        ],
        strict=True,
    ):
        assert re.match(message, fault)


def test_datasets_out_of_reach(hub, tmp_path):
    (said,) = read_datasets(hub, tmp_path / "home", {"name": "some/lines"}, HF_HUB_OFFLINE="1")
    assert said.startswith(
        "corpus.dataset.name: some/lines: Couldn't reach 'some/lines' on the Hub"
    )
    assert said.endswith("unset HF_HUB_OFFLINE and HF_DATASETS_OFFLINE, or use corpus.files")
    assert not hub.requests


def test_a_gated_dataset_is_read_with_the_token(hub, tmp_path):
    (read,) = read_datasets(hub, tmp_path / "home", {"name": "some/secrets"}, HF_TOKEN="hf_mine")
    assert read == ["x"]
    assert {request.token for request in hub.gets("a.jsonl")} == {"hf_mine"}


def test_a_dataset_in_a_folder_becomes_blocks(made, monkeypatch, standard_library, tmp_path):
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    write(tmp_path / "set", ".parquet", standard_library)
    blocks = {"context": CONTEXT, "train_blocks": 20, "held_out_blocks": 5, "vocabulary": 300}
    corpus = settings.Corpus(dataset={"name": str(tmp_path / "set")}, pretrain_blocks=40, **blocks)
    assert sorted(text.documents(corpus)) == sorted(standard_library)
    tokens = made(corpus, pretrain=True)
    bpe = Tokenizer.from_file(str(tmp_path / "made/tokenizer.json"))
    documents = islice(text.documents(corpus), 20)
    expected = plain_blocks(documents, lambda d: bpe.encode(d).ids, 0)
    np.testing.assert_array_equal(tokens.blocks, expected[:65])
    numbers = settings.Corpus(dataset={"name": str(tmp_path / "set"), "column": "id"}, **blocks)
    assert complaint(first, numbers).startswith("corpus.dataset.column: id holds int, not text (")
