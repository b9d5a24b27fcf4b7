"""What each feature looks like: the contexts in which it is active, and its logit lens."""
