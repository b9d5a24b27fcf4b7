"""One sparse dictionary over many sites: an SAE, a transcoder, a cross-layer or a cross-snapshot
crosscoder, by the sites alone."""
