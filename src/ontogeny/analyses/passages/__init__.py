"""Stored passages that every snapshot reads: losses, predictions and features for each token."""
