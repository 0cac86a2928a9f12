"""Samplers over many seeds, in parallel and resumable; see asd-policy sweep --help."""

from asd_policy.cli import script

if __name__ == "__main__":
    script("sweep")
