"""How many dimensions of the model the features occupy, snapshot by snapshot."""
