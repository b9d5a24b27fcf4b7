"""What each feature's decoder says of its life: strength, peak, onset, lifetime, direction."""
