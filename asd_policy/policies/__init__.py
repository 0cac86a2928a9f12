"""Policies: from observations to actions, and the configuration that travels with the weights."""
