"""When attention heads and copying form, and in which order with the kinds of feature."""
