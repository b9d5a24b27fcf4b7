"""Checkpoints of one language model, in Hugging Face format, ordered by training step."""
