"""A reading: one text and what every snapshot computes on it, as tables.

reading = experiment.read("def get(self):")
reading.features              one row per token, site and feature that is active there
reading.tokens                one row per token and snapshot: loss, likeliest next tokens
reading.columns("features")   what the columns mean
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from ontogeny import registry
from ontogeny.corpus.build import Tokens
from ontogeny.corpus.pieces import Vocabulary, read_tokens
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.files import InputError
from ontogeny.reading import passages, tables
from ontogeny.reading.ablation import Source, ablate
from ontogeny.reading.trace import Trace, run
from ontogeny.settings import Settings

TOP = 5  # likeliest next tokens
SHOWN = ["position", "token"]


@dataclass(frozen=True)
class Reading:
    """A text as every snapshot reads it.

    Attributes
    ----------
    trace : the same as arrays. vocabulary : the text of each token.
    described : name and kind of each feature, where known.
    source : what the text was read with.
    """

    trace: Trace
    vocabulary: Vocabulary
    described: pd.DataFrame
    source: Source

    @cached_property
    def texts(self) -> list[str]:
        """(M,) the trace's tokens as strings; joined, they are the text."""
        return self.vocabulary.texts(self.trace.ids)

    @cached_property
    def features(self) -> pd.DataFrame:
        """One row per token, site (step, layer, stream) and feature that is active there."""
        return tables.features(self.trace, self.texts, self.described).drop(columns="passage")

    @cached_property
    def tokens(self) -> pd.DataFrame:
        """One row per token and snapshot: its loss, and the likeliest next tokens."""
        return tables.tokens(self.trace, self.texts, self.vocabulary).drop(columns="passage")

    @cached_property
    def everything(self) -> pd.DataFrame:
        """The rows of `features` with the columns of `tokens`; one row if no feature is active."""
        joined = self.tokens.merge(self.features, how="left", on=[*SHOWN, "step"])
        return joined.astype({"layer": "Int64", "feature": "Int64"})

    def columns(self, table: str) -> dict[str, str]:
        """What the columns of `features`, `tokens` or `everything` mean, with units."""
        return registry.described("reading", list(getattr(self, table).columns))

    def ablate(self, feature: int, step: int, site: int | None = None) -> pd.DataFrame:
        """Losses of each token at a snapshot with and without a feature; see `ablation.ablate`."""
        return ablate(self.source, self.trace, self.texts, feature, step, site)

    def since(self, step: int) -> dict[tuple[int, int], int]:
        """Since which snapshot each feature has been present: (row, feature) of the trace → step.

        At every snapshot from that one to `step`, its contribution to the token is at least
        `analysis.presence` times its largest one. Among several sites the largest counts.
        Features that are below this at `step` itself are left out.
        """
        found, presence = self.trace, self.source.settings.analysis.presence
        steps = sorted({site.snapshot for site in found.outputs if site.snapshot <= step})
        share = found.contribution / np.maximum(found.contribution.max(1, keepdims=True), 1e-30)
        at = np.array([site.snapshot for site in found.outputs])
        there = np.stack([share[:, at == each].max(1) for each in steps], 1) >= presence
        back = np.logical_and.accumulate(there[:, ::-1], 1).sum(1)  # counted back from `step`
        return {
            (int(row), int(feature)): steps[-n]
            for row, feature, n in zip(found.row, found.feature, back, strict=True)
            if n
        }


def read(
    settings: Settings,
    crosscoder: Crosscoder,
    snapshots: Path,
    data: Tokens,
    tokenizer: Path,
    given: Mapping[str, pd.DataFrame],
    text: str,
    top: int = TOP,
) -> Reading:
    """Let every snapshot read a text.

    Parameters
    ----------
    snapshots : folder. given : tables `names` and `kinds` of the crosscoder's features, if they
        have been made. top : number of likeliest next tokens to keep.

    Raises
    ------
    InputError : the text cannot be read (`passages.of_text`), or snapshots are missing.
    """
    passage = passages.of_text(settings, data, tokenizer, text)
    about = crosscoder.about
    steps = sorted({site[0] for site in (*about.inputs, *about.outputs)})
    gone = [step for step in steps if not (snapshots / f"step{step}" / "config.json").exists()]
    if gone:
        which = ", ".join(map(str, gone[:8])) + (" ..." if len(gone) > 8 else "")
        raise InputError(
            f"{snapshots}: the snapshots of steps {which} were removed, but features are read "
            f"from all snapshots; `ontogeny snapshot {snapshots.parent} {gone[0]}` restores one"
        )
    found = run(settings, crosscoder, snapshots, [passage], data.vocabulary, top)
    vocabulary = Vocabulary(read_tokens(tokenizer, data.vocabulary))
    source = Source(settings, crosscoder, snapshots, passage, data.vocabulary)
    return Reading(found, vocabulary, tables.described(given), source)
