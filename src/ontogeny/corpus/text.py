"""Documents of one's own: text files of several formats, and datasets of the Hugging Face hub.

Both are read as streams and mixed in a buffer of bounded size, so that a corpus of any size fits
into memory.
"""

from __future__ import annotations

import codecs
import glob
import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ontogeny.corpus import arrays
from ontogeny.files import InputError, one_line
from ontogeny.settings import Corpus, Dataset, TextFiles

LONGEST = 1 << 22  # characters: a longer .txt becomes several documents, cut at line ends
BUFFER_DOCUMENTS = 10_000
BUFFER_CHARACTERS = 1 << 26
CHUNK_BYTES = 1 << 17
FORMATS = (".txt", ".jsonl", ".json", ".parquet")
COMPRESSIONS = (".gz", ".zst")


def documents(corpus: Corpus) -> Iterator[str]:
    """Documents of `corpus.files` or `corpus.dataset`, in an order that the seed fixes.

    Files (or the dataset's shards) come in a shuffled order; their documents are mixed in a buffer
    of 10,000 documents or 64 M characters, whichever is full first. Empty documents are left out.
    What cannot be found or read is an InputError with the file and line, or the key.
    """
    if corpus.files is not None:
        texts = _of_files(corpus.files, corpus.seed)
    elif corpus.dataset is not None:
        texts = _of_dataset(corpus.dataset, corpus.seed)
    else:
        raise ValueError(f"corpus.{corpus.source} is not read as a stream of documents")
    return _mixed(texts, np.random.default_rng((corpus.seed, 1)))


def faults(corpus: Corpus) -> list[str]:
    """What of the text can be known to fail before any job starts, a line each.

    Files are looked for, the first that has columns is read as far as its first document, and an
    array's type, shape and length are checked. A dataset is not asked for: that needs the network.
    """
    lines = []
    try:
        if corpus.tokens is not None:
            taken = corpus.context - corpus.bos
            blocks = arrays.opened(corpus.tokens, taken).size // taken
            if blocks < corpus.held_out_blocks + corpus.train_blocks:
                lines.append(too_little(corpus, blocks))
        elif corpus.files is not None:
            paths: list[Path] = []
            for pattern in corpus.files.paths:
                try:
                    paths += _matching(pattern)
                except InputError as fault:
                    lines.append(str(fault))
            for path in [path for path in paths if _format(path) != ".txt"][:1]:
                next(_read(path, corpus.files.column), None)
    except InputError as fault:
        lines.append(str(fault))
    return lines


def too_little(corpus: Corpus, blocks: int, pretrain: bool = False) -> str:
    """The line that says that the corpus holds so few blocks."""
    more = {
        "wheels": "add corpus.wheels.sources",
        "files": "add corpus.files.paths",
        "dataset": "name a larger corpus.dataset",
        "tokens": "name a longer array in corpus.tokens.path",
    }[corpus.source]
    wanted = corpus.held_out_blocks + corpus.train_blocks
    key, beside = "train_blocks", " beside the pre-training's" if pretrain else ""
    if blocks > wanted and corpus.pretrain_blocks is not None:
        wanted += corpus.pretrain_blocks
        key, beside = "pretrain_blocks", " with those of held_out_blocks and train_blocks"
    return (
        f"corpus.{key}: {wanted} blocks are asked for{beside}, the corpus holds {blocks} of "
        f"{corpus.context} tokens; lower it or {more}"
    )


def files(text: TextFiles) -> list[Path]:
    """All files that the patterns name, each once, sorted; InputError where one names none."""
    return sorted({path for pattern in text.paths for path in _matching(pattern)})


