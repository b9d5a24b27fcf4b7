"""Names by rule: what a feature's contexts share and the text rarely has (docs/method.md 6).

rules.py has the rules, and choose.py decides which name wins. No language model is used as a judge.
A name describes what the contexts look like, not what the feature does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from ontogeny.analyses.names.choose import Evidence, Label, Name, choose
from ontogeny.analyses.names.rules import labels_of
from ontogeny.analyses.names.settings import Names
from ontogeny.analyses.names.text import Context
from ontogeny.corpus.build import Tokens
from ontogeny.corpus.pieces import visible
from ontogeny.features import contexts as stored
from ontogeny.files import read_table, write_table
from ontogeny.settings import Settings

POSITIONS = 1 << 14  # most positions, evenly spaced, from which shares of the text are estimated
BLOCKS = 1 << 10  # blocks whose tokens are in memory at a time
STRONG = 0.5  # least share of the largest activation for a strong context


class Text:
    """The held-out text, one position at a time.

    Parameters
    ----------
    data : the corpus. store : contexts, from which the text of each token is taken.
    """

    def __init__(self, data: Tokens, store: stored.Store) -> None:
        self.first, self.last = data.splits["held_out"]
        self.width = data.context

        shown = lru_cache(maxsize=None)(visible)  # cached by token, not by position

        @lru_cache(maxsize=BLOCKS)
        def block(number: int) -> tuple[str, ...]:
            return tuple(map(shown, store.vocabulary.texts(data.take(np.array([number]))[0])))

        self._block: Callable[[int], tuple[str, ...]] = block

    def labels(self, block: int, offset: int, copies: bool) -> set[Label]:
        """The labels that the rules find at a position."""
        return labels_of(Context(self._block(block), offset), copies)

    def shares(self, copies: bool) -> dict[Label, float]:
        """The share of the text that has each label, estimated from at most POSITIONS positions."""
        size = (self.last - self.first) * self.width
        counts: Counter[Label] = Counter()
        chosen = np.unique(np.linspace(0, size - 1, min(size, POSITIONS)).astype(np.int64))
        for block, offset in zip(*np.divmod(chosen, self.width), strict=True):
            counts.update(self.labels(self.first + int(block), int(offset), copies))
        return _Shares(counts, len(chosen))


class _Shares(dict[Label, float]):
    """Shares with one additional position that has every label, so that no share is 0."""

    def __init__(self, counts: Counter[Label], size: int) -> None:
        super().__init__({label: (n + 1) / (size + 1) for label, n in counts.items()})
        self._least = 1 / (size + 1)

    def __missing__(self, label: Label) -> float:
        return self._least


def strong(contexts: list[stored.Context], least: int) -> list[stored.Context]:
    """The contexts with at least STRONG of the largest activation, or the `least` strongest."""
    bar = STRONG * contexts[0].value
    return contexts[: max(least, sum(context.value >= bar for context in contexts))]


def named(
    feature: stored.Feature,
    text: Text,
    shares: dict[Label, float],
    section: Names,
    copies: bool,
) -> Name:
    """The name of a feature.

    Parameters
    ----------
    shares : share of the text's positions that have each label.
    copies : whether the feature depends on earlier copies.
    """
    if len(feature.top) < section.contexts:
        return Name()

    def labels(context: stored.Context) -> set[Label]:
        return text.labels(context.block, context.offset, copies)

    evidence = Evidence(
        [(labels(context), context.value) for context in strong(feature.top, section.contexts)],
        [(labels(context), context.value) for context in feature.quantiles],
    )
    return choose(evidence, shares, section.agreement, section.range)


def names(
    features: Iterable[stored.Feature], text: Text, section: Names, copying: set[int]
) -> pd.DataFrame:
    """feature and the fields of `Name`, one row per feature."""
    shares = text.shares(copies=bool(copying))
    rows = [
        {"feature": feature.feature}
        | asdict(named(feature, text, shares, section, feature.feature in copying))
        for feature in features
    ]
    return pd.DataFrame(rows)


def measure(
    settings: Settings, contexts: Path, tokens: Path, kinds: Path | None, named: Path
) -> None:
    """Name every living feature whose contexts allow it.

    Parameters
    ----------
    contexts : HDF5 of the analysis `contexts`. tokens : tokens.h5.
    kinds : Parquet; feature, kind; None if kinds are unknown.
    named : Parquet to write; feature, name ('' if no rule holds), rule, agreement, range, share,
        strongest.
    """
    store = stored.Store(contexts)
    copying: set[int] = set()
    if kinds is not None:
        known = read_table(kinds)
        copying = set(known.loc[known["kind"] == "induction", "feature"])
    features = (store.feature(int(number)) for number in store.features)
    text = Text(Tokens(tokens), store)
    write_table(named, names(features, text, settings.section(Names), copying))
