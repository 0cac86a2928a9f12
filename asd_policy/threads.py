"""Thread counts of torch and other numerical libraries. This module does not import torch, which takes seconds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from asd_policy.errors import ConfigError

MOST_THREADS = 1024
"""OpenMP ends the process, without an exception, if it cannot start this many threads."""

THREAD_COUNTS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""The environment variables that numerical libraries read when they are loaded."""


def check_threads(threads: int) -> None:
    """Raise ConfigError unless torch can use this number of threads."""
    if not 1 <= threads <= MOST_THREADS:
        raise ConfigError(f"threads is {threads}; expected 1 to {MOST_THREADS}.")


@contextmanager
def thread_count(threads: int) -> Iterator[None]:
    """A context in which new processes compute with this many threads."""
    before = {name: os.environ.get(name) for name in THREAD_COUNTS}
    os.environ.update(dict.fromkeys(THREAD_COUNTS, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
