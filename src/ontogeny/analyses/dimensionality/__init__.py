"""How many dimensions of the model the features take up, snapshot by snapshot."""
