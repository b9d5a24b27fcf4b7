"""Peaks in bins: an analysis as someone who adds one would write it."""
