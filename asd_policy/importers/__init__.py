"""Policies from files."""

from asd_policy.importers.native import load_policy

__all__ = ["load_policy"]
