"""Benchmarks of the samplers' cost."""
