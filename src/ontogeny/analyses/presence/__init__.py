"""Whether decoder norms show presence, tested with latent scaling and linear probes."""
