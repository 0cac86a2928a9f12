"""Inspect a policy checkpoint of any supported library, or convert it to another format."""

from asd_policy.cli import script

if __name__ == "__main__":
    script("import")
