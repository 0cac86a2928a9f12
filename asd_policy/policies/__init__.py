"""Policies: what turns an environment's observations into actions, and the configuration that travels with the weights."""
