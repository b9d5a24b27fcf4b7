"""Which attention heads produce which features, snapshot by snapshot."""
