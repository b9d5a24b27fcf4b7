"""Sparse dictionaries over many sites. The choice of sites alone makes one an SAE, a transcoder,
a cross-layer crosscoder or a cross-snapshot crosscoder."""
