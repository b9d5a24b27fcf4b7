"""The two phases: a model's loss against the n-gram levels of its corpus (METHOD.md 5)."""
