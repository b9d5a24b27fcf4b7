"""Unigram and bigram models of a corpus, whose losses are levels for the model's loss."""

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

    @property
    def shared(self) -> np.ndarray:
        """Weight w(a) = m / (c(a) + m) of p₁ in p₂(·|a), (V,); observed pairs have the rest."""
        return self.strength / (self.totals + self.strength)

    def own(self, previous: np.ndarray) -> csr_array:
        """p₂(·|a) − w(a)·p₁ for each a in `previous` (P,), sparse (P, V)."""
        rows = self.counts[previous]
        each = np.repeat(self.totals[previous] + self.strength, np.diff(rows.indptr))
        return csr_array((rows.data / each, rows.indices, rows.indptr), rows.shape)

    def negative_entropies(self) -> tuple[float, np.ndarray]:
        """Σ_b p₁(b) log p₁(b), and Σ_b p₂(b|a) log p₂(b|a) for every a, (V,); in nats."""
        p1, w = self.unigram, self.shared
        own = self.own(np.arange(len(p1)))
        a = np.repeat(np.arange(len(p1)), np.diff(own.indptr))
        smoothed = w[a] * p1[own.indices]
        seen = smoothed + own.data
        change = seen * np.log(seen) - smoothed * np.log(smoothed)
        of_unigram = float(p1 @ np.log(p1))
        changes = np.bincount(a, change, len(p1))
        return of_unigram, w * (of_unigram + np.log(w)) + changes

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
    of the blocks with counts from the others. The final counts use all blocks.

    Parameters
    ----------
    blocks : (blocks, context) token ids.
    """
    cut = max(1, len(blocks) - max(1, len(blocks) // 10))
    first, rest = _count(blocks[:cut], vocabulary), _count(blocks[cut:], vocabulary)
    scores = []
    for strength in STRENGTHS:
        trial = _smoothed(*first, strength)
        scores.append(trial.cross_entropies(blocks[cut:] if cut < len(blocks) else blocks)[1])
    strength = STRENGTHS[int(np.argmin(scores))]
    return _smoothed(first[0] + rest[0], first[1] + rest[1], strength)


def _count(blocks: np.ndarray, vocabulary: int) -> tuple[np.ndarray, csr_array]:
    """How often each token occurs, (V,), and each pair, sparse (V, V)."""
    single = np.bincount(blocks.ravel(), minlength=vocabulary)
    pairs = blocks[:, :-1].astype(np.int64) * vocabulary + blocks[:, 1:]
    there, times = np.unique(pairs, return_counts=True)
    shape = (vocabulary, vocabulary)
    return single, csr_array((times * 1.0, np.divmod(there, vocabulary)), shape=shape)


def _smoothed(single: np.ndarray, pairs: csr_array, strength: float) -> Ngrams:
    """The models that belong to some counts."""
    unigram = (single + 1.0) / (single + 1.0).sum()
    return Ngrams(unigram, pairs, np.asarray(pairs.sum(1)), strength)
