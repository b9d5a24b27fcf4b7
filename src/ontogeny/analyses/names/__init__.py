"""Names of features by rule, and the range chart, which draws each feature's life as a spindle."""
