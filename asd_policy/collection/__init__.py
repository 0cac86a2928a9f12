"""Collects demonstrations of a task's scripted expert into an episode store."""
