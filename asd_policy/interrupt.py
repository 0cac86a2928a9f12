"""Ctrl-C that lets running work finish."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """A context in which the first Ctrl-C or SIGTERM only sets a flag. The yielded function returns the flag.

    A second signal has its usual effect. Use this in the main thread: only there can Python set signal handlers.
    """
    requested = False
    signals = (signal.SIGINT, signal.SIGTERM)

    def take_note(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        requested = True
        restore()

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    previous = {number: signal.signal(number, take_note) for number in signals}
    try:
        yield lambda: requested
    finally:
        restore()
