"""Histories of features from their decoders: strength, peak, onset, lifetime and direction."""
