"""What samplers cost, measured."""
