"""Documents of a file: plain text, JSON, Parquet or Arrow, compressed or not, read as streams."""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ontogeny.files import InputError, one_line

LONGEST = 1 << 22  # characters: a longer .txt becomes several documents, cut at line ends
CHUNK_BYTES = 1 << 17
TABLES = (".parquet", ".arrow", ".feather")
FORMATS = (".txt", ".jsonl", ".json", *TABLES)
COMPRESSIONS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": None}
WIDE = {  # byte-order marks of other encodings
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def kind_of(path: Path) -> str:
    """The ending that names a file's format, ignoring compression; InputError for any other."""
    name = path.name.lower()
    packed = next((ending for ending in COMPRESSIONS if name.endswith(ending)), "")
    ending = Path(name.removesuffix(packed)).suffix
    if ending not in FORMATS or (packed and ending in TABLES):
        raise InputError(
            f"corpus.files.paths: {path}: unknown format; name files that end in .txt, .jsonl or "
            ".json, also with .gz, .bz2, .xz or .zst, or in .parquet, .arrow or .feather"
        )
    return ending


def read(path: Path, column: str, key: str = "corpus.files.column") -> Iterator[str]:
    """Documents of one file, in order; '' for a row without text.

    Parameters
    ----------
    key : the setting that names the column.

    Raises
    ------
    InputError : the file is damaged, not UTF-8, or lacks the column; gives the file and, for text,
        the line.
    """
    ending = kind_of(path)
    if ending == ".txt":
        return _plain(path)
    if ending == ".json" and not _is_json_lines(path):
        return _json_whole(path, column, key)
    readers = {".parquet": _parquet, ".arrow": _arrow, ".feather": _arrow}
    return readers.get(ending, _json_lines)(path, column, key)


def _unpacked(path: Path) -> Iterator[bytes]:
    """A file's bytes in chunks, uncompressed; InputError if it is truncated or damaged."""
    import zstandard

    ending = path.suffix.lower()
    try:
        if ending == ".zst":
            with path.open("rb") as file:
                yield from _zstd_frames(file)
        else:
            with (COMPRESSIONS.get(ending) or open)(path, "rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        raise _unreadable(path, error) from None


def _text_bytes(path: Path) -> Iterator[bytes]:
    """The same for text; InputError if it has another encoding, or NUL bytes."""
    line = 1
    for number, chunk in enumerate(_unpacked(path)):
        wide = next((WIDE[mark] for mark in WIDE if chunk.startswith(mark)), "")
        if wide and not number:
            raise InputError(
                f"{path}, line 1: {wide}, not UTF-8; convert the file, as with `iconv -f {wide} -t "
                "UTF-8`"
            )
        if b"\0" in chunk:
            line += chunk[: chunk.index(b"\0")].count(b"\n")
            raise InputError(
                f"{path}, line {line}: a NUL byte, which is not allowed in text; restore the "
                "file, or convert it if it is UTF-16"
            )
        line += chunk.count(b"\n")
        yield chunk


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: cannot be read ({one_line(error)}); restore it, or leave it out")


def _zstd_frames(file: Any) -> Iterator[bytes]:
    # zstandard's own file reader accepts a file that ends inside a frame as complete.
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
    """A text file as one document, or as several if it is longer than LONGEST."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    text, taken, lines = "", 0, 1
    try:
        for chunk in _text_bytes(path):
            taken, lines = taken + len(chunk), lines + chunk.count(b"\n")
            text += decoder.decode(chunk)
            while len(text) > LONGEST:
                line, word = text.rfind("\n", 0, LONGEST) + 1, text.rfind(" ", 1, LONGEST)
                cut = line or max(word, 0) or LONGEST
                yield text[:cut]
                text = text[cut:]
        text += decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        byte = taken - len(error.object) + error.start
        line = lines - error.object[error.start :].count(b"\n")
        raise InputError(
            f"{path}, line {line}: byte {byte:,} is not UTF-8; convert the file to UTF-8, or leave "
            "it out"
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


def _json_lines(path: Path, column: str, key: str) -> Iterator[str]:
    for number, line in enumerate(_lines(_text_bytes(path)), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            decoded = line.decode("utf-8-sig")  # joined files have several byte-order marks
            row = json.loads(decoded)
        except UnicodeDecodeError as error:
            raise InputError(
                f"{where}: byte {error.start:,} is not UTF-8; convert the file to UTF-8"
            ) from None
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{where}: not JSON ({one_line(error)}); correct or remove the line"
            ) from None
        yield _of_row(row, column, key, where, "\\u" in decoded)


def _of_row(row: Any, column: str, key: str, where: str, escaped: bool) -> str:
    """The text of a row that is an object."""
    if not isinstance(row, dict):
        raise InputError(f"{where}: not an object; the file must hold one {{…}} a line")
    if column not in row:
        raise InputError(_no_column(where, list(row), column, key))
    text = text_of(row[column], where, f"{key}: {column}")
    # An escape can name half a surrogate pair, which no tokenizer accepts.
    return text.encode("utf-8", "replace").decode("utf-8") if escaped else text


def _is_json_lines(path: Path) -> bool:
    """Whether the first line is a complete object; if not, the file is one array or object."""
    first = next((line for line in _lines(_text_bytes(path)) if line.strip()), b"{}")
    try:
        return isinstance(json.loads(first.decode("utf-8-sig")), dict)
    except (ValueError, RecursionError):
        return False


def _json_whole(path: Path, column: str, key: str) -> Iterator[str]:
    """An array of objects or texts, or an object whose column is a list, read as a whole."""
    try:
        decoded = b"".join(_text_bytes(path)).decode("utf-8-sig")
        given = json.loads(decoded)
    except UnicodeDecodeError as error:
        line = 1 + error.object[: error.start].count(b"\n")
        raise InputError(
            f"{path}, line {line}: byte {error.start:,} is not UTF-8; convert the file to UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}, line {error.lineno}: not JSON ({error.msg}); correct or restore the file"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({one_line(error)}); restore the file") from None
    if isinstance(given, dict):
        lists = isinstance(given.get(column), list)
        given = given[column] if lists else [given]
    if not isinstance(given, list):
        raise InputError(f"{path}: not an array of objects; write [{{…}}, …], or one {{…}} a line")
    for number, row in enumerate(given, 1):
        row = {column: row} if isinstance(row, str) else row
        yield _of_row(row, column, key, f"{path}, item {number}", "\\u" in decoded)


def _parquet(path: Path, column: str, key: str) -> Iterator[str]:
    """One column of a Parquet file, read by row group."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if column not in names:
                raise InputError(_no_column(str(path), names, column, key))
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(1000, row_groups=[group], columns=[column]):
                    yield from _of_batch(batch.column(0), path, column, key)
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(path, error) from None


def _arrow(path: Path, column: str, key: str) -> Iterator[str]:
    """One column of an Arrow file, or of an Arrow stream as written by `datasets`."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as source:
            try:
                file = pyarrow.ipc.open_file(source)
                batches = (file.get_batch(i) for i in range(file.num_record_batches))
            except pyarrow.ArrowInvalid:
                source.seek(0)
                file = batches = pyarrow.ipc.open_stream(source)
            if column not in file.schema.names:
                raise InputError(_no_column(str(path), file.schema.names, column, key))
            for batch in batches:
                yield from _of_batch(batch.column(column), path, column, key)
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(path, error) from None


def _of_batch(values: Any, path: Path, column: str, key: str) -> Iterator[str]:
    try:
        for value in values.to_pylist():
            yield text_of(value, str(path), f"{key}: {column}")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: byte {error.start:,} of a document is not UTF-8; write the file in UTF-8"
        ) from None


def text_of(value: Any, where: str, key: str) -> str:
    """A row's text: '' for None, bytes decoded as UTF-8; InputError for anything else."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if not isinstance(value, str):
        raise InputError(
            f"{key} holds {type(value).__name__}, not text ({where}); name a column of text"
        )
    return value


def _no_column(where: str, names: list[str], column: str, key: str) -> str:
    known = ", ".join(names[:20]) or "none"
    return f"{key}: {column} is not a column of {where}; it has {known}"
