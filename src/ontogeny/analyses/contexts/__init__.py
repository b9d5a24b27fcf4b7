"""What each feature looks like: the contexts that it is active in, and its logit lens."""
