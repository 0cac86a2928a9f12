"""Inspect robomimic's HDF5 demonstrations, or convert them to an episode store."""

from asd_policy.cli import script

if __name__ == "__main__":
    script("data import")
