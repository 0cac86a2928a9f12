"""How many threads torch may be told to use; torch is not imported, so that those who only check need not wait."""

from __future__ import annotations

from asd_policy.errors import ConfigError

MOST_THREADS = 1024
"""More than any use is known for. OpenMP ends the process, without an exception, where it cannot start so many."""


def check_threads(threads: int) -> None:
    """Raise ConfigError unless torch can be told to use so many threads."""
    if not 1 <= threads <= MOST_THREADS:
        raise ConfigError(f"threads is {threads}; expected 1 to {MOST_THREADS}.")
