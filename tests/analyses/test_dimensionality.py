"""Dimensionality of features, against its formula and known geometries."""

from __future__ import annotations

import numpy as np
import pytest

from ontogeny.analyses.dimensionality import measure


def test_dimensionality_is_the_direct_formula():
    sizes = np.geomspace(0.01, 2, 30)[:, None, None]
    decoders = np.random.default_rng(0).normal(size=(30, 3, 8)) * sizes
    decoders[4, 1] = 0
    D = measure.of_decoders(decoders.swapaxes(0, 1))
    for t in range(3):
        W = decoders[:, t]
        for i in range(30):
            norm = np.linalg.norm(W[i])
            direct = norm**2 / ((W @ W[i] / norm) ** 2).sum() if norm else 0.0
            assert D[i, t] == pytest.approx(direct, rel=1e-10)
    assert (D.sum(0) <= 8 + 1e-9).all()


def test_dimensionality_of_known_geometries():
    corners = np.stack([[np.cos(a), np.sin(a)] for a in 2 * np.pi * np.arange(5) / 5])
    for W, each in ((np.eye(4), 1), (np.r_[np.eye(3), -np.eye(3)], 1 / 2), (corners, 2 / 5)):
        assert measure.of_decoders([W]) == pytest.approx(each)


def test_classes_of_dimensionality_overlap_in_no_feature():
    decoders = np.random.default_rng(0).normal(size=(40, 6, 24))
    decoders[:10, :2] *= 0.01
    decoders[5:20, -1] *= 0.01
    of_class = measure.by_class(np.linalg.norm(decoders, axis=2), 0.5, 0.35)
    assert (sum(of_class.values()) == 1).all()
    assert of_class["transient"][5:20].all()
    assert of_class["emergent"][:5].all()
