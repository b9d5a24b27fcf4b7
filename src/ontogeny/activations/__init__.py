"""Activations on disk or computed when wanted: the same tokens in one order for all snapshots."""
