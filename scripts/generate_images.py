"""Draw images from a DDPM of diffusers: `asd-policy images draw`."""

from asd_policy.cli import script

if __name__ == "__main__":
    script("images draw")
