"""Ctrl-C that lets the work in hand finish."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Within the block, the first Ctrl-C or SIGTERM only sets a flag, which the yielded function returns.

    A second one acts as usual. Call this in the main thread: Python sets signal handlers nowhere else.
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
