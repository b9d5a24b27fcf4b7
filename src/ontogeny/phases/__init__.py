"""The two phases: a model's loss against the n-gram levels of its corpus (docs/method.md 5)."""
