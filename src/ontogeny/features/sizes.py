"""Sizes that the features' stages and the formulas of their cost share, without torch."""

BASELINE_FEATURES = 4096  # features that are matched with token means and random rows, at most
BASELINE_TOKENS = 8192  # tokens, the most frequent ones, whose means they are matched with
