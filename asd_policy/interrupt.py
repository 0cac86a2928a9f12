"""Stopping between two pieces of work rather than within one."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Within the block the first Ctrl-C or SIGTERM only takes note; the yielded function tells whether one came.

    A second one acts as usual. Works in the main thread alone, as Python's signal handlers do.
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
