"""Sizes that the features' stages and the formulas of their cost share, without torch."""

BASELINE_FEATURES = 4096  # features that are matched with token means and random rows, at most
BASELINE_TOKENS = 8192  # tokens, the most frequent ones, whose means they are matched with
ALL_PAIRS = 4096  # features of a dictionary up to which every pair is matched
NEAREST = 64  # of the other dictionary, that a feature is matched with, where there are more
MATCHED_AT_A_TIME = 1024  # features whose cosines with all of the other dictionary are there
