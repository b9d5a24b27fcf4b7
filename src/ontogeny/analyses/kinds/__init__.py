"""Kinds of feature, by rule: what a feature's activation on held-out text depends on."""