def _matching(pattern: str) -> list[Path]:
    """Files that one pattern names, sorted, all of a known format."""
    expanded = os.path.expanduser(pattern)
    literal, names = Path(expanded), glob.glob(expanded, recursive=True)
    paths = sorted(path for path in map(Path, names) if path.is_file())
    if literal.is_file():  # whatever signs of a pattern its name has
        paths = [literal]
    if not paths:
        what = "no such file; correct the path or pattern (** is any depth of folders)"
        if literal.is_dir():
            what = "is a folder; add a pattern such as /**/*.jsonl"
        raise InputError(f"corpus.files.paths: {pattern}: {what}")
    for path in paths:
        _format(path)
    return paths


def _format(path: Path) -> str:
    """The ending that names a file's format, compression left aside."""
    name = path.name.lower()
    packed = next((ending for ending in COMPRESSIONS if name.endswith(ending)), "")
    ending = Path(name.removesuffix(packed)).suffix
    if ending not in FORMATS or (packed and ending == ".parquet"):
        raise InputError(
            f"corpus.files.paths: {path}: unknown format; name files that end in .txt, .jsonl or "
            ".json, also with .gz or .zst, or in .parquet"
        )
    return ending


def _of_files(text: TextFiles, seed: int) -> Iterator[str]:
    paths = files(text)
    for i in np.random.default_rng((seed, 0)).permutation(len(paths)):
        yield from _read(paths[i], text.column)


def _read(path: Path, column: str) -> Iterator[str]:
    """Documents of one file, in its order; '' where a row has no text."""
    ending = _format(path)
    if ending == ".txt":
        return _plain(path)
    return _parquet(path, column) if ending == ".parquet" else _json_lines(path, column)


def _unpacked(path: Path) -> Iterator[bytes]:
    """A file's bytes in chunks, uncompressed; a cut or damaged file is an InputError."""
    import zstandard

    try:
        if path.name.lower().endswith(".zst"):
            with path.open("rb") as file:
                yield from _zstd_frames(file)
        else:
            opened = gzip.open if path.name.lower().endswith(".gz") else open
            with opened(path, "rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: cannot be read ({one_line(error)}); restore or remove the file")


def _zstd_frames(file: Any) -> Iterator[bytes]:
    # zstandard's own file reader takes a file that ends inside a frame for complete.
    import zstandard

    unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    frame = None
    while chunk := file.read(CHUNK_BYTES):
        while chunk:
            frame = frame or unpacker.decompressobj()
            yield frame.decompress(chunk)
            chunk = frame.unused_data
            if frame.eof:
                frame = None
    if frame is not None:
        raise EOFError("the compressed data ends too early")


def _plain(path: Path) -> Iterator[str]:
    """A text file: one document, or several where it is longer than LONGEST."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    text, read = "", 0
    try:
        for chunk in _unpacked(path):
            read += len(chunk)
            text += decoder.decode(chunk)
            while len(text) > LONGEST:
                line, word = text.rfind("\n", 0, LONGEST) + 1, text.rfind(" ", 1, LONGEST)
                cut = line or max(word, 0) or LONGEST
                yield text[:cut]
                text = text[cut:]
        text += decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        byte = read - len(error.object) + error.start
        raise InputError(
            f"{path}: byte {byte:,} is not UTF-8; convert the file to UTF-8 or remove it"
        ) from None
    yield text


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    parts: list[bytes] = []
    for chunk in chunks:
        first, *rest = chunk.split(b"\n")
        parts.append(first)
        for line in rest:
            yield b"".join(parts)
            parts = [line]
    yield b"".join(parts)


def _json_lines(path: Path, column: str) -> Iterator[str]:
    for number, line in enumerate(_lines(_unpacked(path)), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            decoded = line.decode("utf-8-sig" if number == 1 else "utf-8")
            row = json.loads(decoded)
        except UnicodeDecodeError as error:
            raise InputError(
                f"{where}: byte {error.start:,} is not UTF-8; convert the file to UTF-8"
            ) from None
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{where}: not JSON ({one_line(error)}); mend or remove the line"
            ) from None
        if not isinstance(row, dict):
            raise InputError(f"{where}: not an object; the file must hold one {{…}} a line")
        if column not in row:
            raise InputError(_no_column(where, list(row), column))
        text = _text(row[column], where, f"corpus.files.column: {column}")
        if "\\u" in decoded:
            # An escape can name half a character, which no tokenizer takes.
            text = text.encode("utf-8", "replace").decode("utf-8")
        yield text


def _parquet(path: Path, column: str) -> Iterator[str]:
    """One column of a Parquet file, a row group at a time."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if column not in names:
                raise InputError(_no_column(str(path), names, column))
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(1000, row_groups=[group], columns=[column]):
                    for value in batch.column(0).to_pylist():
                        yield _text(value, str(path), f"corpus.files.column: {column}")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: a document's byte {error.start:,} is not UTF-8; write the file with UTF-8"
        ) from None
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(path, error) from None


