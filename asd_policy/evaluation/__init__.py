"""Rollouts of policies in environments, both known by protocol only."""
