"""Text that anyone brings, read by every snapshot: features, losses and predictions by token."""