def _text(value: Any, where: str, key: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(
            f"{key} holds {type(value).__name__}, not text ({where}); name a column of text"
        )
    return value


def _no_column(where: str, names: list[str], column: str) -> str:
    known = ", ".join(names[:20]) or "none"
    return f"corpus.files.column: {column} is not a column of {where}; it has {known}"


def _of_dataset(wanted: Dataset, seed: int) -> Iterator[str]:
    import datasets

    key = f"corpus.dataset.column: {wanted.column}"
    try:
        # The hub's token, endpoint and offline mode come from the environment (HF_TOKEN, ...).
        source = {"split": wanted.split, "revision": wanted.revision}
        rows = datasets.load_dataset(wanted.name, wanted.config, streaming=True, **source)
        columns = rows.column_names
        if columns is not None and wanted.column not in columns:
            raise InputError(f"{key} is not in {wanted.name}; it has {', '.join(columns)}")
        rows = rows.select_columns([wanted.column])
        # This shuffles and interleaves the shards; documents() mixes the rows, by their length too.
        for row in rows.shuffle(seed=seed, buffer_size=100):
            yield _text(row[wanted.column], wanted.name, key)
    except InputError:
        raise
    except KeyError:
        raise InputError(f"{key} is not in every file of {wanted.name}; name another") from None
    except Exception as error:  # of the many libraries below: HTTP, file systems, formats
        why = one_line(error).rstrip(".")[:300]
        part, mend = next((part, mend) for sign, part, mend in DATASET_FAULTS if sign in why)
        name = getattr(wanted, part) or wanted.name
        raise InputError(f"corpus.dataset.{part}: {name}: {why}; {mend}") from None


# What the libraries say, the key at fault, and the mend: the first that fits.
DATASET_FAULTS = (
    ("Bad split", "split", "name one of these"),
    ("Unknown split", "split", "name one of these"),
    ("BuilderConfig", "config", "name one of these"),
    ("Config name is missing", "config", "name one of these"),
    ("Revision ", "revision", "correct it"),
    ("scripts are no longer supported", "name", "name a dataset that holds data files alone"),
    ("ffline", "name", "unset HF_HUB_OFFLINE and HF_DATASETS_OFFLINE, or use corpus.files"),
    ("Couldn't reach", "name", "connect to the hub (HF_ENDPOINT), or use corpus.files"),
    ("", "name", "correct it, or set HF_TOKEN if it needs access"),
)


def _mixed(texts: Iterable[str], rng: np.random.Generator) -> Iterator[str]:
    """The documents that are not empty, mixed in a buffer of bounded size."""
    held: list[str] = []
    characters = 0
    for text in texts:
        if not text or text.isspace():
            continue
        held.append(text)
        characters += len(text)
        while len(held) > BUFFER_DOCUMENTS or characters > BUFFER_CHARACTERS:
            chosen = int(rng.integers(len(held)))
            held[chosen], held[-1] = held[-1], held[chosen]
            characters -= len(held[-1])
            yield held.pop()
    for i in rng.permutation(len(held)):
        yield held[i]
