"""Fidelity of crosscoders of several sizes and sparsities, compared with SAEs of one snapshot."""
