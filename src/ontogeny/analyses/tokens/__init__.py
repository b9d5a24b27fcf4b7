"""How much the current token alone explains of the activations, snapshot by snapshot."""
