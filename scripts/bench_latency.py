"""Time samplers of a policy beside diffusers' loop: `asd-policy bench`."""

from asd_policy.cli import script

if __name__ == "__main__":
    script("bench")
