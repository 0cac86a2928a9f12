"""Demonstrations: importers of robomimic's files, the episode store, its checks, and training windows."""
