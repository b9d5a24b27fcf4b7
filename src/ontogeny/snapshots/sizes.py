"""Sizes of what pre-training keeps that cost formulas share with the stage."""

from __future__ import annotations

SAVE_EVERY = 100  # steps between training states, besides those at snapshots
