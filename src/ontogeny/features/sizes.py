"""Sizes shared by the features' stages and the formulas of their cost; imports no torch."""

BASELINE_FEATURES = 4096  # most features that are matched with token means and random rows
BASELINE_TOKENS = 8192  # most frequent tokens with whose means they are matched, at most
ALL_PAIRS = 4096  # largest dictionary for which every pair is considered
NEAREST = 64  # candidates in the other dictionary for each feature of a larger one
MATCHED_AT_A_TIME = 1024  # features whose cosines with the whole other dictionary are in memory
