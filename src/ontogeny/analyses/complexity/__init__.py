"""How complex features are, by context span and by a grader, and whether that goes with onset."""
