"""A page and a table of results files; see asd-policy report --help."""

from asd_policy.cli import script

if __name__ == "__main__":
    script("report")
