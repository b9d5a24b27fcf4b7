"""What crosscoders of several sizes and sparsities reach, beside SAEs of single snapshots."""
