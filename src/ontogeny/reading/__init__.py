"""Reading any text with every snapshot: features, losses and predictions for each token."""
