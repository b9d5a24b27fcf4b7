"""Tokens and snapshots trained here that experiments share: a folder of items, `KEY/NAME`.

An item is a file or a folder; the digests of its files are in `KEY/NAME.digests`. A key is a digest
of everything that the item is made from: settings, code, and the content of the input files, but
not their names. Items are copied in and out atomically, and verified when they are copied out.

Snakemake's own cache between workflows is not used. Its keys leave out wildcards, so that the
snapshots of two steps would be the same item, and they include all parameters, one of which is the
location of an experiment's folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from ontogeny import provenance
from ontogeny.corpus import text
from ontogeny.corpus.wheels import needed, pins, requirements_file
from ontogeny.files import InputError, digest_file, digest_value, whole, write_json
from ontogeny.settings import Analysis, Corpus, Pretrain


def _files(item: Path) -> dict[str, str]:
    """Digest of each file of an item, by its name in it; '' names the item itself."""
    if item.is_file():
        return {"": digest_file(item)}
    return {
        str(path.relative_to(item)): digest_file(path)
        for path in sorted(item.rglob("*"))
        if path.is_file()
    }


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


def take(cache: Path, key: str, wanted: Iterable[Path]) -> bool:
    """Copy the wanted files and folders that the cache has to their places, by their names.

    Existing ones are not replaced. Returns whether all of them exist now.

    Raises
    ------
    InputError : an item of the cache is damaged.
    """
    complete = True
    for place in wanted:
        item = cache / key / place.name
        digests = item.with_name(f"{place.name}.digests")
        if place.exists():
            continue
        if not digests.exists():
            complete = False
            continue
        with whole(place) as draft:
            _copy(item, draft)
            if _files(draft) != json.loads(digests.read_text(encoding="utf-8")):
                raise InputError(f"{item}: damaged; delete {item.parent} to make it again")
    return complete


def give(cache: Path, key: str, made: Iterable[Path]) -> None:
    """Copy files and folders into the cache unless it has them already."""
    for place in made:
        item = cache / key / place.name
        digests = item.with_name(f"{place.name}.digests")
        if not digests.exists() and place.exists():
            with whole(item) as draft:
                _copy(place, draft)
            write_json(digests, _files(item))


def corpus_key(c: Corpus, own: Path | None, pretrain: bool) -> str | None:
    """Cache key for the tokens and tokenizer of the corpus stage; None if content is not fixed.

    That is the case for a dataset on a hub whose revision is not a commit: it may change.

    Parameters
    ----------
    own : folder of the model's own tokenizer.
    """
    given = c.model_dump(mode="json", exclude={"wheels": {"requirements"}, "files": {"paths"},
                                               "tokens": {"path"}})  # fmt: skip
    read: list[str] = []
    if c.dataset is not None:
        revision = c.dataset.revision or ""
        if len(revision) != 40 or set(revision) - set("0123456789abcdef"):
            return None
    if c.wheels is not None:
        pinned = pins(requirements_file(c.wheels), needed(c.wheels))
        read.append(digest_value(sorted(pinned.items())))
    if c.files is not None:
        read += [digest_file(path) for path in text.files(c.files)]
    if c.tokens is not None:
        read.append(digest_file(c.tokens.path))
    tokenizer = {} if own is None else _files(own)
    code = provenance.code_digest("ontogeny.corpus.build")
    return f"corpus-{digest_value([given, read, tokenizer, code, pretrain])}"


def pretrain_key(p: Pretrain, a: Analysis, tokens: str) -> str:
    """Cache key for a model's training states at any of its steps.

    Parameters
    ----------
    tokens : digest of the content of tokens.h5.
    """
    code = provenance.code_digest("ontogeny.snapshots.pretrain")
    measured = [a.copying_blocks, a.seed]
    given = p.model_dump(mode="json", exclude={"threads"})
    return f"pretrain-{digest_value([given, measured, tokens, code])}"
