"""The user's own documents: text files of several formats, and datasets of the Hugging Face hub.

Both are read as streams and mixed in a buffer of bounded size, so that a corpus of any size fits in
memory.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ontogeny.corpus import arrays
from ontogeny.corpus.formats import kind_of, read, text_of
from ontogeny.files import InputError, one_line
from ontogeny.settings import Corpus, Dataset, TextFiles

BUFFER_DOCUMENTS = 10_000
BUFFER_CHARACTERS = 1 << 26
LOOK = 1 << 25  # characters of all files together that are read for early checks
PLAIN = (".txt", ".jsonl", ".json")  # files that hold at most one token per byte
MARKS = 4  # special tokens that a tokenizer puts around a document, at most


def documents(corpus: Corpus) -> Iterator[str]:
    """Documents of `corpus.files` or `corpus.dataset`, in an order set by the seed.

    Files (or the dataset's shards) come in a shuffled order; their documents are mixed in a buffer
    of 10,000 documents or 64 M characters, whichever is full first. Empty documents are left out.
    Raises InputError with the file and line, or the key, if something cannot be found or read.
    """
    if corpus.files is not None:
        texts = _of_files(corpus.files, corpus.seed)
    elif corpus.dataset is not None:
        texts = _of_dataset(corpus.dataset, corpus.seed)
    else:
        raise ValueError(f"corpus.{corpus.source} is not read as a stream of documents")
    return _mixed(texts, np.random.default_rng((corpus.seed, 1)))


def faults(corpus: Corpus) -> list[str]:
    """Faults of the text that can be found before any job starts, one per line.

    Files are looked up and read, each up to its first document and all together up to LOOK
    characters; an array's type, shape and length are checked. Datasets on the hub are not checked,
    since that needs the network.
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
            lines += _unreadable(paths, corpus.files.column, "corpus.files.column")
        elif corpus.dataset is not None and (paths := saved_dataset(corpus.dataset)):
            lines += _unreadable(paths, corpus.dataset.column, "corpus.dataset.column")
    except InputError as fault:
        lines.append(str(fault))
    return lines


def _unreadable(paths: list[Path], column: str, key: str) -> list[str]:
    """A line for each file that cannot be read up to the first document, or one for all of them."""
    lines: list[str] = []
    some = False
    for path in dict.fromkeys(paths):
        held = 0
        try:
            for document in read(path, column, key):
                held += len(document)
                some = some or not (not document or document.isspace())
                if held > LOOK // len(paths):
                    break
        except InputError as fault:
            named = f"{key}: {column}"  # a wrong column is reported once
            if not (str(fault).startswith(named) and any(line.startswith(named) for line in lines)):
                lines.append(str(fault))
    if paths and not (some or lines):
        lines.append(
            f"{paths[0]}: neither this file nor any other has text; name files that have some"
        )
    return lines


def empty(corpus: Corpus) -> list[Path]:
    """The text files that are empty; none if they cannot be looked up."""
    try:
        paths = files(corpus.files) if corpus.files is not None else []
    except InputError:
        return []
    return [path for path in paths if path.stat().st_size == 0]


def short(corpus: Corpus) -> list[str]:
    """A line if files that are not packed are too small for the blocks, whatever the tokenizer.

    A text has at most one token for each byte and MARKS around it; JSON adds more bytes than that.
    """
    try:
        paths = files(corpus.files) if corpus.files is not None else []
    except InputError:
        return []  # a fault that `faults` names
    if not paths or any(path.suffix not in PLAIN for path in paths):
        return []
    most = sum(path.stat().st_size + MARKS for path in paths) // (corpus.context - corpus.bos)
    enough = most >= corpus.held_out_blocks + corpus.train_blocks
    return [] if enough else [too_little(corpus, most, bound="at most")]


def too_little(corpus: Corpus, blocks: int, pretrain: bool = False, bound: str = "only") -> str:
    """A line that says how few blocks the corpus has; `bound` is only or at most."""
    more = {
        "wheels": "add corpus.wheels.sources",
        "files": "add corpus.files.paths",
        "dataset": "name a larger corpus.dataset",
        "tokens": "name a longer array in corpus.tokens.path",
    }[corpus.source]
    wanted = corpus.held_out_blocks + corpus.train_blocks
    key, beside = "train_blocks", " in addition to those for pre-training" if pretrain else ""
    if blocks > wanted and corpus.pretrain_blocks is not None:
        wanted += corpus.pretrain_blocks
        key, beside = "pretrain_blocks", " together with those of held_out_blocks and train_blocks"
    return (
        f"corpus.{key}: {wanted} blocks are needed{beside}, but the corpus has {bound} "
        f"{blocks} blocks of {corpus.context} tokens; lower it or {more}"
    )


def files(text: TextFiles) -> list[Path]:
    """All files that match the patterns, each once, sorted; InputError if a pattern has none."""
    return sorted({path for pattern in text.paths for path in _matching(pattern)})


def _matching(pattern: str) -> list[Path]:
    """Files that match a pattern, sorted, all of a known format."""
    literal, names = Path(pattern), glob.glob(pattern, recursive=True)
    paths = sorted(path for path in map(Path, names) if path.is_file())
    if literal.is_file():  # even if its name has a pattern's special characters
        paths = [literal]
    if not paths and literal.is_dir():
        paths = saved(literal, "corpus.files.paths")
    if not paths:
        what = "no such file; correct the path or pattern (** stands for any depth of folders)"
        if literal.is_dir():
            what = "is a folder; add a pattern such as /**/*.jsonl"
        raise InputError(f"corpus.files.paths: {pattern}: {what}")
    for path in paths:
        kind_of(path)
    return paths


def saved(folder: Path, key: str, split: str | None = None) -> list[Path]:
    """The Arrow files of a folder that datasets' `save_to_disk` wrote; [] for any other folder.

    Parameters
    ----------
    key : the setting that names the folder. split : the one to take if there are several.

    Raises
    ------
    InputError : it has several splits and `split` names none of them, or it is damaged.
    """
    try:
        if (folder / "dataset_dict.json").is_file():
            splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))
            names = list(splits["splits"])
            if split is None and len(names) > 1:
                raise InputError(
                    f"{key}: {folder} has the splits {', '.join(names)}; name one of them, as in "
                    f"{folder / names[0]}"
                )
            if split is not None and split not in names:
                raise InputError(
                    f"corpus.dataset.split: {folder} has no {split}; it has {', '.join(names)}"
                )
            return saved(folder / (split or names[0]), key)
        if not (folder / "state.json").is_file():
            return []
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        paths = [folder / each["filename"] for each in state["_data_files"]]
    except (OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{key}: {folder}: not a complete folder of save_to_disk ({one_line(error)}); save it "
            "again"
        ) from None
    absent = [path.name for path in paths if not path.is_file()]
    if absent:
        raise InputError(f"{key}: {folder} lacks {absent[0]}; save the dataset again")
    return paths


