"""Which name a feature gets: one that its contexts share and that chance explains least.

The evidence is a feature's *strong* contexts, those of its largest activations, and its *range*,
one context from each quantile of its activations. A name, made from what the rules (rules.py) find
in these contexts, holds if

    agreement    it fits at least `names.agreement` of the strong contexts and of their activation
                 (all of them, if the rule is a loose one),
    lift         this is at least LIFT times its share of the text, and
    chance       the probability that so many fit by chance is at most CHANCE; each further member
                 of a set, as in "if or while", has to reduce it by a factor of FURTHER.

It becomes the feature's name if it also accounts for `names.range` of the activation over the
range. Among such names, the one with the lowest chance over all contexts wins, which is the most
specific one that still covers them. If there is none, the name says that it describes only where
the feature is strongest.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from scipy.special import bdtrc

from ontogeny.analyses.names.rules import RULES

Label = tuple[str, str]  # (rule, what it sees)
LIFT = 5.0
CHANCE, FURTHER = 1e-4, 1000.0
PART = 0.15  # least share of strong contexts for each member of a set, and at least two contexts
TRIED = 5  # most frequent labels of a rule that are tried


@dataclass(frozen=True)
class Evidence:
    """What the rules find in a feature's contexts.

    Attributes
    ----------
    strong : for each context of the largest activations, its labels and the activation. range :
    the same for one context of each quantile.
    """

    strong: Sequence[tuple[set[Label], float]]
    range: Sequence[tuple[set[Label], float]]


@dataclass(frozen=True)
class Name:
    """A name and its evidence.

    Attributes
    ----------
    name : '' if no rule holds. rule : one of RULES. agreement : share of the strong contexts, or of
    their activation if that is less.
    range : share of the activation over the range. share : of the text's positions.
    strongest : whether the name describes only where the feature is strongest.
    """

    name: str = ""
    rule: str = ""
    agreement: float = 0.0
    range: float = 0.0
    share: float = 0.0
    strongest: bool = False


@dataclass(frozen=True)
class _Candidate:
    """Labels of one rule that a name may join.

    surprise, surprise_strong : evidence in nats from all contexts, and from the strong ones.
    """

    rule: str
    labels: tuple[str, ...]
    agreement: float
    range: float
    share: float
    chance: float
    surprise: float
    surprise_strong: float

    def named(self, strongest: bool) -> Name:
        name = RULES[self.rule].name(self.labels, strongest)
        return Name(name, self.rule, self.agreement, self.range, self.share, strongest)


def tail(n: int, k: int, share: float) -> float:
    """The probability that k or more of n contexts have a property with this share of the text."""
    return float(bdtrc(k - 1, n, share))


def surprise(n: int, k: int, share: float) -> float:
    """Log likelihood ratio in nats for k of n contexts: the observed rate against the text's share.

    0 if the rate does not exceed the share.
    """
    rate = k / n
    if rate <= share:
        return 0.0
    without = (n - k) * math.log((1 - rate) / (1 - share)) if k < n else 0.0
    return k * math.log(rate / share) + without


def choose(
    evidence: Evidence, text: Mapping[Label, float], agreement: float, least_range: float
) -> Name:
    """The name that follows from a feature's contexts.

    Parameters
    ----------
    text : share of the text's positions that have each label; none is 0.
    agreement, least_range : `names.agreement`, `names.range`.
    """
    agreed = [
        c
        for c in _candidates(evidence, text)
        if c.agreement >= (1 if RULES[c.rule].loose else agreement)
    ]
    holding = [c for c in agreed if c.agreement >= LIFT * c.share and c.chance <= CHANCE]
    whole = [c for c in holding if c.range >= least_range]
    if whole:
        return max(whole, key=lambda c: c.surprise).named(strongest=False)
    if holding:
        return max(holding, key=lambda c: c.surprise_strong).named(strongest=True)
    for c in agreed:
        if RULES[c.rule].caused:
            return c.named(strongest=c.range < least_range)
    return Name()


def _candidates(evidence: Evidence, text: Mapping[Label, float]) -> Iterable[_Candidate]:
    """The most frequent labels of each rule, and sets of these labels."""
    counts = Counter(label for labels, _ in evidence.strong for label in labels)
    by_rule = defaultdict(list)
    # Ties go to the label that is rarer in the text, then by name, so that the order is unique.
    for label in sorted(counts, key=lambda each: (-counts[each], text[each], each)):
        by_rule[label[0]].append(label)
    least = max(2.0, PART * len(evidence.strong))
    for rule in filter(by_rule.__contains__, RULES):
        labels = by_rule[rule]
        yield from (_candidate([label], evidence, text) for label in labels[:TRIED])
        for size in range(2, RULES[rule].most + 1):
            if len(labels) >= size and counts[labels[size - 1]] >= least:
                yield _candidate(labels[:size], evidence, text)


def _candidate(
    labels: Sequence[Label], evidence: Evidence, text: Mapping[Label, float]
) -> _Candidate:
    share = min(1 - 1e-9, sum(text[label] for label in labels))
    n, m = len(evidence.strong), len(evidence.range)
    k, strong = _held(labels, evidence.strong)
    more, over_range = _held(labels, evidence.range)
    members = len(labels) - 1
    price = members * math.log(FURTHER)
    return _Candidate(
        rule=labels[0][0],
        labels=tuple(label for _, label in labels),
        agreement=min(k / n, strong),
        range=over_range,
        share=share,
        chance=tail(n, k, share) * FURTHER**members,
        surprise=surprise(n + m, k + more, share) - price,
        surprise_strong=surprise(n, k, share) - price,
    )


def _held(
    labels: Sequence[Label], contexts: Sequence[tuple[set[Label], float]]
) -> tuple[int, float]:
    """Number of contexts with one of the labels, and their share of the activation."""
    held = [value for has, value in contexts if not has.isdisjoint(labels)]
    return len(held), sum(held) / (sum(value for _, value in contexts) or 1.0)
