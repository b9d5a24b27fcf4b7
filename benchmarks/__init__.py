"""Measurements of speed, memory and quality, against peers and bounds in the same run."""
