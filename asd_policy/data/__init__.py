"""Demonstrations: the episode store, and what turns it into training batches."""
