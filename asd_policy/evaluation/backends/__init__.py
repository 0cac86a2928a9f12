"""Where the episodes of a sweep run: here, in local processes, or on a Ray cluster. Results do not depend on it."""

from collections.abc import Callable, Generator, Iterable
from typing import Protocol

from asd_policy.errors import ConfigError
from asd_policy.evaluation.results import Record
from asd_policy.evaluation.worker import Wave

ATTEMPTS = 3
"""How often a wave is begun that takes its worker down."""


class Worker(Protocol):
    def __call__(self, wave: Wave) -> list[Record]: ...

    def close(self) -> None: ...


MakeWorker = Callable[[], Worker]
"""Picklable, for the backends that run it elsewhere."""


class Backend(Protocol):
    """Runs waves of episodes on workers."""

    def run(self, waves: Iterable[Wave], make_worker: MakeWorker) -> Generator[list[Record], None, None]:
        """Yield each wave's records when it is finished, in any order.

        A wave is taken from `waves` when there is a worker for it, and a wave whose worker is lost is begun again. One
        that has lost ATTEMPTS workers is given up: nothing is yielded for it. Closing the generator ends the workers at
        once.

        Raises:
            WorkerError: if workers are lost whatever they are given.
            Exception: whatever a worker raised.
        """
        ...


def check_counts(workers: int, threads: int) -> None:
    """Raise ConfigError unless both are positive."""
    if workers < 1 or threads < 1:
        raise ConfigError(f"Got {workers} workers with {threads} threads; expected at least one of each.")


class Serial:
    """One worker, in this process."""

    def run(self, waves: Iterable[Wave], make_worker: MakeWorker) -> Generator[list[Record], None, None]:
        worker = make_worker()
        try:
            yield from map(worker, waves)
        finally:
            worker.close()
