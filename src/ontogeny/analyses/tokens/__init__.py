"""What the current token alone says of the activations, snapshot by snapshot."""