def saved_dataset(dataset: Dataset) -> list[Path]:
    """The files of a dataset in a local folder that `save_to_disk` wrote; [] for any other dataset.

    Raises InputError as `saved`, or if its name is a path that does not exist.
    """
    folder = Path(dataset.name)
    if not folder.is_dir():
        if dataset.name.startswith((".", "/")):
            raise InputError(f"corpus.dataset.name: {dataset.name}: no such folder; correct it")
        return []
    return saved(folder, "corpus.dataset.name", dataset.split)


def _of_files(text: TextFiles, seed: int) -> Iterator[str]:
    paths = files(text)
    for i in np.random.default_rng((seed, 0)).permutation(len(paths)):
        yield from read(paths[i], text.column)


def _of_dataset(wanted: Dataset, seed: int) -> Iterator[str]:
    local = saved_dataset(wanted)
    if local:
        for i in np.random.default_rng((seed, 0)).permutation(len(local)):
            yield from read(local[i], wanted.column, "corpus.dataset.column")
        return
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
        # This shuffles and interleaves the shards; documents() mixes the rows, also by their
        # length.
        for row in rows.shuffle(seed=seed, buffer_size=100):
            yield text_of(row[wanted.column], wanted.name, key)
    except InputError:
        raise
    except KeyError:
        raise InputError(f"{key} is not in every file of {wanted.name}; name another") from None
    except Exception as error:  # from the many libraries below: HTTP, file systems, formats
        why = one_line(error).rstrip(".")[:300]
        part, mend = next((part, mend) for sign, part, mend in DATASET_FAULTS if sign in why)
        name = getattr(wanted, part) or wanted.name
        raise InputError(f"corpus.dataset.{part}: {name}: {why}; {mend}") from None


# Messages of the libraries, the wrong key, and the correction; the first that matches is used.
DATASET_FAULTS = (
    ("Bad split", "split", "name one of these"),
    ("Unknown split", "split", "name one of these"),
    ("BuilderConfig", "config", "name one of these"),
    ("Config name is missing", "config", "name one of these"),
    ("Revision ", "revision", "correct it"),
    ("scripts are no longer supported", "name", "name a dataset that consists of data files only"),
    ("ffline", "name", "unset HF_HUB_OFFLINE and HF_DATASETS_OFFLINE, or use corpus.files"),
    ("Couldn't reach", "name", "connect to the hub (HF_ENDPOINT), or use corpus.files"),
    ("", "name", "correct it, or set HF_TOKEN if it needs access"),
)


def _mixed(texts: Iterable[str], rng: np.random.Generator) -> Iterator[str]:
    """The non-empty documents, mixed in a buffer of bounded size."""
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
