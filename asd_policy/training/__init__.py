"""Training of noise predictors on demonstrations."""
