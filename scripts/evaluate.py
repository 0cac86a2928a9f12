"""One policy with several samplers on the same seeds; see asd-policy evaluate --help."""

from asd_policy.cli import script

if __name__ == "__main__":
    script("evaluate")
