"""The principal subspace of all sites, and the activations in it (METHOD.md 9)."""
