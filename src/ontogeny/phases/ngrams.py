"""Unigram and bigram models of a corpus: the levels that the loss is held against."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

STRENGTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


@dataclass
class Ngrams:
    """Smoothed unigram and bigram distributions.

    p₁(b) = (c(b) + 1) / Σ(c + 1);   p₂(b|a) = (c(a, b) + m·p₁(b)) / (c(a) + m)

    Attributes
    ----------
    unigram : (V,). counts : (V, V) sparse, c(a, b). totals : (V,) c(a). strength : m.
    """

    unigram: np.ndarray
    counts: csr_array
    totals: np.ndarray
    strength: float

    def bigram(self, previous: np.ndarray) -> np.ndarray:
        """p₂(·|a) for each a in `previous` (P,): (P, V)."""
        rows = self.counts[previous].toarray().astype(np.float64)
        rows += self.strength * self.unigram
        rows /= (self.totals[previous] + self.strength)[:, None]
        return rows

    def cross_entropies(self, blocks: np.ndarray) -> tuple[float, float]:
        """Unigram and bigram cross-entropy in nats of each block's second and later tokens."""
        a, b = blocks[:, :-1].ravel().astype(np.int64), blocks[:, 1:].ravel().astype(np.int64)
        return self._score(a, b)

    def _score(self, a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
        seen = np.asarray(self.counts[a, b]).ravel().astype(np.float64)
        p1 = self.unigram[b]
        p2 = (seen + self.strength * p1) / (self.totals[a] + self.strength)
        return float(-np.log(p1).mean()), float(-np.log(p2).mean())


def fit(blocks: np.ndarray, vocabulary: int) -> Ngrams:
    """Estimate both models on training text.

    The bigram's smoothing strength m is the one of STRENGTHS that scores best on the last tenth
    of the blocks when the counts come from the rest; then all blocks are counted.

    Parameters
    ----------
    blocks : (blocks, context) token ids.
    """
    cut = max(1, len(blocks) - max(1, len(blocks) // 10))
    trial = _count(blocks[:cut], vocabulary)
    scores = []
    for strength in STRENGTHS:
        trial.strength = strength
        scores.append(trial.cross_entropies(blocks[cut:] if cut < len(blocks) else blocks)[1])
    whole = _count(blocks, vocabulary)
    whole.strength = STRENGTHS[int(np.argmin(scores))]
    return whole


def _count(blocks: np.ndarray, vocabulary: int) -> Ngrams:
    """Counts of both models, with a smoothing strength yet to be chosen."""
    flat = np.bincount(blocks.ravel().astype(np.int64), minlength=vocabulary) + 1.0
    a, b = blocks[:, :-1].ravel().astype(np.int64), blocks[:, 1:].ravel().astype(np.int64)
    counts = csr_array((np.ones(len(a)), (a, b)), shape=(vocabulary, vocabulary))
    counts.sum_duplicates()
    return Ngrams(flat / flat.sum(), counts, np.bincount(a, minlength=vocabulary) * 1.0, 1.0)
