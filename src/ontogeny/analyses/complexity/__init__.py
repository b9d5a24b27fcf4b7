"""How complex features are, by context span or a grader, and whether complex ones appear later."""
