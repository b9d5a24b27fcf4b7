"""Whether decoder norms mean presence: latent scaling and linear probes beside them."""
