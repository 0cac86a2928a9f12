"""`python -m asd_policy.cli`."""

from asd_policy.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
