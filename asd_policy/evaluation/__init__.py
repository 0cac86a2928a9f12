"""Rollouts of policies in environments: single, batched, swept, summarised and reported."""
