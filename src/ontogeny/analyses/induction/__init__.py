"""When attention heads, copying and kinds of feature form, and in which order."""
