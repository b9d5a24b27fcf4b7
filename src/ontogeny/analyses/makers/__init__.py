"""Which attention heads make which features, snapshot by snapshot."""
