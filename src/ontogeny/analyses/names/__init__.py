"""Names of features by rule, and the range chart: each feature's life as a spindle."""
