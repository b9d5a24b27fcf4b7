"""Stored passages, read by every snapshot: losses, predictions and features by token."""
