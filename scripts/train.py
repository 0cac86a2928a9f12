"""Train a diffusion policy on demonstrations, or resume a run that was stopped."""

from asd_policy.cli import script

if __name__ == "__main__":
    script("train")
