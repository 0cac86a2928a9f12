"""Measure the cost and the quality of image samplers: `asd-policy images bench`."""

from asd_policy.cli import script

if __name__ == "__main__":
    script("images bench")
