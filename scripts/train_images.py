"""Train a class-conditional DDPM of digits: `asd-policy images train`."""

from asd_policy.cli import script

if __name__ == "__main__":
    script("images train")
