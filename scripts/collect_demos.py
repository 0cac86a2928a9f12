"""Collect demonstrations of a task's scripted expert into an episode store: `asd-policy collect`."""

from asd_policy.cli import script

if __name__ == "__main__":
    script("collect")
