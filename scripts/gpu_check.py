"""Measure latency and kernels on a GPU, and run the tests that need one: `asd-policy gpu-check`."""

from asd_policy.cli import script

if __name__ == "__main__":
    script("gpu-check")
