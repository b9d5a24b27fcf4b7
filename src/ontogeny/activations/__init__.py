"""Activations, on disk or computed on demand: the same tokens in one order for all snapshots."""
